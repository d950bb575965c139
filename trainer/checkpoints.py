"""Checkpoints of a run: weights, AdamW's moments, step and random state, whole or not at all.

    checkpoints/step-00000012/    DCP's files, random-<rank>.pt, and meta.json, which is written last
    checkpoints/latest            the name of the newest one
    checkpoints/.step-00000012    one being written; never loaded, removed by the next save

A checkpoint is written beside its place, synced to the disk and renamed. It loads on any number of ranks: weights and
moments stand under their names. Saving is synchronous; `save` returns the folder and `wait` does nothing, so that
an asynchronous one can come behind the same calls.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from trainer.optimizer import PolicyOptimizer
from trainer.parallel import Parallel, barrier, broadcast
from trainer.policy import Policy

FORMAT = 1
"""Version of the folder's layout; a checkpoint of another one is refused."""

_NAME = re.compile(r"step-\d{8}")


class CheckpointError(RuntimeError):
    """A checkpoint that was asked for cannot be used, or one could not be written."""


@dataclass(frozen=True)
class Restored:
    """What a checkpoint held besides weights, moments and random state, which are already in place."""

    path: Path
    step: int
    extra: dict[str, Any]


class Checkpoints:
    """The checkpoints in one folder, which all ranks share. Every method is a collective."""

    def __init__(self, folder: str | Path, parallel: Parallel, keep_last: int = 2, deadline_s: float = 600.0) -> None:
        """keep_last: complete checkpoints kept, at least 1. deadline_s: longest wait for the slowest rank."""
        if keep_last < 1:
            raise ValueError(f"keep_last {keep_last}: keep at least 1")
        self.folder = Path(folder)
        self.parallel = parallel
        self.keep_last = keep_last
        self.deadline_s = deadline_s

    def save(self, policy: Policy, optimizer: PolicyOptimizer, step: int, extra: dict[str, Any] | None = None) -> Path:
        """Writes the state after `step` and points `latest` to it; returns its folder.

        extra: anything JSON, from rank 0. A checkpoint of the same step is replaced. When the process dies on the way
        the other ones, and `latest`, are untouched.
        """
        final = self.folder / f"step-{step:08d}"
        partial = self.folder / f".{final.name}"
        if self.parallel.is_main:
            for left_over in self.folder.glob(".step-*"):
                shutil.rmtree(left_over)  # of a save that was cut off, or replaced
            partial.mkdir(parents=True)
        self._meet(f"checkpoint of step {step}, begin")
        dcp.save(_state(policy, optimizer), checkpoint_id=partial)
        torch.save(_random_state(), partial / f"random-{self.parallel.rank}.pt")
        self._meet(f"checkpoint of step {step}, every rank has written")
        if self.parallel.is_main:
            meta = {
                "format": FORMAT,
                "step": step,
                "updates": optimizer.updates,
                "world_size": self.parallel.world_size,
                "shapes": _shapes(policy),
                "extra": extra or {},
            }
            (partial / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
            _publish(partial, final, self.folder / "latest")
            self._retain(final)
        self._meet(f"checkpoint of step {step}, end")
        return final

    def wait(self) -> None:
        """Returns when the last `save` is durable: at once, since saving is synchronous."""

    def load(self, which: str, policy: Policy, optimizer: PolicyOptimizer) -> Restored:
        """Puts a checkpoint's state in place. which: "latest", a name in this folder ("step-00000012"), or a path.

        The random state of a rank that did not save is left as it is. Raises CheckpointError when there is none,
        it is incomplete, or it belongs to another model.
        """
        here: Any = self._find(which) if self.parallel.is_main else None
        found = broadcast(here, self.parallel)
        if isinstance(found, CheckpointError):
            raise found
        path = Path(found)
        meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
        _check_meta(path, meta, _shapes(policy))
        state = _state(policy, optimizer)
        dcp.load(state, checkpoint_id=path)
        set_state_dict(
            policy.model, optimizer.adamw, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
        )
        optimizer.updates = meta["updates"]
        saved = path / f"random-{self.parallel.rank}.pt"
        if saved.is_file():
            _restore_random_state(torch.load(saved, weights_only=True))
        self._meet(f"checkpoint {path.name}, loaded")
        return Restored(path, meta["step"], meta["extra"])

    def complete(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(
            path for path in self.folder.iterdir() if _NAME.fullmatch(path.name) and (path / "meta.json").is_file()
        )

    def _find(self, which: str) -> str | CheckpointError:
        """On rank 0: the folder, or the error that every rank will raise."""
        if which == "latest":
            pointer = self.folder / "latest"
            if not pointer.is_file():
                return CheckpointError(
                    f"checkpoint 'latest': {self.folder} has none; give a checkpoint's folder, or start without resume"
                )
            which = pointer.read_text(encoding="utf-8").strip()
        path = self.folder / which if _NAME.fullmatch(which) else Path(which)
        if not (path / "meta.json").is_file():
            known = ", ".join(one.name for one in self.complete()) or "none"
            return CheckpointError(
                f"checkpoint {which!r}: {path} is missing or incomplete; complete ones here: {known}"
            )
        return str(path)

    def _retain(self, newest: Path) -> None:
        # By time of writing: after a resume from an older step, the higher numbers belong to an abandoned line.
        others = sorted((path for path in self.complete() if path != newest), key=lambda path: path.stat().st_mtime)
        for old in others[: len(others) + 1 - self.keep_last]:
            # Its meta.json goes first, so that a half-removed checkpoint is never taken for a complete one.
            (old / "meta.json").unlink()
            shutil.rmtree(old)

    def _meet(self, what: str) -> None:
        barrier(self.parallel, self.deadline_s, what)


def _state(policy: Policy, optimizer: PolicyOptimizer) -> dict[str, Any]:
    model, moments = get_state_dict(policy.model, optimizer.adamw)
    return {"model": model, "optimizer": moments}


def _shapes(policy: Policy) -> dict[str, list[int]]:
    return {name: list(weight.shape) for name, weight in policy.model.named_parameters()}


def _check_meta(path: Path, meta: dict[str, Any], shapes: dict[str, list[int]]) -> None:
    if meta["format"] != FORMAT:
        raise CheckpointError(f"checkpoint {path}: format {meta['format']}, this version reads {FORMAT}")
    for name in sorted(set(meta["shapes"]) | set(shapes)):
        theirs, ours = meta["shapes"].get(name), shapes.get(name)
        if theirs != ours:
            raise CheckpointError(
                f"checkpoint {path} is of another model: {name} has shape {theirs or 'none'} there and "
                f"{ours or 'none'} in the model; set `model` to the folder that the run began with"
            )


def _random_state() -> dict[str, Any]:
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _restore_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _sync(path: Path) -> None:
    """Flushes a file, or a folder with everything in it, to the disk."""
    for part in (*path.rglob("*"), path):
        _sync_one(part)


def _publish(partial: Path, final: Path, pointer: Path) -> None:
    """Puts a complete folder in its place, then has the pointer name it; each in one step."""
    _sync(partial)
    if final.exists():
        final.rename(final.with_name(f".{final.name}-replaced"))
    partial.rename(final)
    _sync_one(final.parent)
    beside = pointer.with_name(".latest")
    beside.write_text(final.name + "\n", encoding="utf-8")
    _sync(beside)
    beside.replace(pointer)
    _sync_one(final.parent)


def _sync_one(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
