"""Problems: the normal form, LiveCodeBench rows, and what is refused."""

from __future__ import annotations

import base64
import json
import os
import pickle
import zlib
from pathlib import Path

import pytest

from environments.dataset.miniature.make import FILES
from environments.livecode.problems.load import load_problems, save_problems
from environments.livecode.problems.problem import Problem, ProblemError, TestCase
from environments.livecode.verification.judge_requests import judge_request

STDIN = {
    "id": "p1",
    "source": "warmup",
    "kind": "stdin",
    "statement": "Print n.",
    "tests": [{"input": "1\n", "output": "1\n"}],
}
CALL = STDIN | {"id": "p2", "kind": "function", "fn_name": "f", "tests": [{"input": "1\n[2]", "output": "3"}]}


def lcb_row(private: object, **changes: object) -> dict[str, object]:
    return {
        "question_title": "t",
        "question_content": "Add one.",
        "platform": "leetcode",
        "question_id": "lc1",
        "contest_id": "c",
        "contest_date": "2025-01-01T00:00:00",
        "starter_code": "class Solution:\n    def f(self, n):\n        ",
        "difficulty": "easy",
        "public_test_cases": json.dumps([{"input": "1", "output": "2", "testtype": "functional"}]),
        "private_test_cases": private,
        "metadata": json.dumps({"func_name": "f"}),
    } | changes


def packed(value: object) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


def write(tmp_path: Path, *rows: object) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_saved_problems_load_equal(tmp_path: Path) -> None:
    problems = [Problem.model_validate(STDIN), Problem.model_validate(CALL | {"statement": "é\u2028 f"})]
    save_problems(problems, tmp_path / "a.jsonl")
    assert load_problems(tmp_path / "a.jsonl") == problems


def test_private_tests_that_unpack_beyond_reason_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("environments.livecode.problems.livecodebench.MAX_UNPACKED", 1 << 20)
    bomb = base64.b64encode(zlib.compress(b"0" * (1 << 21))).decode()
    with pytest.raises(ProblemError, match=r"rows.jsonl:1: .*private_test_cases.*more than 1048576 bytes unpacked"):
        load_problems(write(tmp_path, lcb_row(bomb)))


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    save_problems([Problem.model_validate(STDIN)], tmp_path / "a.jsonl")
    save_problems(load_problems(tmp_path / "a.jsonl"), tmp_path / "b.jsonl")
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


def test_a_livecodebench_row_becomes_the_normal_form(tmp_path: Path) -> None:
    private = json.dumps([{"input": "5", "output": "6", "testtype": "functional"}])
    (problem,) = load_problems(write(tmp_path, lcb_row(private)))
    assert problem == Problem(
        id="lc1",
        source="livecodebench",
        kind="function",
        fn_name="f",
        statement="Add one.",
        starter_code="class Solution:\n    def f(self, n):\n        ",
        difficulty="easy",
        date="2025-01-01T00:00:00",
        platform="leetcode",
        tests=[TestCase(input="1", output="2"), TestCase(input="5", output="6")],
    )


def test_a_checker_travels_with_its_problem_to_the_judge(tmp_path: Path) -> None:
    checker = {"name": "any_order_lines"}
    (problem,) = load_problems(write(tmp_path, STDIN | {"checker": checker}))
    save_problems([problem], tmp_path / "again.jsonl")
    assert load_problems(tmp_path / "again.jsonl") == [problem]
    request = judge_request(problem, "pass", time_limit_s=1, memory_limit_mb=64)
    assert request["checker"] == checker
    (plain,) = load_problems(write(tmp_path, STDIN))
    assert "checker" not in judge_request(plain, "pass", time_limit_s=1, memory_limit_mb=64)
    save_problems([plain], tmp_path / "again.jsonl")
    assert "checker" not in (tmp_path / "again.jsonl").read_text()


