"""What the user sees of a run: what is started, one row a step, and the result."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import PurePath
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from environments.launch.course import Course
from environments.livecode.records.schema import GroupRecord

# title, width, meaning: one table for the header, the rows and the legend
COLUMNS: list[tuple[str, int, str]] = [
    ("step", 4, "training step; its weights are served under this version"),
    ("reward", 6, "mean reward of all rollouts generated for the step, flat groups included"),
    ("pass@1", 6, "share of these rollouts that passed every test"),
    ("groups", 9, "groups trained / generated; the rest had no signal (all passed or all failed)"),
    ("verdicts", 24, "ok accepted, wa wrong answer, re error, tl time, ml memory, ce syntax, nc no code"),
    ("tokens", 11, "tokens trained / generated"),
    ("tok/s", 5, "generated tokens per second of the whole step"),
    ("clip%", 5, "share of trained tokens outside the clip range"),
    ("|dlogp|", 7, "mean difference of log-probability between sampler and trainer"),
    ("stale", 5, "mean age of the trained groups, in steps"),
    ("generate+judge/train/sync s", 27, "seconds: waiting for rollouts, training, new weights into vLLM"),
]
SHORT = {
    "accepted": "ok",
    "wrong_answer": "wa",
    "runtime_error": "re",
    "time_limit_exceeded": "tl",
    "memory_limit_exceeded": "ml",
    "output_limit_exceeded": "ol",
    "compile_error": "ce",
    "no_code": "nc",
}


class Screen:
    """Prints progress to a terminal, or plain lines to a file."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self._bar: Progress | None = None

    @contextmanager
    def bar(self) -> Iterator[None]:
        """In a terminal, a bar of the whole run below all lines, which `show` moves; within another it is that one."""
        if self._bar is not None:
            yield
            return
        columns = ("  {task.fields[step]}", "{task.percentage:>3.0f} %", "{task.fields[left]}", "{task.description}")
        step, share, left, what = map(TextColumn, columns)
        with Progress(
            step, BarColumn(30), share, TimeElapsedColumn(), left, what,
            console=self.console, transient=True, refresh_per_second=2,
        ) as self._bar:  # fmt: skip
            self._bar.add_task("", total=1.0, step="", left="")
            try:
                yield
            finally:
                self._bar = None

    def show(self, course: Course, step: str = "", what: str | None = None) -> None:
        """Moves the bar to where the run is; what: that is done now, None: as before."""
        if self._bar is None:
            return
        [task] = self._bar.task_ids
        left = left_words(course)
        self._bar.update(task, completed=course.share(), description=what, step=step, left=left, refresh=True)

    @contextmanager
    def stage(self, what: str, since: float | None = None) -> Iterator[None]:
        """A line with a spinner while something starts, then the seconds it took; since: when it began (monotonic)."""
        start = time.monotonic() if since is None else since
        with self.console.status(what) if self._bar is None else nullcontext():
            yield
        self.console.print(f"  {what:<58} {time.monotonic() - start:6.1f} s")

    def say(self, text: str = "") -> None:
        """One plain line."""
        self.console.print(Text(text), soft_wrap=True)

    def header(self) -> None:
        """The titles of the rows to come."""
        self.console.print(Text(" ".join(title.rjust(width) for title, width, _ in COLUMNS), "bold"), soft_wrap=True)

    def legend(self) -> None:
        """What each column means."""
        for title, _, meaning in COLUMNS:
            self.console.print(Text(f"  {title:<28} {meaning}", "dim"), soft_wrap=True)

    def row(self, cells: Sequence[str], note: str = "") -> None:
        """One step, and what is behind it."""
        padded = [cell.rjust(width) for cell, (_, width, _) in zip(cells, COLUMNS, strict=True)]
        self.console.print(Text(" ".join(padded) + note), soft_wrap=True)


def step_cells(trained: Mapping[str, Any], generated: Sequence[GroupRecord]) -> list[str]:
    """The cells of one step's row.

    Args:
        trained: the step's object of metrics.jsonl.
        generated: the groups of environment.jsonl that arrived during the step.
    """
    scores = [score for group in generated for score in group.scores]
    verdicts = Counter(SHORT.get(status, status) for group in generated for status in group.verdicts)
    tokens = sum(sum(group.lengths) for group in generated)
    passed = sum(score > 0 for score in scores)
    clipped = (trained["clip_low_tokens"] or 0.0) + (trained["clip_high_tokens"] or 0.0)
    return [
        str(trained["step"]),
        f"{sum(scores) / len(scores):+.2f}" if scores else "-",
        f"{100 * passed / len(scores):.1f}%" if scores else "-",
        f"{trained['groups']}/{len(generated)}",
        " ".join(f"{name} {count}" for name, count in verdicts.most_common(4)),
        f"{trained['tokens_trained']}/{tokens}",
        f"{tokens / trained['seconds_step']:.0f}",
        f"{100 * clipped:.2f}",
        "-" if trained["mismatch_abs"] is None else f"{trained['mismatch_abs']:.4f}",
        "-" if trained["staleness"] is None else f"{trained['staleness']:.1f}",
        f"{trained['seconds_wait']:.1f}/{trained['seconds_train'] or 0.0:.1f}/{trained['seconds_sync']:.1f}",
    ]


def percent(value: float) -> str:
    """A share as per cent with one digit."""
    return f"{100 * value:.1f} %"


def interval(low: float, high: float) -> str:
    """A 95 % interval in per cent."""
    return f"[{100 * low:.1f}, {100 * high:.1f}]"


def evaluation_title(result: Mapping[str, Any]) -> str:
    """What was evaluated, and how it was sampled."""
    how = "greedy" if result["greedy"] else f"T {result['temperature']:g}, {result['n']} samples"
    name = str(result["set"])
    warmup = name.startswith("warmup:")
    return f"{name.removeprefix('warmup:').replace('_', ' ') if warmup else PurePath(name).name}, {how}"


def rate(result: Mapping[str, Any]) -> str:
    """pass@1 of an evaluation with its interval and counts."""
    low, high = result["ci95"]
    return f"{percent(result['pass_at_1']):>7} {interval(low, high)}  {result['correct']}/{result['total']}"


def duration(seconds: float) -> str:
    """Seconds in words of two digits or three: 45 s, 12 min, 3.4 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def left_words(course: Course) -> str:
    """The time that the rest of a run will take, in words; empty where nothing is known or nothing is left."""
    seconds = course.left_s()
    return f"{duration(seconds)} left" if seconds else ""
