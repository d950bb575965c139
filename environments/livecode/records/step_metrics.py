"""What happened between two weight versions, in numbers: one row of environment_metrics.jsonl per step."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from environments.livecode.pipeline import JudgedGroup


@dataclass(frozen=True)
class _Rollout:
    status: str
    overlong: bool
    length: int
    verify_seconds: float
    attempts: tuple[str, ...]  # kinds of calls that the program's sandbox refused


@dataclass(frozen=True)
class _Finished:
    """A group in numbers: the group itself would keep its tokens and texts in memory until the next weights."""

    dropped: str | None
    pass_rate: float
    difficulty: str | None
    source: str | None
    rollouts: list[_Rollout]


def _finished(group: JudgedGroup) -> _Finished:
    rollouts = [
        _Rollout(
            one.status,
            one.overlong,
            one.sample.length,
            one.verify_seconds,
            tuple((one.verdict.get("attempts") if one.verdict else None) or ()),
        )
        for one in group.rollouts
    ]
    return _Finished(group.dropped, group.pass_rate, group.problem.difficulty, group.problem.source, rollouts)


@dataclass
class StepMetrics:
    """Sums over the groups that finished since the last row."""

    max_concurrent: int
    since: float = field(default_factory=time.monotonic)
    finished: list[_Finished] = field(default_factory=list)

    def add(self, group: JudgedGroup) -> None:
        """Counts a finished group, sent or dropped."""
        self.finished.append(_finished(group))

    def row(self, *, step: int, slot_seconds: float, counters: Mapping[str, int]) -> dict[str, Any]:
        """The row, and an empty meter.

        Args:
            step: the weight version that was served meanwhile.
            slot_seconds: time that generation slots were taken, summed over the slots.
            counters: totals of the run that are reported as they are.
        """
        now, groups = time.monotonic(), self.finished
        seconds, self.since, self.finished = now - self.since, now, []
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        lengths: dict[str, list[int]] = defaultdict(list)
        for rollout in rollouts:
            kind = "overlong" if rollout.overlong else "passed" if rollout.status == "accepted" else "failed"
            lengths[kind].append(rollout.length)
        verified = [rollout.verify_seconds for rollout in rollouts if rollout.verify_seconds]
        return {
            "step": step,
            "seconds": round(seconds, 3),
            "groups": len(groups),
            "sent": sum(group.dropped is None for group in groups),
            "dropped": dict(Counter(group.dropped for group in groups if group.dropped)),
            "verdicts": dict(Counter(rollout.status for rollout in rollouts)),
            "attempts": dict(Counter(kind for rollout in rollouts for kind in rollout.attempts)),
            "pass_rate": _rate(groups),
            "pass_rate_by_difficulty": _rates(groups, lambda group: group.difficulty),
            "pass_rate_by_source": _rates(groups, lambda group: group.source),
            "length": {kind: _spread(values) for kind, values in sorted(lengths.items())},
            "overlong_share": round(len(lengths["overlong"]) / len(rollouts), 4) if rollouts else None,
            "verify_seconds": _spread(verified),
            "slots_busy": round(slot_seconds / (seconds * self.max_concurrent), 4) if seconds else None,
            **counters,
        }


def flatten(row: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The row's numbers under one key each, for wandb."""
    flat: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            flat[prefix + name] = value
    return flat


def _rate(groups: list[_Finished]) -> float | None:
    judged = [group for group in groups if group.rollouts]
    return round(fmean(group.pass_rate for group in judged), 4) if judged else None


def _rates(groups: list[_Finished], part: Callable[[_Finished], str | None]) -> dict[str, float | None]:
    by_value: dict[str, list[_Finished]] = defaultdict(list)
    for group in groups:
        by_value[part(group) or "unknown"].append(group)
    return {value: _rate(some) for value, some in sorted(by_value.items())}


def _spread(values: list[int] | list[float]) -> dict[str, float] | None:
    if not values:
        return None
    ordered = sorted(values)
    return {"mean": round(fmean(values), 3), "p95": ordered[int(0.95 * (len(ordered) - 1))], "max": ordered[-1]}
