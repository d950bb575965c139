"""`atropos watch RUN --terminal`: a run's steps and state in the terminal, over ssh too."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from environments.launch.display import COLUMNS, step_cells
from environments.livecode.records.schema import GroupRecord
from environments.tools.report.collect import under_way
from environments.tools.report.faults import faults
from environments.tools.report.story import settings, time_parts
from environments.tools.report.values import Row, Rows, duration, lineage, number, numbers, plural, share
from environments.tools.watch_records import Watched

EVERY_S = 2.0
RECENT = 10
"""Steps that speed and remaining time are taken from."""
_STYLES = {"running": "bold cyan", "finished": "bold green", "died": "bold red", "stopped": "bold yellow"}
TELLING = (
    *("step", "pass@1", "groups", "tok/s", "generate+judge/train/sync s", "stale", "reward", "verdicts", "tokens"),
    *("|dlogp|", "clip%"),
)
"""Titles of display.COLUMNS, the ones to keep longest first."""
_AROUND = 18  # lines that are no step: state, numbers, faults and their frames


def watch(run: Path, console: Console | None = None) -> None:
    """Shows the run until Ctrl-C; where the output is no terminal, prints it once.

    Raises:
        ConfigError: no run folder.
    """
    screen = console or Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    watched = Watched(run, most_rollouts=0)
    watched.look()
    if not screen.is_terminal:
        screen.print(picture(watched, 20, screen.width))
        return
    try:
        with Live(console=screen, screen=True, auto_refresh=False) as live:
            while True:
                live.update(picture(watched, max(screen.height - _AROUND, 3), screen.width), refresh=True)
                time.sleep(EVERY_S)
                watched.look()
    except KeyboardInterrupt:
        screen.print(picture(watched, 3, screen.width))


def picture(watched: Watched, rows: int, width: int) -> RenderableType:
    """The view: state, progress, numbers of now, the last `rows` steps in `width` characters, faults."""
    records, state = watched.records, watched.state()
    title = Text.assemble((watched.run.resolve().name, "bold"), "  ", (state.text, _STYLES.get(state.kind, "bold")))
    found = faults(records, watched.damaged)
    parts: list[RenderableType] = [title]
    if state.kind == "died" and state.detail:
        parts.append(Text(f"trainer.log ends with: {state.detail}", "red"))
    elif state.kind == "running" and state.detail:
        line = Text(f"trainer.log: {state.detail}", "dim", overflow="ellipsis", no_wrap=True)
        parts.append(line)
    parts += [_progress(watched), _now(watched), _steps(records.metrics, records.groups, rows, width)]
    if found:
        lines = [Text(f"• {one.text}", "red" if one.level == "bad" else "yellow") for one in found[:4]]
        parts.append(Panel(Group(*lines), title="What went wrong", title_align="left", box=box.ROUNDED))
    return Group(*parts)


def remaining_s(metrics: Rows, planned: object) -> float | None:
    """Seconds to the last step at the speed of the last ones; None where that is unknown."""
    rows = [row for row in lineage(metrics)[-RECENT - 1 :] if number(row.get("time"))]
    if not rows or not number(planned):
        return None
    if len(rows) > 1:
        seconds = (rows[-1]["time"] - rows[0]["time"]) / (len(rows) - 1)
    else:
        seconds = rows[0]["seconds_step"] if number(rows[0].get("seconds_step")) else 0.0
    return max(planned - rows[-1]["step"], 0) * seconds if seconds > 0 else None


def _progress(watched: Watched) -> RenderableType:
    metrics, planned = watched.records.metrics, settings(watched.run, "trainer").get("steps")
    last = lineage(metrics)[-1]["step"] if lineage(metrics) else 0
    left = remaining_s(metrics, planned) if watched.state().kind == "running" else None
    words = f"  step {last:.0f}" + (f" of {planned:.0f}" if number(planned) else "")
    words += f", {duration(left)} left" if left else ""
    row = Table.grid()
    row.add_row(ProgressBar(total=planned if number(planned) else 1, completed=last, width=40), Text(words))
    return row


def _now(watched: Watched) -> RenderableType:
    """Throughput, queue, age, servers, memory, and where the time goes: of the last steps."""
    records = watched.records
    recent, env = lineage(records.metrics)[-RECENT:], (records.environment_metrics or [{}])[-1]
    table = Table.grid(padding=(0, 3))
    for pair in _pairs(_values(watched, recent, env) if recent else _before_a_step(watched)):
        table.add_row(*(cell for name, value in pair for cell in (Text(name, "dim"), Text(value))))
    title = f"Last {plural(len(recent), 'step')}" if recent else "Before the first step"
    return Panel(table, title=title, title_align="left", box=box.ROUNDED)


def _before_a_step(watched: Watched) -> list[tuple[str, str]]:
    """What there is to tell while the first batch is generated, and the start model evaluated."""
    groups = watched.records.groups
    trainable = sum(group.dropped is None for group in groups)
    verdicts = [verdict for group in groups for verdict in group.verdicts]
    solved = f"{100 * verdicts.count('accepted') / len(verdicts):.0f} % of {len(verdicts):,}" if verdicts else "-"
    evaluated = under_way(watched.run)
    return [
        ("groups finished", f"{len(groups):,}, with a signal {trainable:,}"),
        ("rollouts solved", solved),
        ("evaluation", f"{plural(evaluated, 'sample')} judged" if evaluated else "-"),
        ("held-out scores", f"{len(watched.records.evaluations):,}"),
    ]


def _values(watched: Watched, recent: Rows, env: Row) -> list[tuple[str, str]]:
    seconds = sum(numbers(recent, "seconds_step"))
    parts = sorted(time_parts(recent), key=lambda part: -part[1])[:3]
    servers = settings(watched.run, "trainer").get("weights")
    known = servers.get("servers") if isinstance(servers, dict) else None
    missing = numbers(recent, "servers_missing")[-1:] or [0.0]
    of = len(known) if isinstance(known, list) else 0
    busy = env.get("slots_busy")
    return [
        ("generated", _rate(_generated_tokens(watched.records.groups, recent), seconds)),
        ("trained", _rate(sum(numbers(recent, "tokens_trained")), seconds)),
        ("slots busy", f"{100 * busy:.0f} %" if share(busy) else "-"),
        ("groups in flight", f"{env['in_flight']:.0f}" if number(env.get("in_flight")) else "-"),
        ("age of the data", _mean(numbers(recent, "staleness"), "{:.1f} steps")),
        ("servers", f"{of - missing[0]:.0f} of {of} at the last sync" if of else "-"),
        ("memory", _mean(numbers(recent[-1:], "peak_memory_gib"), "{:.1f} GiB, fullest rank")),
        (
            "time",
            ", ".join(f"{name.lower()} {100 * part / seconds:.0f} %" for name, part, _ in parts) if seconds else "-",
        ),
    ]


def _generated_tokens(groups: Sequence[GroupRecord], recent: Rows) -> float:
    begun = next((row["time"] - (row.get("seconds_step") or 0) for row in recent if number(row.get("time"))), None)
    if begun is None:
        return 0.0
    return float(sum(sum(group.lengths) for group in groups if group.time is not None and group.time >= begun))


def _rate(tokens: float, seconds: float) -> str:
    return f"{tokens / seconds:,.0f} tokens/s" if seconds and tokens else "-"


def _mean(values: list[float], form: str) -> str:
    return form.format(fmean(values)) if values else "-"


def _pairs(values: Sequence[tuple[str, str]]) -> list[Sequence[tuple[str, str]]]:
    return [values[index : index + 2] for index in range(0, len(values), 2)]


def _steps(metrics: Rows, groups: Sequence[GroupRecord], rows: int, width: int) -> RenderableType:
    """The rows that `atropos demo` and `atropos train` print, of the last steps; what does not fit is left out."""
    steps = lineage(metrics)[-rows - 1 :]
    timed = [row for row in steps if number(row.get("time"))]
    first = [{"time": float("-inf")}, *timed] if len(timed) <= rows else timed
    lines = [_cells(row, groups, before["time"]) for before, row in pairwise(first)]
    shown = _fitting(lines, width)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for index in shown:
        table.add_column(COLUMNS[index][0], justify="right", no_wrap=True)
    for line in lines:
        table.add_row(*(line[index] for index in shown))
    return table


def _cells(row: Row, groups: Sequence[GroupRecord], after: float) -> list[str]:
    """A step's cells; groups count that ended after the step before it."""
    between = [group for group in groups if group.time is not None and after < group.time <= row["time"]]
    try:
        return step_cells(row, between)
    except (KeyError, TypeError, ValueError, ZeroDivisionError, AttributeError):  # a row of another version
        return [str(row["step"]), *["-"] * (len(COLUMNS) - 1)]


def _fitting(lines: list[list[str]], width: int) -> list[int]:
    """The columns that fit, the more telling ones first, in the order of the table."""
    shown: list[int] = []
    for title in TELLING:
        index = next(place for place, column in enumerate(COLUMNS) if column[0] == title)
        width -= max(len(title), *(len(line[index]) for line in lines), 1) + 3
        if width < 0:
            break
        shown.append(index)
    return sorted(shown)
