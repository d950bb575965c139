"""The comparison as tables in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from environments.tools.report.values import Row


def show(found: Row, console: Console) -> None:
    """Prints what `compare` found; a part that has nothing is left out."""
    names = found["names"]
    console.print(Text.assemble("A  ", (names[0], "bold"), "\nB  ", (names[1], "bold")), soft_wrap=True)
    scores = [_score_cells(row) for row in found["scores"]]
    _table(console, "Held-out pass@1, with 95 % intervals over problems", ["set", "A", "B", "B - A, points"], scores)
    speed = [[name, _seconds(one), _seconds(other), _ratio(one, other)] for name, one, other in found["speed"]]
    _table(console, "Seconds of a step", ["phase", "A", "B", "B / A"], speed)
    means = [[f"{name}, {unit}", _short(one), _short(other)] for name, unit, one, other in found["metrics"]]
    _table(console, "Means over the steps that both took", ["metric", "A", "B"], means)
    _table(console, "Options that differ", ["process", "option", "A", "B"], found["settings"])


def verdict(row: Row) -> str:
    """What a difference of scores says: better, worse or unclear; empty where there is none."""
    if row["gain_ci95"] is None:
        return ""
    low, high = row["gain_ci95"]
    return "better" if low > 0 else "worse" if high < 0 else "unclear"


def _score_cells(row: Row) -> list[str]:
    sides = []
    for rate, ends, version in zip(row["rates"], row["intervals"], row["versions"], strict=True):
        spread = f" [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]" if ends else ""
        sides.append(f"{100 * rate:.1f} %{spread}" + ("" if version is None else f", weights {version}"))
    if row["gain"] is None:
        return [row["set"], *sides, row["why"]]
    low, high = row["gain_ci95"]
    return [row["set"], *sides, f"{100 * row['gain']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] {verdict(row)}"]


def _table(console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    if not rows:
        return
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False)
    for place, name in enumerate(columns):
        table.add_column(name, justify="left" if place == 0 else "right" if len(columns) == 3 else "left")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    console.print(table)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"


def _ratio(one: float | None, other: float | None) -> str:
    return f"{other / one:.2f}" if one and other is not None else "-"


def _short(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
