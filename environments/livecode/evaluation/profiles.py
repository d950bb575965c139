"""The rules that programs are graded by in an evaluation: LiveCodeBench's own and those of the recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from environments.livecode.verification.own_limits import NOT_THEIRS, OwnLimits
from verifier_app.judge.default_limits import MEMORY_LIMIT_MB, TIME_LIMIT_S

Name = Literal["run", "livecodebench", "nouscoder"]


@dataclass(frozen=True)
class GradingProfile:
    """Limits of one test, how far two decimal numbers may lie apart (None: they must be equal), and how programs run.

    own_limits: what the problems' own limits count.
    semantics: "official" is LiveCodeBench's grader (official.py of the judge), None a process of its own.
    """

    name: str
    time_limit_s: float
    memory_limit_mb: int
    decimal_tolerance: float | None = None
    semantics: Literal["official"] | None = None
    own_limits: OwnLimits = NOT_THEIRS

    @property
    def limits(self) -> dict[str, Any]:
        """The arguments of judge_request."""
        named = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "name"}
        return {name: value for name, value in named.items() if (name, value) != ("semantics", None)}

    def __str__(self) -> str:
        decimals = "exact decimals" if self.decimal_tolerance is None else f"decimals to {self.decimal_tolerance:g}"
        run = ", official semantics" if self.semantics else ""
        own = [
            f"{factor:g} times a problem's own {what}"
            for factor, what in ((self.own_limits.time, "time"), (self.own_limits.memory, "memory"))
            if factor is not None
        ]
        limits = ", ".join([f"{self.time_limit_s:g} s", f"{self.memory_limit_mb} MB", *own])
        return f"{self.name}: {limits}, {decimals}{run}"


def grading_profiles(
    names: Sequence[Name],
    *,
    time_limit_s: float,
    memory_limit_mb: int,
    own_limits: OwnLimits = NOT_THEIRS,
    decimal_tolerance: float | None = None,
    no_memory_limit_mb: int,
    semantics: Literal["process", "official"] = "process",
) -> list[GradingProfile]:
    """The named profiles in order.

    `livecodebench` is the official grader: 6 s, no memory limit, decimals exact. `nouscoder` is the recipe's: 15 s,
    4 GB, decimals to 1e-4 (in results of calls too, which its own endpoint compares exactly). `run` takes the
    environment's own limits, factors and tolerance.

    Args:
        semantics: how `livecodebench` runs programs; the others run them as processes.
        no_memory_limit_mb: what replaces "no memory limit": a program without any could take the machine down.
    """
    known = {
        "run": GradingProfile("run", time_limit_s, memory_limit_mb, decimal_tolerance, own_limits=own_limits),
        "livecodebench": GradingProfile(
            "livecodebench", 6.0, no_memory_limit_mb, semantics="official" if semantics == "official" else None
        ),
        "nouscoder": GradingProfile("nouscoder", TIME_LIMIT_S, MEMORY_LIMIT_MB, 1e-4),
    }
    return [known[name] for name in names]
