"""What the sections of benchmarks/gpu_check.py share: where they run, what they measure with, and their limits.

Limits: bf16 keeps 8 significant bits, so a rounded value is off by 0.2 % on average and a few roundings in a row by
about 1 %. A position that sees what it should not moves results by 10 % and more: the leak section shows it, by
changing what a position does see. fp32 is held to 1e-4.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.loops import GIB, Phases
from benchmarks.workload import write_model
from trainer.parallel import Parallel, distributed
from trainer.planning.live_bytes import LiveBytes

HALF, SINGLE = 0.02, 1e-4
"""Largest relative L2 error of values and gradients in bf16 and in fp32."""
MODEL_HALF = 0.05
"""The same for a whole model's gradient in bf16: layers of roundings."""
LEAK = 0.01
"""Largest relative change by what another document holds; what is seen has to make five times that."""


class Failed(AssertionError):
    """A measured value is outside its limit."""


@dataclass
class Check:
    """Where the sections run, and on what."""

    device: torch.device
    folder: Path
    shapes: Sequence[str]
    """Models to measure, the smallest first; the first one is used where one is enough."""
    contexts: Sequence[int]
    """Of the speed section, ascending; the last one and `longest` are the memory section's."""
    longest: int
    opened: ExitStack = field(default_factory=ExitStack)
    deadline: float = math.inf
    """On the monotonic clock: what would not end by then is left out."""

    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    @property
    def cuda(self) -> bool:
        """Whether this is a GPU."""
        return self.device.type == "cuda"

    @cached_property
    def parallel(self) -> Parallel:
        """A world of one: nccl on a GPU, gloo on a CPU."""
        return self.opened.enter_context(distributed(120, self.device.type))

    def model(self, shape: str) -> Path:
        """The folder of a random model."""
        return write_model(shape, self.folder / shape, self.device)

    def random(self, *shape: int, seed: int, scale: float = 1.0) -> Tensor:
        """fp32 numbers that bf16 holds exactly."""
        drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale
        return drawn.bfloat16().float().to(self.device)

    @contextmanager
    def measured(self, live: Sequence[Tensor] = ()) -> Iterator[dict[str, float]]:
        """Seconds and peak GiB of the block, filled in at its end. live: what a CPU counts as there before."""
        found: dict[str, float] = {}
        with ExitStack() as stack:
            tracker = None if self.cuda else stack.enter_context(LiveBytes())
            if tracker is not None:
                tracker.count(live)
            phases = Phases(self.device, tracker)
            with phases("block"):
                yield found
        found |= {"seconds": phases.seconds["block"][0], "peak_gib": phases.peak["block"] / GIB}


def hold(name: str, value: float, limit: float) -> float:
    """The value, unless it is above the limit or NaN; then Failed."""
    if not value <= limit:
        raise Failed(f"{name} is {value:.3g}, more than {limit:g}")
    return value


def off(value: Tensor, reference: Tensor) -> float:
    """L2 norm of the difference over the reference's."""
    first, second = value.detach().double(), reference.detach().double()
    return float((first - second).norm() / second.norm())
