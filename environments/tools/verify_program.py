"""`atropos verify FILE --problem ID | --tests FILE`: the verdict of one program as a table a person can read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from environments.common.errors import ConfigError
from environments.livecode.problems.load import load_problems
from environments.livecode.problems.problem import Problem
from verifier_app.judge import Judge, JudgeError
from verifier_app.judge.default_limits import MEMORY_LIMIT_MB, TIME_LIMIT_S
from verifier_app.judge.verdict import Verdict

EXIT_ACCEPTED, EXIT_REJECTED, EXIT_NO_VERDICT = 0, 1, 2
BY_SUFFIX = dict.fromkeys((".cpp", ".cc", ".cxx"), "cpp")
"""Languages of programs by the file's suffix; any other: the judge's default."""
ROWS = 20
CUT = 400


class UsageError(ConfigError):
    """What the user asked for cannot be done: which argument, and what to give instead."""


def find_problem(problems: Path, problem_id: str) -> Problem:
    """The problem with this id. UsageError names near misses."""
    if not problems.is_file():
        raise UsageError(f"--problems {problems}: no such file: give a JSONL file of problems")
    found = load_problems(problems)
    for problem in found:
        if problem.id == problem_id:
            return problem
    near = [problem.id for problem in found if problem_id.lower() in problem.id.lower()][:5]
    hint = f"did you mean {', '.join(near)}?" if near else f"the file holds {len(found)} problems, e.g. {found[0].id}"
    raise UsageError(
        f"--problem {problem_id}: not in {problems}: {hint}" if found else f"--problems {problems}: is empty"
    )


def read_tests(path: Path) -> tuple[list[dict[str, str]], str | None]:
    """(tests, fn_name) from a JSON file: a list of {input, output}, or an object with "tests" and "fn_name".

    LiveCodeBench's own {input, output, testtype} are taken too.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"--tests {path}: {error.strerror}: give a JSON file of tests") from None
    except ValueError as error:
        raise UsageError(f"--tests {path}: is not JSON ({error}): give a list of {{input, output}}") from None
    fn_name = None
    if isinstance(data, dict):
        if "tests" not in data:
            found = ", ".join(map(str, data)) or "nothing"
            fix = 'give a list of {input, output}, or {"tests": [...], "fn_name": ...}'
            if {"inputs", "outputs"} <= set(data):
                fix += ": one object for each pair of inputs and outputs"
            raise UsageError(f"--tests {path}: has no tests, it holds {found}: {fix}")
        data, fn_name = data["tests"], data.get("fn_name")
    return _without_testtype(data), fn_name


def _without_testtype(tests: Any) -> Any:
    """The tests without LiveCodeBench's third key, which says what fn_name says."""
    if not isinstance(tests, list):
        return tests
    return [
        {key: value for key, value in test.items() if key != "testtype"} if isinstance(test, dict) else test
        for test in tests
    ]


def verify_file(
    path: Path,
    problem_id: str | None = None,
    tests: Path | None = None,
    problems: Path | None = None,
    fn_name: str | None = None,
    language: str | None = None,
    time_limit_s: float = TIME_LIMIT_S,
    memory_limit_mb: int = MEMORY_LIMIT_MB,
    all_tests: bool = False,
    require_isolation: str | None = None,
    console: Console | None = None,
) -> int:
    """Judge the program in `path` and print its verdict.

    Exactly one of `problem_id` (looked up in `problems`) and `tests` is given. language None: by the file's suffix.
    Returns 0 only for accepted, 1 for any other verdict, 2 when there is none (bad arguments, or a fault of the judge's
    side).
    """
    console = console or Console()
    try:
        given = _given_tests(problem_id, tests, problems)
        request = {
            "code": _source(path),
            "fn_name": (fn_name if tests else None) or given.fn_name,
            "tests": given.cases,
            "time_limit_s": time_limit_s,
            "memory_limit_mb": memory_limit_mb,
            "stop_at_first_failure": not all_tests,
            "checker": given.checker,
            "language": language or BY_SUFFIX.get(path.suffix),
        }
        with Judge(require_isolation) as judge:
            verdict = judge.verify(request)
    except (UsageError, JudgeError) as error:
        console.print(f"[bold red]no verdict:[/] {escape(str(error))}", soft_wrap=True)
        return EXIT_NO_VERDICT
    show(verdict, given.cases, console)
    return EXIT_ACCEPTED if verdict["status"] == "accepted" else EXIT_REJECTED


class _Tests(NamedTuple):
    cases: list[dict[str, str]]
    fn_name: str | None
    checker: dict[str, Any] | None = None


def _source(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}: give the program's file") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: is not UTF-8 text: give the program's source") from None


def _given_tests(problem_id: str | None, tests: Path | None, problems: Path | None) -> _Tests:
    if (problem_id is None) == (tests is None):
        raise UsageError("give exactly one of --problem ID and --tests FILE")
    if tests is not None:
        return _Tests(*read_tests(tests))
    if problems is None:
        raise UsageError("--problem needs --problems FILE: the JSONL file that holds it")
    problem = find_problem(problems, str(problem_id))
    cases = [{"input": test.input, "output": test.output} for test in problem.tests]
    return _Tests(cases, problem.fn_name, problem.checker)


def show(verdict: Verdict, cases: list[dict[str, str]], console: Console) -> None:
    """The verdict: a line, a table of the tests that ran, the first difference, the layers in force."""
    good = verdict["status"] == "accepted"
    style = "bold green" if good else "bold red"
    console.print(f"[{style}]{verdict['status']}[/]  {verdict['passed']} of {verdict['total']} tests passed")
    rows = verdict["tests"]
    if rows:
        table = Table("test", "status", "wall s", "CPU s", "peak MB")
        shown = rows if len(rows) <= ROWS else rows[: ROWS // 2] + rows[-ROWS // 2 :]
        for row in shown:
            color = "green" if row["status"] == "accepted" else "red"
            times = f"{row['wall_s']:.3f}", f"{row['cpu_s']:.3f}", f"{row['peak_mb']:.0f}"
            table.add_row(str(row["index"]), f"[{color}]{row['status']}[/]", *times)
        console.print(table)
        if len(shown) < len(rows):
            console.print(f"({len(rows) - len(shown)} rows between are not shown)")
    if verdict["message"]:
        console.print(escape(verdict["message"]), soft_wrap=True)
    if verdict["failed_test"] is not None:
        test = cases[verdict["failed_test"]]
        for name in ("input", "output"):
            text = test[name] if len(test[name]) <= CUT else test[name][:CUT] + f"... ({len(test[name])} characters)"
            title = "input" if name == "input" else "expected output"
            console.print(f"[dim]{title} of test {verdict['failed_test']}:[/]\n{escape(text.rstrip())}", soft_wrap=True)
    isolation = verdict["isolation"]
    if isolation:
        line = f"isolation: {isolation['level']} ({', '.join(isolation['layers'])})"
        console.print(f"[dim]{line}[/]", soft_wrap=True)
        for reason in isolation.get("weak", []):
            console.print(f"[yellow]weak:[/] {escape(reason)}", soft_wrap=True)