def test_the_official_grader_runs_tests_in_the_problems_order(tmp_path: Path) -> None:
    tests = [{"input": "1", "output": "1"}, {"input": "2", "output": "2"}]
    (problem,) = load_problems(write(tmp_path, STDIN | {"tests": tests}))
    for semantics, order in ((None, [1, 0]), ("official", None)):
        request = judge_request(problem, "pass", time_limit_s=1, memory_limit_mb=64, order=[1, 0], semantics=semantics)
        assert request["order"] == order


def test_packed_private_tests_are_read(tmp_path: Path) -> None:
    private = packed(json.dumps([{"input": "5", "output": "6", "testtype": "functional"}]))
    (problem,) = load_problems(write(tmp_path, lcb_row(private)))
    assert [test.output for test in problem.tests] == ["2", "6"]


class Touch:
    """Unpickled by an ordinary unpickler, this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, int]]:
        return os.open, (str(self.path), os.O_CREAT | os.O_WRONLY)


def test_a_pickle_with_a_callable_is_refused_and_not_run(tmp_path: Path) -> None:
    path = write(tmp_path, lcb_row(packed(Touch(tmp_path / "ran"))))
    with pytest.raises(ProblemError, match=r"problem lc1: private_test_cases: .*refused"):
        load_problems(path)
    assert not (tmp_path / "ran").exists()


def test_a_pickle_of_anything_but_a_string_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProblemError, match="lc1: private_test_cases: the pickle holds a list"):
        load_problems(write(tmp_path, lcb_row(packed([{"input": "1"}]))))


@pytest.mark.parametrize("private", ["not base64!", base64.b64encode(b"no zlib").decode(), "[1,"])
def test_private_tests_that_do_not_decode_are_refused(tmp_path: Path, private: str) -> None:
    with pytest.raises(ProblemError, match="problem lc1: private_test_cases"):
        load_problems(write(tmp_path, lcb_row(private)))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (STDIN | {"tests": []}, r"rows.jsonl:1: problem p1: tests = \[\]"),
        (STDIN | {"kind": "essay"}, "problem p1: kind = 'essay'"),
        (STDIN | {"note": 1}, "problem p1: note = 1"),
        (STDIN | {"fn_name": "f"}, "problem p1: fn_name = 'f' with kind stdin"),
        (STDIN | {"checker": {"name": "magic"}}, "problem p1: .*checker.name: is 'magic'; give"),
        (CALL | {"checker": {"name": "any_order_lines"}}, "problem p2: .*checker.name: is 'any_order_lines'; give"),
        (CALL | {"fn_name": None}, "problem p2: fn_name = None with kind function"),
        (CALL | {"tests": [{"input": "x y", "output": "1"}]}, r"problem p2: tests.0.input = 'x y'"),
        ({"kind": "stdin"}, "problem without id"),
        (lcb_row("[]", public_test_cases="[]"), "problem lc1: .*no tests"),
        (
            lcb_row(json.dumps([{"input": "", "output": "", "testtype": "stdin"}])),
            "problem lc1: testtype = functional, stdin",
        ),
        (lcb_row("[]", metadata="{}"), "problem lc1: fn_name = None"),
        ({"question_id": "lc2"}, "problem lc2: question_content, public_test_cases: missing"),
        ([1], "rows.jsonl:1: holds a list"),
    ],
)
def test_an_unusable_row_is_refused_with_its_place_and_id(tmp_path: Path, row: object, message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        load_problems(write(tmp_path, row))


def test_an_id_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProblemError, match=r"rows.jsonl:2: problem p1: the id is on line 1"):
        load_problems(write(tmp_path, STDIN, STDIN))


def test_a_missing_or_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProblemError, match="cannot be read"):
        load_problems(tmp_path / "none.jsonl")
    with pytest.raises(ProblemError, match="holds no problem"):
        load_problems(write(tmp_path))


def test_livecodebench_rows_load() -> None:
    problems = load_problems(FILES / "test.jsonl")
    assert (len(problems), sum(problem.kind == "stdin" for problem in problems)) == (20, 10)
    assert {len(problem.tests) for problem in problems} == {12}  # the private ones are packed
