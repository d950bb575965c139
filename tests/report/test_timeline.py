"""The time-line: spans by value, lanes that hold no two things at once, and a trace that Perfetto opens."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from typer.testing import CliRunner

from environments.cli import app
from environments.livecode.records.schema import GroupRecord
from environments.tools.report.collect import collect
from environments.tools.report.page import write_report
from environments.tools.report.timeline import timeline, trace
from tests.report.browser import CHROMIUM, browser, emulate
from tests.report.made_run import make_run

STEP = {"step": 4, "time": 1100.0, "seconds_step": 100, "seconds_wait": 50, "seconds_checkpoint": 5,
        "seconds_old_logprobs": 8, "seconds_train": 20, "seconds_sync": 10, "seconds_pause": 2}  # fmt: skip
GROUP = GroupRecord(time=1050.0, seconds=30, seconds_generate=25, problem_id="p", weight_version=3)


def lanes(found: dict[str, Any]) -> dict[tuple[str, str], list[list[Any]]]:
    return {(lane["process"], lane["lane"]): lane["spans"] for lane in found["lanes"]}


def test_a_steps_phases_stand_where_they_happened_and_what_is_not_timed_lies_between() -> None:
    found = timeline([STEP], [replace(GROUP, dropped="all_pass")])
    assert found["begun"] == 1000
    assert lanes(found) == {
        ("Trainer", "step"): [
            [0, 5, "checkpoint", "step 4"], [5, 50, "wait", "step 4"], [62, 8, "old log-probabilities", "step 4"],
            [70, 20, "train", "step 4"], [90, 10, "publish", "step 4"],
        ],
        ("Generation servers", "paused"): [[98, 2, "paused", "for the weights of step 4"]],
        ("Environment", "group 1"): [
            [20, 25, "generate", "p, weights 3, left out: all_pass"],
            [45, 5, "judge", "p, weights 3, left out: all_pass"],
        ],
    }  # fmt: skip


def test_groups_that_overlap_lie_in_lanes_of_their_own_and_no_lane_holds_two_at_once(tmp_path: Path) -> None:
    rows = [replace(GROUP, time=1000.0 + 7 * n, seconds=20 + n % 5) for n in range(60)]
    found = lanes(timeline([], rows))
    assert 3 <= len(found) <= 4
    assert sum(len(spans) for spans in found.values()) == 60
    for spans in found.values():
        assert all(before[0] + before[1] <= after[0] for before, after in pairwise(spans))


def test_rows_without_times_are_left_out_and_none_at_all_is_no_time_line() -> None:
    odd: list[dict[str, Any]] = [{"step": 1}, {"time": "x", "seconds_step": 3}, {"time": 3.0, "seconds_step": -1}, STEP]
    assert len(lanes(timeline(odd, [GroupRecord(seconds=3)]))) == 2
    assert timeline([{"step": 1}], []) == {"begun": 0.0, "lanes": []}


def test_the_newest_are_shown_and_a_trace_has_all() -> None:
    rows = [STEP | {"step": n, "time": 1000.0 + 100 * n} for n in range(5)]
    assert {span[3] for span in timeline(rows, [], 2, 2)["lanes"][0]["spans"]} == {"step 3", "step 4"}
    assert len(timeline(rows, [], None, None)["lanes"][1]["spans"]) == 5


def test_a_trace_names_its_processes_and_counts_in_microseconds() -> None:
    events = trace(timeline([STEP], [GROUP]))["traceEvents"]
    named = [event["args"]["name"] for event in events if event["name"] == "process_name"]
    assert named == ["Trainer", "Generation servers", "Environment"]
    (train,) = [event for event in events if event["name"] == "train"]
    assert (train["ph"], train["ts"], train["dur"], train["pid"], train["args"]) == (
        *("X", 70_000_000, 20_000_000, 1), {"of": "step 4"},
    )  # fmt: skip
    assert all(event["ph"] in ("X", "M") for event in events)


def test_the_command_writes_the_trace_and_says_what_it_cannot(tmp_path: Path) -> None:
    run, out = make_run(tmp_path / "mine", steps=5), tmp_path / "trace.json"
    assert CliRunner().invoke(app, ["report", str(run), "--trace", str(out)]).exit_code == 0
    assert len([event for event in json.loads(out.read_text())["traceEvents"] if event["name"] == "generate"]) == 30
    result = CliRunner().invoke(app, ["report", str(run), "--trace", str(tmp_path / "absent" / "trace.json")])
    assert result.exit_code == 2


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: the page was not opened")
def test_a_reader_moves_along_the_time_line_and_takes_its_trace(tmp_path: Path) -> None:
    run = make_run(tmp_path / "mine", steps=12)
    expected = trace(collect(run, 0)["timeline"])
    with browser(tmp_path / "profile") as page:
        emulate(page, 1400)
        page.open(write_report(run))
        page.run("document.querySelector('[data-name=time]').click()")
        span = "(({ min, max }) => [min, max])([...drawn.values()].at(-1).scales.x)"
        low, high = page.run(span)
        page.run("document.querySelector('[data-key=\"time Closer\"]').click()")
        assert page.run(span) == pytest.approx([low + (high - low) / 4, high - (high - low) / 4])
        page.run("document.querySelector('[data-key=\"time All\"]').click()")
        assert page.run(span)[0] == 0
        box = page.run("(({ x, y, width }) => [x, y, width])([...drawn.values()].at(-1).over.getBoundingClientRect())")
        said = set()
        for part in range(1, 20):
            page.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0] + part * box[2] / 20, y=box[1] + 8)
            said.add(page.run("document.querySelector('.told').textContent"))
        assert any(text.startswith("Trainer: wait, ") for text in said)
        assert json.loads(page.run("JSON.stringify(trace())")) == expected
        assert page.complaints == []
