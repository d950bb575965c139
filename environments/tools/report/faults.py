"""What went wrong in a run, a line each, with the view that shows more of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from environments.livecode.records.schema import GroupRecord
from environments.tools.report.records import RunRecords
from environments.tools.report.values import Row, Rows, number, numbers, plural

FLAT = ("all_pass", "all_fail", "all_overlong", "finished_equal")
"""Reasons of dynamic sampling: the group was judged, and there is nothing to learn from it."""

OURS = {
    "infrastructure": "lost to generation or verification that failed or took too long",
    "judge_fault": "without a verdict because of a fault of the judge",
    "stale": "too old for the trainer when it was done",
    "stopped": "interrupted when the environment ended",
}
"""Reasons to leave a group out that are not the model's doing."""

MUCH_TRUNCATED = 0.2
MUCH_FLAT = 0.5


class Fault(NamedTuple):
    """level: bad or note. view: the fragment of the page's address that shows more."""

    level: str
    text: str
    view: str


def faults(records: RunRecords, damaged: dict[str, int]) -> list[Fault]:
    """Every fault that the records tell of, the worst first; an empty list where all went well."""
    metrics, groups, environment = records.metrics, records.groups, records.environment_metrics
    found = [*restarts(metrics), *_groups(groups), *_steps(metrics), *_generation(environment), *_refused(environment)]
    if lost := sum(numbers(records.evaluations, "no_verdict")):
        found.append(Fault("bad", f"{plural(lost, 'sample')} of evaluations got no verdict", "#evaluations"))
    if damaged:
        files = ", ".join(f"{name} {count}" for name, count in damaged.items())
        found.append(Fault("bad", f"{plural(sum(damaged.values()), 'damaged line')} left out: {files}", "#groups"))
    return sorted(found, key=lambda one: one.level != "bad")


def restarts(metrics: Rows) -> list[Fault]:
    """The trainer began again: steps that are in the file a second time."""
    steps = numbers(metrics, "step")
    back = [(old, new) for old, new in pairwise(steps) if new <= old]
    if not back:
        return []
    again = int(sum(old - new + 1 for old, new in back))
    after = ", ".join(str(int(old)) for old, _ in back[:6]) + (", ..." if len(back) > 6 else "")
    text = f"The trainer began again from a checkpoint after step {after}: {plural(again, 'step')} done again"
    return [Fault("bad", text, "#time")]


def _groups(groups: Sequence[GroupRecord]) -> list[Fault]:
    counts = Counter(group.dropped for group in groups if group.dropped is not None)
    found = [
        Fault("note" if reason == "stopped" else "bad", f"{plural(counts[reason], 'group')} {sentence}", "#groups")
        for reason, sentence in OURS.items()
        if counts[reason]
    ]
    known = {*FLAT, *OURS}
    other = [f"{name.replace('_', ' ')} {count}" for name, count in counts.most_common() if name not in known]
    if other:
        found.append(Fault("bad", f"Groups left out for other reasons: {', '.join(other)}", "#groups"))
    flat = sum(counts[reason] for reason in FLAT)
    if groups and flat > MUCH_FLAT * len(groups):
        text = f"{100 * flat / len(groups):.0f} % of the groups taught nothing: all rollouts passed, or all failed"
        found.append(Fault("note", text, "#groups"))
    return found


def _steps(metrics: Rows) -> list[Fault]:
    sums = (
        ("skipped_batches", "batch", "without an optimizer step", "#curves"),
        ("skipped_optimizer_steps", "optimizer step", "left out for want of a gradient", "#curves"),
        ("groups_left_out", "group", "that could not be trained on", "#groups"),
        ("masked_sequences", "sequence", "masked because sampler and trainer differ too much", "#curves"),
    )
    found = [
        Fault("bad", f"{plural(total, thing)} {what}", view)
        for name, thing, what, view in sums
        if (total := sum(numbers(metrics, name))) > 0
    ]
    if missing := sum(value > 0 for value in numbers(metrics, "servers_missing")):
        text = f"A generation server was gone or hung when weights were published, in {plural(missing, 'step')}"
        found.append(Fault("bad", text, "#time"))
    overlong = numbers(metrics, "overlong")
    if overlong and (mean := sum(overlong) / len(overlong)) > MUCH_TRUNCATED:
        found.append(Fault("note", f"{100 * mean:.0f} % of the trained rollouts were truncated", "#curves"))
    return found


def _refused(environment: Rows) -> list[Fault]:
    """Programs that tried what the sandbox refuses: reward hacking shows here first."""
    tried: Counter[str] = Counter()
    for row in environment:
        kinds = row.get("attempts")
        tried.update({kind: n for kind, n in kinds.items() if number(n)} if isinstance(kinds, dict) else {})
    if not tried:
        return []
    kinds = ", ".join(f"{str(kind).replace('_', ' ')} {count:g}" for kind, count in tried.most_common())
    return [Fault("note", f"Programs made system calls that the sandbox refused: {kinds}", "#rollouts")]


def _generation(environment: Rows) -> list[Fault]:
    total = _counted([row.get("resubmitted_failure") for row in environment])
    return [Fault("bad", f"{plural(total, 'failed request')} to generation, sent again", "#groups")] if total else []


def _counted(totals: list[Any]) -> float:
    """What a counter of a process counted, over all starts: a value below the one before is another start's."""
    total = before = 0.0
    for value in totals:
        if number(value):
            total += value - before if value >= before else value
            before = value
    return total


def as_rows(found: list[Fault]) -> list[Row]:
    """For the page's data."""
    return [fault._asdict() for fault in found]
