"""What each process did when, as lanes of spans; also as a trace for Perfetto (ui.perfetto.dev) and chrome://tracing."""

from __future__ import annotations

import heapq
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from environments.common.settings import ConfigError
from environments.livecode.records.schema import GroupRecord
from environments.tools.report.records import RunRecords
from environments.tools.report.values import Row, Rows, number

STEPS, GROUPS = 300, 1500
"""The newest ones, which the page shows; a trace has them all."""
BEFORE = (("seconds_checkpoint", "checkpoint"), ("seconds_wait", "wait"), ("seconds_alignment", "alignment"))
"""Phases from a step's beginning on."""
AFTER = (("seconds_sync", "publish"), ("seconds_train", "train"), ("seconds_old_logprobs", "old log-probabilities"))
"""Phases back from its end. What is not timed, such as packing, lies between both."""


class Span(NamedTuple):
    """One thing that a process did. start, seconds: of the clock, since 1970."""

    start: float
    seconds: float
    what: str
    label: str


def timeline(
    metrics: Rows, groups: Sequence[GroupRecord], steps: int | None = STEPS, most_groups: int | None = GROUPS
) -> Row:
    """{begun, lanes: [{process, lane, spans: [[seconds after begun, seconds, what, label], ...]}]}; no lanes: no times.

    Args:
        metrics: rows in the order of the file; a step that was done again is there twice, as it happened.
        groups: those of environment.jsonl.
        steps, most_groups: how many of the newest are shown; None: all.
    """
    timed = [row for row in metrics if _since(row)][-steps if steps else None :]
    ended = [(*when, one) for one in groups if (when := _ended(one))][-most_groups if most_groups else None :]
    lanes = [
        ("Trainer", "step", [span for row in timed for span in _step(row)]),
        ("Generation servers", "paused", [span for row in timed for span in _pause(row)]),
        *(("Environment", f"group {number + 1}", spans) for number, spans in enumerate(_beside(ended))),
    ]
    lanes = [lane for lane in lanes if lane[2]]
    begun = min((span.start for _, _, spans in lanes for span in spans), default=0.0)
    return {
        "begun": begun,
        "lanes": [
            {
                "process": process,
                "lane": lane,
                "spans": [
                    [round(one.start - begun, 3), round(one.seconds, 3), one.what, one.label] for one in sorted(spans)
                ],
            }
            for process, lane, spans in lanes
        ],
    }


def trace(lines: Row) -> Row:
    """A timeline as the JSON of Chrome's trace events: times in microseconds, a process for each of ours."""
    events: list[Row] = []
    processes = list(dict.fromkeys(lane["process"] for lane in lines["lanes"]))
    for place, name in enumerate(processes, 1):
        events.append({"name": "process_name", "ph": "M", "pid": place, "tid": 0, "args": {"name": name}})
    for thread, lane in enumerate(lines["lanes"], 1):
        own = {"pid": processes.index(lane["process"]) + 1, "tid": thread}
        events.append({"name": "thread_name", "ph": "M", **own, "args": {"name": lane["lane"]}})
        for start, seconds, what, label in lane["spans"]:
            times = {"ts": round(start * 1e6), "dur": round(seconds * 1e6)}
            events.append({"name": what, "cat": lane["process"], "ph": "X", **times, **own, "args": {"of": label}})
    return {"displayTimeUnit": "ms", "otherData": {"begun": lines["begun"]}, "traceEvents": events}


def write_trace(records: RunRecords, path: Path) -> None:
    """Writes the trace of a whole run.

    Raises:
        ConfigError: a file that cannot be written, or records without times.
    """
    lines = timeline(records.metrics, records.groups, None, None)
    if not lines["lanes"]:
        raise ConfigError(f"--trace {path}: neither metrics.jsonl nor environment.jsonl holds a time: nothing to draw.")
    try:
        path.write_text(json.dumps(trace(lines)), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--trace {path}: cannot be written ({error.strerror}). Give another file.") from None


def _since(row: Row) -> bool:
    return number(row.get("time")) and number(row.get("seconds_step")) and row["seconds_step"] >= 0


def _ended(group: GroupRecord) -> tuple[float, float] | None:
    """When it ended and how long it took; None where its record does not tell."""
    if group.time is None or group.seconds is None or group.seconds < 0:
        return None
    return group.time, group.seconds


def _step(row: Row) -> Iterator[Span]:
    label = f"step {row['step']:.0f}" if number(row.get("step")) else "step"
    at, end = row["time"] - row["seconds_step"], row["time"]
    for field, what in BEFORE:
        if number(seconds := row.get(field)) and seconds > 0:
            yield Span(at, seconds, what, label)
            at += seconds
    for field, what in AFTER:
        if number(seconds := row.get(field)) and seconds > 0:
            end -= seconds
            yield Span(end, seconds, what, label)


def _pause(row: Row) -> Iterator[Span]:
    if number(seconds := row.get("seconds_pause")) and seconds > 0:
        yield Span(row["time"] - seconds, seconds, "paused", f"for the weights of step {row.get('step')}")


def _group(end: float, whole: float, group: GroupRecord) -> Iterator[Span]:
    """Until the last token is there, and from then until its last verdict: others are judged meanwhile."""
    generated = group.seconds_generate
    tokens = whole if generated is None else min(max(generated, 0.0), whole)
    label = f"{group.problem_id}, weights {group.weight_version}"
    if group.dropped:
        label += f", left out: {group.dropped}"
    if tokens > 0:
        yield Span(end - whole, tokens, "generate", label)
    if whole > tokens:
        yield Span(end - whole + tokens, whole - tokens, "judge", label)


def _beside(ended: Sequence[tuple[float, float, GroupRecord]]) -> list[list[Span]]:
    """The groups' spans in as few lanes as they need not to lie upon each other."""
    lanes: dict[int, list[Span]] = defaultdict(list)
    free: list[tuple[float, int]] = []  # (when its last span ends, lane)
    for end, seconds, group in sorted(ended, key=lambda one: one[0] - one[1]):
        spans = list(_group(end, seconds, group))
        if not spans:
            continue
        lane = heapq.heappop(free)[1] if free and free[0][0] <= spans[0].start else len(lanes)
        lanes[lane] += spans
        heapq.heappush(free, (end, lane))
    return [lanes[lane] for lane in sorted(lanes)]
