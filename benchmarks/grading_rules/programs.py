"""Programs with their tests, and what our sandbox sees of each."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.grading_rules.examples import EXAMPLES
from benchmarks.grading_rules.table import RULES, UNREADABLE, TestRun
from environments.livecode.problems.load import load_problems
from verifier_app.judge import Judge
from verifier_app.judge.default_limits import MEMORY_LIMIT_MB
from verifier_app.judge.protocol import MAX_KEPT_OUTPUT, JudgeError
from verifier_app.judge.verdict import Verdict

ROOT = Path(__file__).parents[2]
OTHERS_MEMORY_MB = 5120
"""The publisher's limit; the others set none or a larger one, and get this, so that nothing exhausts the machine."""
ATTEMPTS = 4
"""Of a program that waited for a core too long."""
TIME_LIMIT_S, DEADLINE_S = 2.0, 5.0
"""Of a test and of all tests of a program of a file. The programs at hand need milliseconds or never end, and the first
test over its time settles it for every grader."""
_EXITS = ("exit", "quit", "SystemExit")
_EXIT_STATUS = """
import os as _os, sys as _sys
_status = 0
try:
    exec(compile({source!r}, "program.py", "exec"), globals())
except SystemExit as _exit:
    _status = _exit.code if isinstance(_exit.code, int) else 0 if _exit.code is None else 1
_sys.stdout.flush()
_os._exit(_status & 255)
"""
"""Runs a program so that its exit status is one: the judge's runner takes every SystemExit for a good end."""


@dataclass(frozen=True)
class Program:
    """A program to be graded. right: whether it should get the reward. fields: of the judge's request."""

    group: str
    name: str
    code: str
    tests: list[dict[str, str]]
    right: bool
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def call(self) -> bool:
        """Whether it answers calls."""
        return self.fields.get("fn_name") is not None


def of_examples() -> Iterator[Program]:
    """Those of the table of differences."""
    for one in EXAMPLES:
        yield Program("examples", one.kind, one.program, [one.test], one.right, one.fields)


def of_the_suite() -> Iterator[Program]:
    """tests/adversarial: attacks on the judge, and odd programs that are right."""
    sys.path.insert(0, str(ROOT / "tests"))
    from adversarial.test_programs import PROGRAMS

    for case in PROGRAMS:
        right = "accepted" in case.statuses
        yield Program("honest" if right else "attacks", case.name, case.code, case.tests, right, dict(case.fields))


def of_problems(problems: Path, solutions: Path) -> Iterator[Program]:
    """Programs for problems of a file.

    Args:
        solutions: one JSON object a line: question_id, correct (sources), wrong (objects with code).
    """
    known = {problem.id: problem for problem in load_problems(problems)}
    for line in solutions.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        problem = known[row["question_id"]]
        tests = [{"input": test.input, "output": test.output} for test in problem.tests]
        fields = {"fn_name": problem.fn_name, "time_limit_s": TIME_LIMIT_S, "deadline_s": DEADLINE_S}
        sources = [(code, True) for code in row["correct"]] + [(one["code"], False) for one in row["wrong"]]
        for number, (code, right) in enumerate(sources):
            group = "right programs" if right else "wrong programs"
            yield Program(group, f"{problem.id}/{number}", code, tests, right, fields)


def printed_answers(problems: Path) -> list[list[str]]:
    """The expected outputs of each problem that is answered on standard output."""
    return [[test.output for test in one.tests] for one in load_problems(problems) if one.fn_name is None]


def verdicts(judge: Judge, program: Program) -> dict[str, bool | None]:
    """Whether each grader gives the program the whole reward, by name; None: the grader has no such problems."""
    return {name: None if reward is None else reward == 1 for name, reward in rewards(judge, program).items()}


def rewards(judge: Judge, program: Program) -> dict[str, float | None]:
    """The reward by each grader, from 0 to 1."""
    memory = {"memory_limit_mb": program.fields.get("memory_limit_mb", OTHERS_MEMORY_MB)}
    ours = _verify(judge, program, {})
    official = _verify(judge, program, {**memory, "semantics": "official"})
    others = ours
    if any(test["status"] == "memory_limit_exceeded" for test in ours["tests"]) and memory["memory_limit_mb"] > (
        program.fields.get("memory_limit_mb", MEMORY_LIMIT_MB)
    ):
        others = _verify(judge, program, memory)
    runs = test_runs(judge, program, others)
    found: dict[str, float | None] = {rule.name: rule.reward(runs, program.call) for rule in RULES}
    if others["status"] == "compile_error":
        found = {name: None if reward is None else 0.0 for name, reward in found.items()}
    of_the_judge = {"ours": ours, "livecodebench": official}
    return {name: float(verdict["status"] == "accepted") for name, verdict in of_the_judge.items()} | found


def _verify(judge: Judge, program: Program, fields: dict[str, Any]) -> Verdict:
    return _asked(judge, {"code": program.code, "tests": program.tests, **program.fields, **fields})


def _asked(judge: Judge, request: dict[str, Any]) -> Verdict:
    for attempt in range(ATTEMPTS):
        try:
            return judge.verify({**request, "stop_at_first_failure": False, "keep_output_bytes": MAX_KEPT_OUTPUT})
        except JudgeError as error:
            if error.kind != "host_overloaded" or attempt == ATTEMPTS - 1:
                raise
    raise AssertionError


def test_runs(judge: Judge, program: Program, verdict: Verdict) -> list[TestRun]:
    """The tests of a verdict as the rules read them.

    Of an answer longer than the judge keeps only its verdict is known: an accepted one stands as the expected text.
    """
    left = _exit_statuses(judge, program) if not program.call and any(word in program.code for word in _EXITS) else {}
    runs = []
    for result in verdict["tests"]:
        test, output = program.tests[result["index"]], result.get("output", "")
        if len(output) >= MAX_KEPT_OUTPUT // 4 and result["status"] == "accepted":
            output = test["output"]
        run = TestRun(
            test["input"], test["output"], result["status"], output,
            value=_value(output) if program.call else None,
            expected_value=json.loads(test["output"]) if program.call else None,
            exit_status=left.get(result["index"], False), cpu_s=result["cpu_s"],
        )  # fmt: skip
        runs.append(run)
    left_out = program.tests[len(runs) :]  # after the deadline
    return runs + [TestRun(test["input"], test["output"], "time_limit_exceeded") for test in left_out]


def _exit_statuses(judge: Judge, program: Program) -> dict[int, bool]:
    code = _EXIT_STATUS.format(source=program.code)
    verdict = _asked(judge, {"code": code, "tests": program.tests, **program.fields})
    return {test["index"]: test["status"] == "runtime_error" for test in verdict["tests"]}


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return UNREADABLE
