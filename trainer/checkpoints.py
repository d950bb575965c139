"""Checkpoints of a run: weights, AdamW's moments, step, schedule and random state, whole or not at all.

    checkpoints/step-00000012/    DCP's files, random-<rank>.pt, and meta.json, which is written last
    checkpoints/latest            the name of the newest one
    checkpoints/best              the name of the one that `point_best` chose; never removed
    checkpoints/.step-00000012    one being written; never loaded, removed by the next save

A checkpoint is written beside its place, synced to the disk and renamed. `save` returns as soon as the state is copied
to the host's memory; files are written by a thread, over a gloo group of their own, while training continues. It
loads on any number of ranks: weights and moments stand under their names.
"""

from __future__ import annotations

import json
import random
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from environments.common.files import publish_folder, write_text
from trainer.checkpoint_folder import (
    FORMAT,
    CheckpointError,
    UnusableCheckpoint,
    complete_checkpoints,
    find_checkpoint,
    point_best,
    pointed_to,
    read_meta,
)
from trainer.model.policy import Policy
from trainer.model.reference import Reference
from trainer.model.weight_files import fingerprint
from trainer.optimizer import PolicyOptimizer
from trainer.parallel import Parallel, barrier, broadcast, together

__all__ = [
    "FORMAT",
    "CheckpointError",
    "Checkpoints",
    "Restored",
    "complete_checkpoints",
    "find_checkpoint",
    "point_best",
]


@dataclass(frozen=True)
class Restored:
    """What a checkpoint held besides weights, moments and random state, which are already in place."""

    path: Path
    step: int
    extra: dict[str, Any]


