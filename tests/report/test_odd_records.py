"""Records that say nothing sensible: shown as missing, in bounded time, and never the end of the report."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from environments.common.run_folder import append_line
from environments.tools.report.code import LONGEST_S, tokens
from environments.tools.report.page import write_report

LINES = ["metrics", "environment", "evaluations"]


def shown(run: Path) -> dict[str, Any]:
    """The data of the report's page."""
    text = write_report(run).read_text(encoding="utf-8")
    found = re.findall(r'<script[^>]*type="application/json"[^>]*>(.*?)</script>', text, re.DOTALL)
    parts = [json.loads(one, parse_constant=lambda name: pytest.fail(f"{name} is in the page")) for one in found]
    return {name: value for part in parts for name, value in part.items()}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "rollouts").mkdir()
    return tmp_path


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_is_none_is_missing(run: Path, number: str) -> None:
    line: dict[str, Any] = {
        "problem_id": "p",
        "code": "x",
        "score": "@",
        "length": "@",
        "sample": "@",
        "versions": [["@", 0, 1]],
    }
    line |= {"verdict": {"passed": "@", "total": "@", "failed_test": "@"}, "failing_test": {"wall_s": ["@"]}}
    append_line(run / "rollouts" / "0.jsonl", json.dumps(line).replace('"@"', number))
    append_line(run / "metrics.jsonl", f'{{"step": 1, "reward": {number}, "entropy": 0.5}}')
    scores = {"set": "s", "pass_at_1": "@", "ci95": ["@", "@"], "mean_length": "@", "by": {"difficulty": {"easy": "@"}}}
    append_line(run / "evaluations.jsonl", json.dumps(scores).replace('"@"', number))
    append_line(run / "environment.jsonl", f'{{"weight_version": {number}, "dropped": "all_fail", "verdicts": []}}')
    data = shown(run)
    (rollout,) = data["rollouts"]
    assert {rollout[name] for name in ("score", "length", "sample", "version", "passed", "total", "failed")} == {None}
    assert [chart["title"] for chart in data["curves"]] == ["Entropy"]
    assert data["evaluations"][0]["pass_at_1"] is None
    assert data["evaluations"][0]["ci95"] == [None, None]


ODD = [None, [], {}, "x", "\ud800", [[1]], {"a": [1]}, 10**400, True, [{"a": 1}]]


@pytest.mark.parametrize("number", range(len(ODD)))
def test_a_field_of_another_kind_does_not_end_the_report(run: Path, number: int) -> None:
    value = ODD[number]
    names = ("weight_version", "dropped", "verdicts", "difficulty", "kind", "source", "date")
    append_line(run / "environment.jsonl", json.dumps(dict.fromkeys(names, value)))
    fields = ("problem_id", "status", "score", "length", "versions", "finish_reason", "graded", "verdict", "code",
             "failing_test", "prompt", "completion", "difficulty", "from", "token_ids", "logprobs")  # fmt: skip
    append_line(run / "rollouts" / "0.jsonl", json.dumps(dict.fromkeys(fields, value)))
    (run / "trained_tokens").mkdir()
    trained = ("group_id", "index", "step", "advantage", "ratio", "old", "change", "flags")
    append_line(run / "trained_tokens" / "0.jsonl", json.dumps(dict.fromkeys(trained, value)))
    append_line(run / "metrics.jsonl", json.dumps({"step": value, "reward": value}))
    append_line(
        run / "evaluations.jsonl", json.dumps({"pass_at_1": value, "set": value, "by": value, "profiles": value})
    )
    assert len(shown(run)["rollouts"]) == 1


@pytest.mark.parametrize(
    "piece", [" \n", "\t\n", "\f\n", "\u00a0\n", "\r\n ", " \n\t", "'\\N{", "(", "'''", "f'{", "@a\n "]
)
def test_colouring_any_text_ends_in_time_and_keeps_it(piece: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    clock = time.thread_time

    def noted() -> float:
        seen.append(clock())
        return seen[-1]

    monkeypatch.setattr("environments.tools.report.code.time.thread_time", noted)
    text = (piece * 20_000)[:20_000]
    found = tokens(text)
    assert "".join(part for _, part in found) == text
    assert clock() - seen[0] < 4 * LONGEST_S  # the thread's own time


def test_a_lone_surrogate_is_a_line_like_others(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    for text in ("\ud800", "ä\udfff\u2028", "a\x00b", "plain"):
        append_line(path, json.dumps({"text": text}, ensure_ascii=False))
    assert [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").split("\n")[:-1]] == [
        *("\ud800", "ä\udfff\u2028", "a\x00b", "plain")
    ]
