"""What the environments of one run have written, read as if there were one."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from environments.tools.report.values import Row, Rows, lineage, number

OF_ENVIRONMENTS = ("environment", "environment_metrics")
"""Records that each shard has a file of, in its own folder."""


def merged(rows: Rows) -> Rows:
    """Rows of environment_metrics of several shards, one for each step; rows that name no shard are as they were.

    Counts are summed, shares and means are weighted by groups, of the largest values the largest is kept: a percentile
    of all is never above it.
    """
    by_shard: dict[str, Rows] = defaultdict(list)
    for row in rows:
        by_shard[str(row.get("shard"))].append(row)
    if by_shard.keys() <= {"None"}:
        return rows
    steps: dict[float, Rows] = defaultdict(list)
    for own in by_shard.values():
        for row in lineage(own):
            steps[row["step"]].append(row)
    return [_step(steps[step]) for step in sorted(steps)]


def _step(rows: Rows) -> Row:
    names = dict.fromkeys(name for row in rows for name in row)
    weights = [row["groups"] if number(row.get("groups")) else 0 for row in rows]
    return {name: _value(name, [row.get(name) for row in rows], weights) for name in names if name != "shard"}


def _value(name: str, values: Sequence[Any], weights: Sequence[float]) -> Any:
    if name == "step":
        return values[0]
    if name in ("seconds", "p95", "max"):
        return max(filter(number, values), default=None)
    if name in ("dropped", "verdicts", "attempts"):
        return dict(sum((Counter(value) for value in values if isinstance(value, dict)), Counter()))
    if any(isinstance(value, dict) for value in values):
        parts = [value if isinstance(value, dict) else {} for value in values]
        return {key: _value(key, [part.get(key) for part in parts], weights) for key in _keys(parts)}
    combine: Callable[[Sequence[Any], Sequence[float]], Any] = _total if name in _SUMMED else _mean
    return combine(values, weights)


_SUMMED = frozenset(("groups", "sent", "in_flight", "resubmitted_abort", "resubmitted_failure"))


def _keys(parts: Sequence[Row]) -> list[str]:
    return sorted({key for part in parts for key in part})


def _total(values: Sequence[Any], _: Sequence[float]) -> Any:
    return sum(filter(number, values))


def _mean(values: Sequence[Any], weights: Sequence[float]) -> float | None:
    known = [(value, weight) for value, weight in zip(values, weights, strict=True) if number(value)]
    if not known:
        return None
    if not sum(weight for _, weight in known):
        return fmean(value for value, _ in known)
    return round(fmean([value for value, _ in known], [weight for _, weight in known]), 4)
