"""Limits that problems state themselves, and what they become for a program."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from verifier_app.judge.protocol import MAX_TIME_LIMIT_S

if TYPE_CHECKING:
    from environments.livecode.problems.problem import Problem

LEAST_MEMORY_MB = 256
"""What the factor never goes below: an interpreter with numpy loaded needs a part of it."""


@dataclass(frozen=True)
class OwnLimits:
    """A program's limits from those that its problem states, which are set for compiled languages.

    time, memory: factors; None: that limit of a problem does not count.
    """

    time: float | None = None
    memory: float | None = None

    def of(self, problem: Problem, time_limit_s: float, memory_limit_mb: int) -> tuple[float, int]:
        """(seconds, MB) for a test of the problem; the given ones where it states none."""
        if self.time is not None and problem.time_limit_s is not None:
            time_limit_s = min(problem.time_limit_s * self.time, MAX_TIME_LIMIT_S)
        if self.memory is not None and problem.memory_limit_mb is not None:
            memory_limit_mb = max(math.ceil(problem.memory_limit_mb * self.memory), LEAST_MEMORY_MB)
        return time_limit_s, memory_limit_mb


NOT_THEIRS = OwnLimits()
"""The same limits for every problem, as the recipe has them."""
