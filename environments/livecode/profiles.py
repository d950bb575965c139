"""The rules that programs are graded by in an evaluation: LiveCodeBench's own and those of the recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Name = Literal["run", "livecodebench", "nouscoder"]


@dataclass(frozen=True)
class Profile:
    """Limits of one test, and how far two decimal numbers may lie apart (None: they must be equal)."""

    name: str
    time_limit_s: float
    memory_limit_mb: int
    decimal_tolerance: float | None = None

    @property
    def limits(self) -> dict[str, Any]:
        """The fields of a judge's request."""
        return {name: value for name, value in asdict(self).items() if name != "name"}

    def __str__(self) -> str:
        decimals = "exact decimals" if self.decimal_tolerance is None else f"decimals to {self.decimal_tolerance:g}"
        return f"{self.name}: {self.time_limit_s:g} s, {self.memory_limit_mb} MB, {decimals}"


def profiles(
    names: Sequence[Name], *, time_limit_s: float, memory_limit_mb: int, no_memory_limit_mb: int
) -> list[Profile]:
    """The named profiles in order.

    `livecodebench` is the official grader: 6 s, no memory limit, decimals exact. `nouscoder` is the recipe's: 15 s,
    4 GB, decimals to 1e-4. `run` takes the environment's own limits, decimals exact.

    Args:
        no_memory_limit_mb: what stands for "no memory limit": a program without any could take the machine down.
    """
    known = {
        "run": Profile("run", time_limit_s, memory_limit_mb),
        "livecodebench": Profile("livecodebench", 6.0, no_memory_limit_mb),
        "nouscoder": Profile("nouscoder", 15.0, 4096, 1e-4),
    }
    return [known[name] for name in names]
