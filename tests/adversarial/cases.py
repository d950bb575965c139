"""The form of a case, and the test sets that the programs run against."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field
from typing import Any

# the answer cannot be computed from the input: only a program that reaches the judge's side prints it
SECRET = "e5b1c6a07f3d9284"
SECRET_TESTS = [{"input": "7\n", "output": f"{SECRET}\n"}]
SECRET_CALL = [{"input": "7", "output": f'["{SECRET}"]'}]
SUM_TESTS = [{"input": "1 2\n", "output": "3\n"}, {"input": "5 6\n", "output": "11\n"}]
SUM_CALL = [{"input": "[1, 2]", "output": "3"}, {"input": "[5, 6]", "output": "11"}]
EMPTY_TESTS = [{"input": "1 2\n", "output": ""}]
ANSWER = "print(sum(map(int, input().split())))\n"


@dataclass(frozen=True)
class Case:
    """One program. `statuses`: the verdicts it may get; "accepted" for an odd but correct one."""

    name: str
    code: str
    statuses: frozenset[str]
    tests: list[dict[str, str]]
    fields: dict[str, Any] = field(default_factory=dict)


def attack(name: str, code: str, tests: list[dict[str, str]] | None = None, *statuses: str, **fields: Any) -> Case:
    """A program that must not be accepted; by default any other verdict will do."""
    failures = (
        "wrong_answer time_limit_exceeded memory_limit_exceeded runtime_error compile_error output_limit_exceeded"
    )
    return Case(
        name,
        textwrap.dedent(code),
        frozenset(statuses or failures.split()),
        tests or SECRET_TESTS,
        {"time_limit_s": 2, **fields},
    )


def honest(name: str, code: str, tests: list[dict[str, str]] | None = None, **fields: Any) -> Case:
    """A correct program that careless judges reject."""
    return Case(
        name, textwrap.dedent(code), frozenset({"accepted"}), tests or SUM_TESTS, {"time_limit_s": 10, **fields}
    )
