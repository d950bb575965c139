"""Limits of a problem's own, from the source's row to the judge; and limits held against what programs take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from environments.dataset.calibrate import Calibration, read_programs
from environments.dataset.cli import app
from environments.dataset.rows import limits
from environments.livecode.config import LivecodeEnvConfig
from environments.livecode.evaluation.profiles import grading_profiles
from environments.livecode.problems.load import load_problems, save_problems
from environments.livecode.problems.problem import Problem, ProblemError, TestCase
from environments.livecode.problems.stored_tests import SCHEMA, write_rows
from environments.livecode.verification.judge_requests import check_deadlines, judge_request, judging_s
from environments.livecode.verification.own_limits import NOT_THEIRS, OwnLimits

SPIN = "import time\nwhile time.process_time() < {seconds}: pass\nprint(input())"


def problem(name: str = "p", **fields: Any) -> Problem:
    cases = [TestCase(input=f"{number}\n", output=f"{number}\n") for number in range(2)]
    return Problem(id=name, source="t", kind="stdin", statement="Print the number.", tests=cases, **fields)


@pytest.mark.parametrize(
    ("row", "seconds", "megabytes"),
    [
        ({"time_limit": "2.0 seconds", "memory_limit": "256.0 megabytes"}, 2.0, 256.0),
        ({"time_limit": "1 second", "memory_limit": "64 MB"}, 1.0, 64.0),
        ({"time_limit": 2.5, "memory_limit": 512}, 2.5, 512.0),
        ({"time_limit": "1500 ms", "memory_limit": "1 GB"}, 1.5, 1024.0),
        ({"time_limit": {"seconds": 3, "nanos": 500_000_000}, "memory_limit_bytes": 256 << 20}, 3.5, 256.0),
        ({"time_limit": ".5 seconds.", "memory_limit": "65536 KB"}, 0.5, 64.0),
        ({"time_limit": None, "memory_limit": ""}, None, None),
        ({"time_limit": "extended", "memory_limit": "256 bananas"}, None, None),
        ({"time_limit": 0, "memory_limit": -1}, None, None),
        ({"time_limit": True, "memory_limit": float("nan")}, None, None),
        ({"time_limit": float("inf"), "memory_limit": [256]}, None, None),
        ({}, None, None),
    ],
)
def test_a_sources_spelling_of_a_limit_is_read_or_counts_as_unstated(
    row: dict[str, Any], seconds: float | None, megabytes: float | None
) -> None:
    assert limits(row) == (seconds, megabytes)


@pytest.mark.parametrize(
    ("own", "stated", "wanted"),
    [
        (NOT_THEIRS, {"time_limit_s": 2.0, "memory_limit_mb": 256.0}, (15.0, 4096)),  # the recipe's, whatever is stated
        (OwnLimits(time=5.0), {"time_limit_s": 2.0, "memory_limit_mb": 256.0}, (10.0, 4096)),
        (OwnLimits(memory=2.0), {"time_limit_s": 2.0, "memory_limit_mb": 256.5}, (15.0, 513)),
        (OwnLimits(5.0, 2.0), {"time_limit_s": 10.0, "memory_limit_mb": 16.0}, (50.0, 256)),
        (OwnLimits(5.0, 2.0), {}, (15.0, 4096)),
        (OwnLimits(time=5.0), {"time_limit_s": 1e9}, (3600.0, 4096)),
    ],
)
def test_a_problems_own_limits_reach_the_judge_by_their_factors(
    own: OwnLimits, stated: dict[str, Any], wanted: tuple[float, int]
) -> None:
    request = judge_request(problem(**stated), "", time_limit_s=15.0, memory_limit_mb=4096, own_limits=own)
    assert (request["time_limit_s"], request["memory_limit_mb"]) == wanted
    assert request["deadline_s"] == judging_s(2, wanted[0])


def test_a_deadline_that_a_problems_own_limit_exceeds_is_refused_before_work() -> None:
    fields: dict[str, Any] = {"verifier": "http", "verifier_urls": ["http://127.0.0.1:1"], "verifier_deadline_s": 100.0}
    problems = [problem(), problem("long", time_limit_s=20.0)]
    check_deadlines(LivecodeEnvConfig(**fields), problems, None)
    with pytest.raises(ProblemError.__bases__[0], match=r"problem long has 2 tests of 60 s \(env.own_time_factor\)"):
        check_deadlines(LivecodeEnvConfig(**fields, own_time_factor=3), problems, None)


def test_an_evaluation_names_the_factors_it_grades_by() -> None:
    run, publisher = grading_profiles(
        ["run", "nouscoder"], time_limit_s=15.0, memory_limit_mb=4096, own_limits=OwnLimits(5.0), no_memory_limit_mb=1
    )
    assert str(run) == "run: 15 s, 4096 MB, 5 times a problem's own time, exact decimals"
    assert run.limits["own_limits"] == OwnLimits(5.0)
    assert publisher.limits["own_limits"] == NOT_THEIRS


def test_limits_and_checker_survive_both_forms_of_a_split(tmp_path: Path) -> None:
    checker = {"name": "floats", "tolerance": 1e-6}
    stated = problem("stated", time_limit_s=2.0, memory_limit_mb=256.0, checker=checker)
    save_problems([stated, problem("silent")], tmp_path / "problems.jsonl")
    assert load_problems(tmp_path / "problems.jsonl") == [stated, problem("silent")]
    assert "time_limit_s" not in (tmp_path / "problems.jsonl").read_text().splitlines()[1]  # as earlier versions wrote
    rows = [
        dict.fromkeys(SCHEMA.names)
        | one.model_dump(exclude={"tests", "template"})
        | {"tests_sha256": "0" * 64, "tests_count": 2, "tests_bytes": 1}
        for one in (stated, problem("silent"))
    ]
    write_rows(tmp_path / "train" / "problems.parquet", rows)
    first, second = load_problems(tmp_path / "train")
    assert (first.time_limit_s, first.memory_limit_mb, first.checker) == (2.0, 256.0, checker)
    assert (second.time_limit_s, second.memory_limit_mb, second.checker) == (None, None, None)


def test_a_split_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = {"id": "old", "source": "t", "kind": "stdin", "statement": "s", "starter_code": "", "tests_sha256": "0" * 64}
    names = SCHEMA.names[:12]
    (tmp_path / "train").mkdir()
    table = pa.Table.from_pylist([{name: row.get(name) for name in names}], pa.schema(list(SCHEMA)[:12]))
    pq.write_table(table, tmp_path / "train" / "problems.parquet")
    (old,) = load_problems(tmp_path / "train")
    assert (old.id, old.time_limit_s, old.checker) == ("old", None, None)


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (Calibration("p", 15.0, 1, 1, 4.9), []),
        (Calibration("p", 15.0, 1, 1, 5.1), ["2.9 times"]),
        (Calibration("p", 1.0, 1, 1, 1.5), ["0.7 times"]),
        (Calibration("p", 15.0, 2, 0, None), ["none of 2 known solutions"]),
        (Calibration("p", 15.0, 0, 0, None), []),
        (Calibration("p", 15.0, 1, 1, 0.1, (14.0, 2.0)), ["2 programs that should be too slow pass"]),
    ],
)
def test_what_a_calibration_complains_of(one: Calibration, said: list[str]) -> None:
    assert len(one.complaints) == len(said)
    assert all(part in complaint for part, complaint in zip(said, one.complaints, strict=True))


def test_the_command_finds_near_limits_and_brute_force_that_passes(tmp_path: Path) -> None:
    split = tmp_path / "data" / "train.jsonl"
    (tmp_path / "parts").mkdir()
    split.parent.mkdir()
    # CPU seconds by the program's own clock: a slow machine changes none of these verdicts.
    known = {"near": SPIN.format(seconds=0.5), "far": SPIN.format(seconds=0), "wrong": "print(-1)"}
    save_problems([problem(name, time_limit_s=1.0) for name in ("near", "far", "wrong", "unknown")], split)
    rows = [{"id": name, "solutions": [code]} for name, code in known.items()]
    (tmp_path / "parts" / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    slow = tmp_path / "slow.jsonl"
    brute = [{"problem_id": "far", "code": SPIN.format(seconds=seconds)} for seconds in (0.2, 30)]
    slow.write_text("".join(json.dumps(row) + "\n" for row in brute))
    result = CliRunner().invoke(app, ["calibrate", str(split), "--slow", str(slow), "--time-factor", "1"])
    assert result.exit_code == 0, result.output
    found = {
        row["problem_id"]: row for row in map(json.loads, (split.parent / "calibration.jsonl").read_text().splitlines())
    }
    assert list(found) == ["near", "far", "wrong"]
    assert found["near"]["slowest_s"] >= 0.5
    assert (found["wrong"]["right"], found["wrong"]["slowest_s"]) == (0, None)
    assert len(found["far"]["slow_s"]) == 1  # the one of 30 s was refused
    assert "near: its slowest right solution takes" in result.stdout
    assert "far: 1 programs that should be too slow pass" in result.stdout
    assert "3 of 3 problems are to be looked at" in result.stdout


@pytest.mark.parametrize("line", ["{", "[]", '{"problem_id": 1, "code": ""}', '{"problem_id": "p"}'])
def test_a_line_that_is_no_program_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "slow.jsonl"
    path.write_text('{"problem_id": "p", "code": "pass"}\n' + line + "\n")
    with pytest.raises(ProblemError, match=r"slow\.jsonl:2: need"):
        read_programs(path)