class Checkpoints:
    """The checkpoints in one folder, which all ranks share. `save`, `wait` and `load` are collectives."""

    def __init__(self, folder: str | Path, parallel: Parallel, keep_last: int = 2, deadline_s: float = 600.0) -> None:
        """keep_last: complete checkpoints kept, at least 1, the best one beside them. deadline_s: longest wait for the
        slowest rank. A collective.
        """
        if keep_last < 1:
            raise ValueError(f"keep_last {keep_last}: keep at least 1")
        self.folder = Path(folder)
        self.parallel = parallel
        self.keep_last = keep_last
        self.deadline_s = deadline_s
        # The writing threads talk to each other while the main threads do: two groups, or their messages mix.
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=deadline_s))
        self._finisher = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._durable: int | None = None

    def save(
        self,
        policy: Policy,
        optimizer: PolicyOptimizer,
        step: int,
        extra: dict[str, Any] | None = None,
        reference: Reference | None = None,
    ) -> Path:
        """Begins to write the state after `step`; returns the folder that it will have.

        Waits for the save before it, and raises CheckpointError when that one failed. extra: anything JSON, from rank
        0. A checkpoint of the same step is replaced. When the process dies on the way the other ones, and `latest`,
        are untouched.
        """
        self.wait()
        final = self.folder / f"step-{step:08d}"
        partial = self.folder / f".{final.name}"
        with together(self.parallel):
            if self.parallel.is_main:
                for left_over in self.folder.glob(".step-*"):
                    shutil.rmtree(left_over)  # of an interrupted save, or replaced
                partial.mkdir(parents=True)
        meta = {
            "format": FORMAT,
            "step": step,
            "updates": optimizer.updates,
            "world_size": self.parallel.world_size,
            "moments": optimizer.config.moments,
            "shapes": _shapes(policy),
            "adapter": _adapter(policy),
            "reference": bool(reference and reference.state()),
            "extra": extra or {},
        }
        with together(self.parallel):
            torch.save(_random_state(), partial / f"random-{self.parallel.rank}.pt")
        writing = dcp.async_save(_state(policy, optimizer, reference), checkpoint_id=partial, process_group=self._group)
        self._pending = self._finisher.submit(self._finish, writing, partial, final, meta)
        return final

    def _finish(self, writing: Any, partial: Path, final: Path, meta: dict[str, Any]) -> None:
        """In the writing thread: DCP's coordinator, rank 0, is done when every rank has written and synced."""
        try:
            writing.result()
        except CheckpointException as error:
            raise OSError(_reason(error)) from error
        if self.parallel.is_main:
            write_text(partial / "meta.json", json.dumps(meta))
            publish_folder(partial, final)
            write_text(self.folder / "latest", final.name + "\n")
            self._retain(final)
            self._durable = meta["step"]

    @property
    def durable(self) -> int | None:
        """On rank 0: the step of the newest checkpoint that this process has finished; what it includes may go."""
        return self._durable

    def wait(self) -> None:
        """Returns when the last `save` is durable. Raises CheckpointError on every rank when it failed."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        with together(self.parallel):
            try:
                pending.result(self.deadline_s)
            except TimeoutError as error:
                raise CheckpointError(f"{self.folder}: a checkpoint took more than {self.deadline_s:g} s") from error
            except Exception as error:
                raise CheckpointError(
                    f"{self.folder}: the checkpoint was not written ({type(error).__name__}: {error}); the older ones "
                    "are untouched: check the disk's space and rights, then resume from 'latest'"
                ) from error

    def close(self) -> None:
        """Waits for this rank's writing thread, whether its save succeeds or not."""
        self._finisher.shutdown(wait=True)

    def load(
        self,
        which: str,
        policy: Policy,
        optimizer: PolicyOptimizer | None,
        folder: Path | None = None,
        reference: Reference | None = None,
    ) -> Restored:
        """Puts a checkpoint's state in place. which: "latest", "best", a name in this folder (or in `folder`, another
        run's), or a path.

        An optimizer gets its moments and count of updates from the checkpoint; its options stay the configuration's.
        optimizer None: its moments, its schedule and the random state are left alone, as for the beginning of a new
        stage. reference: a running mean is read as it was; for None, and for a frozen one, nothing is. The random state
        of a rank that did not save is left as it is. Raises CheckpointError when there is none, it is incomplete, or it
        belongs to another model.
        """
        here: Any = self._find(folder or self.folder, which) if self.parallel.is_main else None
        found = broadcast(here, self.parallel)
        if isinstance(found, CheckpointError):
            raise found
        path = Path(found)
        with together(self.parallel):
            meta = read_meta(path)
            _check_adapter(path, meta.get("adapter"), _adapter(policy))
            _check_shapes(path, meta, _shapes(policy))
            if optimizer is not None:
                _check_moments(path, meta.get("moments", "fp32"), optimizer.config.moments)
            _check_reference(path, meta, reference)
        state = _state(policy, optimizer, reference)  # a mean's own shards are in it, and are read into
        try:
            dcp.load(state, checkpoint_id=path, process_group=self._group)
        except CheckpointException as error:
            raise CheckpointError(f"checkpoint {path} cannot be read ({_reason(error)}); give an older one") from error
        set_state_dict(
            policy.model,
            optimizer.adamw if optimizer else (),
            model_state_dict=state["model"],
            optim_state_dict=state.get("optimizer", {}),
            options=_options(policy),
        )
        if optimizer is not None:
            optimizer.apply_options()
            optimizer.updates = meta["updates"]
            saved = path / f"random-{self.parallel.rank}.pt"
            if saved.is_file():
                _restore_random_state(torch.load(saved, weights_only=True))
        barrier(self.parallel, self.deadline_s, f"checkpoint {path.name}, loaded")
        return Restored(path, meta["step"], meta["extra"])

    def complete(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return complete_checkpoints(self.folder)

    def _find(self, folder: Path, which: str) -> str | CheckpointError:
        """On rank 0: the folder, or the error that every rank will raise."""
        try:
            return str(find_checkpoint(folder, which))
        except CheckpointError as error:
            return error

    def _retain(self, newest: Path) -> None:
        # By time of writing: after a resume from an older step, the higher numbers belong to an abandoned line.
        kept = {newest.name, pointed_to(self.folder / "best")}
        others = sorted(
            (path for path in self.complete() if path.name not in kept), key=lambda path: path.stat().st_mtime
        )
        for old in others[: len(others) + 1 - self.keep_last]:
            # Its meta.json goes first, so that a half-removed checkpoint is never taken for a complete one.
            (old / "meta.json").unlink()
            shutil.rmtree(old)


def _reason(error: CheckpointException) -> str:
    """What the first rank raised: DCP wraps it, a BaseException with every rank's trace, and raises it on all ranks."""
    first, _ = next(iter(error.failures.values()))
    return f"{type(first).__name__}: {first}".removesuffix(": ")


def _state(policy: Policy, optimizer: PolicyOptimizer | None, reference: Reference | None) -> dict[str, Any]:
    model, moments = get_state_dict(policy.model, optimizer.adamw if optimizer else (), options=_options(policy))
    found = {"model": model, "optimizer": moments} if optimizer else {"model": model}
    mean = reference.state() if reference else {}
    return {**found, "reference": mean} if mean else found


def _options(policy: Policy) -> StateDictOptions:
    """An adapter is saved alone: the weights that it leaves frozen are the model folder's."""
    alone = policy.adapter is not None
    return StateDictOptions(ignore_frozen_params=alone, strict=not alone)


def _adapter(policy: Policy) -> dict[str, Any] | None:
    """What a checkpoint of an adapter means depends on, besides its weights; None where all weights train."""
    if policy.adapter is None:
        return None
    rank = policy.adapter.rank
    return {"rank": rank, "alpha": policy.adapter.scaling * rank, "base": fingerprint(policy.path)}


def _check_adapter(path: Path, theirs: dict[str, Any] | None, ours: dict[str, Any] | None) -> None:
    if theirs is None and ours is not None:
        raise UnusableCheckpoint(
            f"checkpoint {path} holds all weights, which adapter.rank {ours['rank']} does not train; set adapter.rank "
            "to 0, or `model` to the export of that run, without the checkpoint"
        )
    if theirs is not None and ours is None:
        raise UnusableCheckpoint(
            f"checkpoint {path} holds an adapter alone, and adapter.rank 0 trains all weights; set adapter.rank to "
            f"{theirs['rank']}"
        )
    if theirs is None or ours is None:
        return
    for name in ("rank", "alpha"):
        if theirs[name] != ours[name]:
            raise UnusableCheckpoint(
                f"checkpoint {path} is of an adapter with {name} {theirs[name]:g}, adapter.{name} is {ours[name]:g}; "
                f"set adapter.{name} to {theirs[name]:g}"
            )
    if theirs["base"] != ours["base"]:
        raise UnusableCheckpoint(
            f"checkpoint {path} is an adapter of another base: the weights in `model` are not those that the run began "
            "with; set `model` to the folder that it began with"
        )


def _check_reference(path: Path, meta: dict[str, Any], reference: Reference | None) -> None:
    if reference is not None and reference.state() and not meta.get("reference"):
        raise UnusableCheckpoint(
            f"checkpoint {path} has no running mean of the policy, which objective.reference ema resumes from; "
            "set objective.reference to none or frozen, or begin another run with init_from"
        )


def _check_moments(path: Path, theirs: str, ours: str) -> None:
    if theirs != ours:
        raise UnusableCheckpoint(
            f"checkpoint {path} has AdamW's moments in {theirs}, optimizer.moments is {ours}; set optimizer.moments to "
            f"{theirs}, or begin another run with init_from, whose optimizer: reset begins with new moments"
        )


def _shapes(policy: Policy) -> dict[str, list[int]]:
    return {name: list(weight.shape) for name, weight in policy.model.named_parameters()}


def _check_shapes(path: Path, meta: dict[str, Any], shapes: dict[str, list[int]]) -> None:
    for name in sorted(set(meta["shapes"]) | set(shapes)):
        theirs, ours = meta["shapes"].get(name), shapes.get(name)
        if theirs != ours:
            raise UnusableCheckpoint(
                f"checkpoint {path} is of another model: {name} has shape {theirs or 'none'} there and "
                f"{ours or 'none'} in the model; set `model` to the folder that the run began with"
            )


def _random_state() -> dict[str, Any]:
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": [torch.from_numpy(part) if isinstance(part, np.ndarray) else part for part in np.random.get_state()],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _restore_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy(), *rest))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
