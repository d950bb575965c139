"""The rules that programs are graded by in an evaluation: LiveCodeBench's own and those of the recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from verifier_app.judge.default_limits import MEMORY_LIMIT_MB, TIME_LIMIT_S

Name = Literal["run", "livecodebench", "nouscoder"]


@dataclass(frozen=True)
class GradingProfile:
    """Limits of one test, how far two decimal numbers may lie apart (None: they must be equal), and how programs run.

    semantics: "official" is LiveCodeBench's grader (official.py of the judge), None a process of its own.
    """

    name: str
    time_limit_s: float
    memory_limit_mb: int
    decimal_tolerance: float | None = None
    semantics: Literal["official"] | None = None

    @property
    def limits(self) -> dict[str, Any]:
        """The fields of a judge's request."""
        fields = asdict(self)
        return {name: fields[name] for name in fields if name != "name" and (name, fields[name]) != ("semantics", None)}

    def __str__(self) -> str:
        decimals = "exact decimals" if self.decimal_tolerance is None else f"decimals to {self.decimal_tolerance:g}"
        run = ", official semantics" if self.semantics else ""
        return f"{self.name}: {self.time_limit_s:g} s, {self.memory_limit_mb} MB, {decimals}{run}"


def grading_profiles(
    names: Sequence[Name],
    *,
    time_limit_s: float,
    memory_limit_mb: int,
    decimal_tolerance: float | None = None,
    no_memory_limit_mb: int,
    semantics: Literal["process", "official"] = "process",
) -> list[GradingProfile]:
    """The named profiles in order.

    `livecodebench` is the official grader: 6 s, no memory limit, decimals exact. `nouscoder` is the recipe's: 15 s,
    4 GB, decimals to 1e-4 (in results of calls too, which its own endpoint compares exactly). `run` takes the
    environment's own limits and tolerance.

    Args:
        semantics: how `livecodebench` runs programs; the others run them as processes.
        no_memory_limit_mb: what stands for "no memory limit": a program without any could take the machine down.
    """
    known = {
        "run": GradingProfile("run", time_limit_s, memory_limit_mb, decimal_tolerance),
        "livecodebench": GradingProfile(
            "livecodebench", 6.0, no_memory_limit_mb, semantics="official" if semantics == "official" else None
        ),
        "nouscoder": GradingProfile("nouscoder", TIME_LIMIT_S, MEMORY_LIMIT_MB, 1e-4),
    }
    return [known[name] for name in names]
