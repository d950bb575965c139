"""`atropos verify` by its function: exit codes, the first difference, errors that name the argument."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from environments.tools.verify_program import verify_file
from tests.support.compiler import needs_compiler

TESTS = [{"input": "2\n", "output": "4\n"}, {"input": "3\n", "output": "9\n"}]
PROBLEM = {
    "id": "square",
    "source": "test",
    "kind": "stdin",
    "statement": "Print the square.",
    "tests": TESTS,
}


def run(folder: Path, code: str | None, **arguments: Any) -> tuple[int, str]:
    """(exit code, what is printed)."""
    program = folder / "program.py"
    if code is not None:
        program.write_text(code, encoding="utf-8")
    (folder / "tests.json").write_text(json.dumps(TESTS), encoding="utf-8")
    (folder / "problems.jsonl").write_text(json.dumps(PROBLEM) + "\n", encoding="utf-8")
    out = io.StringIO()
    return verify_file(program, console=Console(file=out, width=120), **arguments), out.getvalue()


@pytest.fixture
def problem(tmp_path: Path) -> dict[str, Any]:
    return {"problem_id": "square", "problems": tmp_path / "problems.jsonl"}


def test_only_accepted_leaves_with_zero(tmp_path: Path, problem: dict[str, Any]) -> None:
    code, text = run(tmp_path, "print(int(input()) ** 2)", **problem)
    assert code == 0
    assert "accepted  2 of 2 tests passed" in text


@needs_compiler
@pytest.mark.parametrize(("name", "language"), [("square.cpp", None), ("square.cc", None), ("square.txt", "cpp")])
def test_the_files_suffix_or_an_option_names_the_language(
    tmp_path: Path, problem: dict[str, Any], name: str, language: str | None
) -> None:
    run(tmp_path, "", **problem)  # writes the problem's file
    source = '#include <cstdio>\nint main() { int n; scanf("%d", &n); printf("%d", n * n); }'
    (tmp_path / name).write_text(source, encoding="utf-8")
    out = Console(file=io.StringIO())
    assert verify_file(tmp_path / name, language=language, console=out, **problem) == 0


def test_a_failure_shows_its_first_difference(tmp_path: Path, problem: dict[str, Any]) -> None:
    code, text = run(tmp_path, "print(int(input()) * 2)", **problem)
    assert code == 1
    assert "wrong_answer  1 of 2 tests passed" in text
    assert "line 1: got '6', expected '9'" in text
    assert "expected output of test 1" in text


def test_tests_may_come_from_a_file_with_a_function(tmp_path: Path) -> None:
    tests = tmp_path / "call.json"
    tests.write_text(json.dumps({"fn_name": "f", "tests": [{"input": "2", "output": "4"}]}), encoding="utf-8")
    assert run(tmp_path, "def f(n): return n * n", tests=tests)[0] == 0
    assert run(tmp_path, "def f(n): return n", tests=tests)[0] == 1


def test_files_may_begin_with_a_byte_order_mark_and_tests_be_livecodebenchs_own(tmp_path: Path) -> None:
    tests = tmp_path / "own.json"
    rows = [{**test, "testtype": "stdin"} for test in TESTS]
    tests.write_text("\ufeff" + json.dumps(rows), encoding="utf-8")
    assert run(tmp_path, "\ufeffprint(int(input()) ** 2)", tests=tests)[0] == 0
    tests.write_text(json.dumps({"tests": [{"input": "2", "output": "4", "testtype": "functional"}], "fn_name": "f"}))
    assert run(tmp_path, "def f(n): return n * n", tests=tests)[0] == 0


@pytest.mark.parametrize("data", [{"inputs": ["2"], "outputs": ["4"], "fn_name": "f"}, {"cases": []}, {}])
def test_an_object_without_tests_is_said_to_have_none_and_what_it_holds(tmp_path: Path, data: dict[str, Any]) -> None:
    tests = tmp_path / "other.json"
    tests.write_text(json.dumps(data), encoding="utf-8")
    status, text = run(tmp_path, "", tests=tests)
    assert status == 2
    assert "has no tests" in text
    assert ", ".join(data) in text


def test_a_problems_checker_decides(tmp_path: Path) -> None:
    row = {"id": "two", "source": "t", "kind": "stdin", "statement": "Print 1 and 2.",
           "tests": [{"input": "", "output": "1\n2\n"}], "checker": {"name": "any_order_lines"}}  # fmt: skip
    (tmp_path / "own.jsonl").write_text(json.dumps(row))
    assert run(tmp_path, "print(2)\nprint(1)", problem_id="two", problems=tmp_path / "own.jsonl")[0] == 0
    assert run(tmp_path, "print(2)\nprint(2)", problem_id="two", problems=tmp_path / "own.jsonl")[0] == 1


def test_all_tests_run_when_asked_to(tmp_path: Path) -> None:
    _, text = run(tmp_path, "print(0)", tests=tmp_path / "tests.json", all_tests=True)
    assert text.count("wrong_answer") == 3


@pytest.mark.parametrize(
    ("code", "arguments", "words"),
    [
        ("", {}, "exactly one of --problem ID and --tests FILE"),
        ("", {"problem_id": "x"}, "--problem needs --problems FILE"),
        ("", {"problem_id": "squar", "problems": "problems.jsonl"}, "did you mean square?"),
        ("", {"problem_id": "x", "problems": "none.jsonl"}, "no such file"),
        ("", {"tests": "none.json"}, "--tests"),
        ("", {"tests": "program.py"}, "is not JSON"),
        (None, {"tests": "tests.json"}, "program.py: No such file"),
    ],
)
def test_bad_arguments_are_no_verdict(tmp_path: Path, code: str | None, arguments: dict[str, Any], words: str) -> None:
    paths = {key: tmp_path / value if key in ("tests", "problems") else value for key, value in arguments.items()}
    status, text = run(tmp_path, code, **paths)
    assert status == 2
    assert words in text
