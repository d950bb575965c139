"""A recorded step taken again: bit for bit as it was, or as if other options had been set.

It begins with the newest checkpoint before the step (the model, where there is none) and takes the stored batches in
between as well. Nothing in the run's folder is changed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from environments.common.errors import ConfigError
from environments.common.hub import model_folder
from trainer.checkpoint_folder import complete_checkpoints, find_checkpoint
from trainer.checkpoints import Checkpoints
from trainer.config import TrainerConfig
from trainer.metrics import Metrics
from trainer.model.policy import Policy
from trainer.model.reference import Reference
from trainer.parallel import Parallel, all_reduce_sums, together
from trainer.replay_store import FOLDER, Digests, StepRecorder, StoredStep, comparable, read_step, versions
from trainer.step import describe, prepare, set_old_logprobs, set_reference_logprobs, take_steps
from trainer.training_state import TrainingState


@dataclass(frozen=True)
class Parting:
    """Where a replayed step first differs from the recorded one."""

    step: int
    phase: str
    what: str
    recorded: str
    replayed: str

    def __str__(self) -> str:
        return f"step {self.step} parts in phase {self.phase!r}: {self.what} was {self.recorded}, is {self.replayed}"


@dataclass
class Taken:
    """A step as it was taken now. gradient, update: this rank's parts, on the CPU, by weight; empty if not asked for.

    gradient: before clipping, summed over the optimizer steps. update: weights after minus before.
    """

    digests: Digests
    metrics: dict[str, Any]
    dropped: dict[str, str]
    gradient: dict[str, Tensor] = field(default_factory=dict)
    update: dict[str, Tensor] = field(default_factory=dict)


class Replay:
    """The state of a run before one of its steps, made again. Opened and used on every rank."""

    def __init__(
        self, run: Path, step: int, parallel: Parallel, say: Callable[[str], None] = lambda line: None
    ) -> None:
        """Reads checkpoint and batches up to `step`, and takes the steps before it again.

        `parting` is the first difference on the way there; None: none.

        Raises:
            ConfigError: a batch on the way, or the model, is not there.
            CheckpointError: a checkpoint that cannot be read.
        """
        self.run, self.parallel = run, parallel
        self.parting: Parting | None = None
        with together(parallel):
            self.begin = beginning(run, step)
            self.stored = [read_step(run / FOLDER, number) for number in range(self.begin + 1, step + 1)]
            self.config = TrainerConfig.model_validate(self.stored[-1].config)
            self.model = model_folder(self.config.model)
        self._restore(TrainerConfig.model_validate(self.stored[0].config))
        for before in self.stored[:-1]:
            say(f"step {before.step}, on the way")
            taken = self.take(before, TrainerConfig.model_validate(before.config))
            if self.parting is None:
                self.parting = first_parting(before, taken)

    def _restore(self, config: TrainerConfig) -> None:
        random.seed(config.seed)
        np.random.seed(config.seed)
        torch.manual_seed(config.seed)
        if self.parallel.device.type == "cpu":
            torch.set_num_threads(self.stored[-1].threads)  # sums are cut by threads: their order is in the bits
        state = TrainingState(config, self.model, self.parallel)
        self.policy, self.optimizer, self.reference = state.policy, state.optimizer, state.reference
        checkpoints = Checkpoints(self.run / "checkpoints", self.parallel)
        try:
            if self.begin:
                state.resume(checkpoints, f"step-{self.begin:08d}")
            elif config.init_from.run is not None:
                stage = config.init_from
                path = find_checkpoint(Path(str(stage.run)) / "checkpoints", stage.select)
                state.begin_with(checkpoints, str(path), stage.optimizer)
        finally:
            checkpoints.close()

    def take(self, stored: StoredStep, config: TrainerConfig, *, tensors: bool = False) -> Taken:
        """Takes a step on a stored batch with these options; a collective.

        tensors: whether gradient and update are copied: twice this rank's part of the weights in host memory.
        """
        self.optimizer.config, self.optimizer.total = config.optimizer, config.updates
        self.optimizer.apply_options()
        recorder = StepRecorder(self.run, 1, self.policy, self.optimizer, self.parallel)
        gradient: dict[str, Tensor] = {}
        before = _local(self.policy) if tensors else {}
        if tensors:
            self._sum_gradients(gradient)
        metrics = Metrics()
        batch = prepare(stored.groups, config, self.parallel)
        if self.reference is not None:
            set_reference_logprobs(batch, self.reference)
        set_old_logprobs(batch, self.policy, config, self.parallel)
        recorder.prepared(stored.groups, batch)
        take_steps(batch, self.policy, self.optimizer, config, self.parallel, metrics, self.reference)
        if self.parallel.is_main:
            describe(batch, stored.step - 1, metrics)
        row = comparable(metrics.reduce(self.parallel.control))
        update = {name: value - before[name] for name, value in _local(self.policy).items()} if tensors else {}
        return Taken(recorder.digests(), row, dict(batch.dropped), gradient, update)

    def refer(self, config: TrainerConfig) -> None:
        """Takes the reference that other options ask for; ConfigError for a mean that the run did not keep."""
        was, now = self.config.objective, config.objective
        if was.reference == now.reference and was.reference_decay == now.reference_decay:
            return
        if now.reference == "ema":
            raise ConfigError(
                "objective.reference ema: a running mean depends on every step before, and the run kept "
                f"{'another' if was.reference == 'ema' else 'none'}; give none or frozen"
            )
        self.reference = None if now.reference == "none" else Reference(config, self.policy)

    def _sum_gradients(self, into: dict[str, Tensor]) -> None:
        record = self.optimizer.watch

        def watch(phase: str) -> None:
            record(phase)
            if phase == "gradient":
                for name, weight in self.policy.model.named_parameters():
                    if weight.grad is not None:
                        part = _own(weight.grad).to("cpu", copy=True)
                        into[name] = into[name] + part if name in into else part

        self.optimizer.watch = watch


def beginning(run: Path, step: int) -> int:
    """The step after which the replay begins: that of the newest checkpoint before `step`, 0 for the model."""
    found = [int(path.name.removeprefix("step-")) for path in complete_checkpoints(run / "checkpoints")]
    return max((number for number in found if number < step), default=0)


def first_parting(stored: StoredStep, taken: Taken) -> Parting | None:
    """The first difference in the order of the step, metrics last; rank 0 knows."""
    for was, now in zip(stored.digests, taken.digests, strict=False):
        if tuple(was) != tuple(now):
            what = was[1] if was[:2] == now[:2] else f"{was[1]} (now {now[0]}, {now[1]})"
            return Parting(stored.step, was[0], what, was[2], now[2])
    if len(stored.digests) != len(taken.digests):
        longer = max(stored.digests, taken.digests, key=len)[min(len(stored.digests), len(taken.digests))]
        there = len(stored.digests) > len(taken.digests)
        return Parting(stored.step, longer[0], longer[1], *(("there", "not there")[:: 1 if there else -1]))
    for name in sorted(stored.metrics.keys() | taken.metrics.keys()):
        was_value, now_value = stored.metrics.get(name), taken.metrics.get(name)
        if was_value != now_value and not (_nan(was_value) and _nan(now_value)):
            return Parting(stored.step, "metrics", name, repr(was_value), repr(now_value))
    return None


def _nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def replay(run: Path, step: int, parallel: Parallel, say: Callable[[str], None] = lambda line: None) -> list[str]:
    """The partings of a recorded step and those before it from the same step taken again; empty: bit for bit equal.

    The first one is all that counts: what follows comes of it. On other ranks than 0 always empty. A collective.
    """
    again = Replay(run, step, parallel, say)
    stored = again.stored[-1]
    taken = again.take(stored, again.config)
    found = again.parting or first_parting(stored, taken)
    if found is None or not parallel.is_main:
        return []
    return [str(found), *differences(stored, parallel)]


def differences(stored: StoredStep, parallel: Parallel) -> list[str]:
    """What the machine does not have in common with the one that recorded: bits need not be the same then."""
    found = []
    if stored.world_size != parallel.world_size:
        found.append(f"it was recorded by {stored.world_size} ranks, these are {parallel.world_size}: sums differ")
    for name, now in versions(parallel).items():
        if stored.versions.get(name) != now:
            found.append(f"{name} was {stored.versions.get(name)}, is {now}")
    if parallel.device.type == "cuda":
        found.append("on a GPU some sums have no fixed order: small differences may be of that")
    return found


@dataclass(frozen=True)
class AsIf:
    """A step as recorded and with other options. cosine, ratio: of the second to the first; NaN without one of them."""

    before: Taken
    after: Taken
    gradient_cosine: float
    gradient_ratio: float
    update_cosine: float
    update_ratio: float


def replay_as_if(
    run: Path, step: int, config: Callable[[TrainerConfig], TrainerConfig], parallel: Parallel,
    say: Callable[[str], None] = lambda line: None,
) -> AsIf:  # fmt: skip
    """A recorded step as it was and with other options, from the same weights. A collective.

    Args:
        config: from the recorded options to those of the second time.
    """
    first = Replay(run, step, parallel, say)
    other = config(first.config)
    before = first.take(first.stored[-1], first.config, tensors=True)
    del first.policy, first.optimizer, first.reference
    second = Replay(run, step, parallel, say)
    second.refer(other)
    after = second.take(second.stored[-1], other, tensors=True)
    pairs = (before.gradient, after.gradient), (before.update, after.update)
    return AsIf(before, after, *(number for pair in pairs for number in _compared(*pair, parallel)))


def _compared(first: dict[str, Tensor], second: dict[str, Tensor], parallel: Parallel) -> tuple[float, float]:
    """Cosine of two sets of tensors and ratio of the second's norm to the first's, over all ranks."""
    sums = {"dot": 0.0, "first": 0.0, "second": 0.0}
    for name in first.keys() | second.keys():
        one, two = first.get(name), second.get(name)
        for key, a, b in (("dot", one, two), ("first", one, one), ("second", two, two)):
            if a is not None and b is not None:
                sums[key] += float((a.double() * b.double()).sum())
    total = all_reduce_sums(sums, parallel)
    norms = math.sqrt(total["first"]), math.sqrt(total["second"])
    if not all(norms):
        return math.nan, math.nan
    return total["dot"] / (norms[0] * norms[1]), norms[1] / norms[0]


def _own(tensor: Tensor) -> Tensor:
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def _local(policy: Policy) -> dict[str, Tensor]:
    return {
        name: _own(weight).to("cpu", copy=True)
        for name, weight in policy.model.named_parameters()
        if weight.requires_grad
    }
