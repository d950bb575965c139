"""Values of a run's records, of which none is sure to be what it should be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeGuard

Row = dict[str, Any]
Rows = list[Row]


def number(value: Any) -> TypeGuard[float]:
    """Whether it is a finite number that a chart can show; true and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value and abs(value) < 1e300


def numbers(rows: Iterable[Row], name: str) -> list[float]:
    """The numbers under a name."""
    return [value for row in rows if number(value := row.get(name))]


def text(value: Any) -> str | None:
    """The text where it is one that is not empty."""
    return value if isinstance(value, str) and value else None


def share(value: Any) -> TypeGuard[float]:
    """Whether it is a number from 0 to 1."""
    return number(value) and 0 <= value <= 1


def interval(value: Any) -> list[float] | None:
    """The two ends of an interval of shares, the lower first."""
    if isinstance(value, Sequence) and len(value) == 2 and all(share(end) for end in value):
        return sorted(value)
    return None


def lineage(metrics: Rows) -> Rows:
    """The row of each step that the last weights descend from, in order of steps.

    After a death the trainer goes back to a checkpoint, and its steps from there are in the file a second time.
    """
    last: dict[float, Row] = {row["step"]: row for row in metrics if number(row.get("step"))}
    return [last[step] for step in sorted(last)]


def plural(count: float, thing: str) -> str:
    """`1 group`, `2 groups`, `3,000 batches`."""
    if count == 1:
        return f"1 {thing}"
    return f"{count:,.0f} {thing}{'es' if thing.endswith(('ch', 's', 'x')) else 's'}"


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.4 h`, `2.1 days`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} days"
