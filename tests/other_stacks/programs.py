"""Forty answers to six problems with the verdict that each must get in every stack, and a problem without verdicts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from environments.livecode.problems.load import save_problems
from environments.livecode.problems.problem import Problem


@dataclass(frozen=True)
class Answer:
    """An answer of a model to the problem of this id, and the judge's word for it."""

    problem: str
    text: str
    status: str


def _problem(name: str, tests: list[tuple[str, str]], **fields: Any) -> Problem:
    kind = "function" if "fn_name" in fields else "stdin"
    return Problem.model_validate(
        {"id": name, "source": "conformance", "kind": kind, "statement": f"Solve {name}.", **fields}
        | {"tests": [{"input": given, "output": wanted} for given, wanted in tests]}
    )


PROBLEMS = [
    _problem("sum", [("1 2\n", "3\n"), ("5 6\n", "11\n")]),
    _problem("echo", [("a b\n", "a b\n"), ("\n", "\n")]),
    _problem("half", [("1\n", "0.5\n"), ("3\n", "1.5\n")]),
    _problem("twice", [("4", "8"), ("0", "0")], fn_name="twice"),
    _problem("order", [("3 1 2", "1\n2\n3\n")], checker={"name": "any_order_lines"}),
    _problem("pair", [("[1, 2]\n3", "[1, 2, 3]")], fn_name="pair"),
]
FAULT = _problem("fault", [("1\n", "1\n")], checker={"code": "raise ValueError('no')"})
"""Its checker fails at the expected answer itself: the judge says that it cannot judge, whatever the program."""

_SUM = "print(sum(map(int, input().split())))"
_AC, _WA, _RE, _CE, _TLE = (
    "accepted", "wrong_answer", "runtime_error", "compile_error", "time_limit_exceeded",
)  # fmt: skip


def _fenced(code: str, before: str = "", after: str = "") -> str:
    return f"{before}```python\n{code}\n```{after}"


ANSWERS = [
    Answer("sum", _fenced(_SUM), _AC),
    Answer("sum", _fenced(_SUM, "Here it is:\n\n", "\nIt adds them."), _AC),
    Answer("sum", _fenced("print(0)", after="\nNo:\n" + _fenced(_SUM)), _AC),
    Answer("sum", _fenced(_SUM, after="\nOr:\n" + _fenced("print(0)")), _WA),
    Answer("sum", f"<think>easy</think>\n{_fenced(_SUM)}", _AC),
    Answer("sum", f"<think>never closed\n{_fenced(_SUM)}", "no_code"),
    Answer("sum", _SUM, "no_code"),
    Answer("sum", "", "no_code"),
    Answer("sum", "I cannot.", "no_code"),
    Answer("sum", f"```\n{_SUM}\n```", _AC),
    Answer("sum", _fenced("print(3)"), _WA),
    Answer("sum", _fenced("print(sum(map(int, input().split())), end=' \\n\\n')"), _AC),
    Answer("sum", _fenced("1 / 0"), _RE),
    Answer("sum", _fenced("import sys; sys.exit(3)"), _WA),
    Answer("sum", _fenced("def f(:"), _CE),
    Answer("sum", _fenced("while True: pass"), _TLE),
    Answer("sum", _fenced("a, b = map(int, input().split())\nprint(a + b)"), _AC),
    Answer("sum", _fenced("import math\nprint(math.fsum(map(int, input().split())))"), _AC),
    Answer("sum", _fenced("raise SystemExit"), _WA),
    Answer("sum", _fenced("import nothing_of_that_name"), _RE),
    Answer("echo", _fenced("print(input())"), _AC),
    Answer("echo", _fenced("import sys; sys.stdout.write(sys.stdin.read())"), _AC),
    Answer("echo", _fenced("print(input().upper())"), _WA),
    Answer("echo", _fenced("print('a b')"), _WA),
    Answer("half", _fenced("print(int(input()) / 2)"), _AC),
    Answer("half", _fenced("print(int(input()) // 2)"), _WA),
    Answer("half", _fenced("print('%.3f' % (int(input()) / 2))"), _AC),
    Answer("twice", _fenced("def twice(x):\n    return 2 * x"), _AC),
    Answer("twice", _fenced("class Solution:\n    def twice(self, x):\n        return 2 * x"), _AC),
    Answer("twice", _fenced("def twice(x):\n    return x"), _WA),
    Answer("twice", _fenced("def other(x):\n    return 2 * x"), _RE),
    Answer("twice", _fenced("def twice(x):\n    print(2 * x)"), _WA),
    Answer("twice", _fenced("def twice(x):\n    return twice(x)"), _RE),
    Answer("order", _fenced("print('\\n'.join(input().split()))"), _AC),
    Answer("order", _fenced("print('\\n'.join(sorted(input().split())))"), _AC),
    Answer("order", _fenced("print('1\\n2')"), _WA),
    Answer("pair", _fenced("def pair(xs, y):\n    return xs + [y]"), _AC),
    Answer("pair", _fenced("def pair(xs, y):\n    return [y] + xs"), _WA),
    Answer("pair", _fenced("def pair(xs):\n    return xs"), _RE),
    Answer("pair", _fenced("def pair(xs, y):\n    return (*xs, y)"), _AC),
]
FAULTY = Answer("fault", _fenced("print(input())"), "no verdict")


def numbered() -> list[tuple[Problem, Answer]]:
    """Each answer with a copy of its problem that has an id of its own; the one without a verdict at the end."""
    by_id = {problem.id: problem for problem in [*PROBLEMS, FAULT]}
    return [
        (
            by_id[one.problem].model_copy(
                update={"id": (name := f"{one.problem}-{index}"), "statement": f"Solve {name}."}
            ),
            one,
        )
        for index, one in enumerate([*ANSWERS, FAULTY])
    ]


def write(folder: Path) -> tuple[Path, Path]:
    """problems.jsonl with one problem for each answer, and answers.json: {id: text}."""
    problems, answers = folder / "problems.jsonl", folder / "answers.json"
    save_problems([problem for problem, _ in numbered()], problems)
    answers.write_text(json.dumps({problem.id: answer.text for problem, answer in numbered()}), encoding="utf-8")
    return problems, answers
