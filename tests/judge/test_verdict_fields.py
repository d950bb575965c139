"""A verdict has the fields that its type names, whatever became of the program."""

from __future__ import annotations

from typing import get_type_hints

import pytest

from verifier_app.judge import Judge
from verifier_app.judge.verdict import RanTest, Verdict

TESTS = [{"input": "1", "output": "2"}, {"input": "2", "output": "3"}]


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("print(int(input()) + 1)", "accepted"),
        ("print(2)", "wrong_answer"),
        ("print(", "compile_error"),
        ("raise ValueError", "runtime_error"),
    ],
)
@pytest.mark.parametrize("kept", [0, 100])
def test_a_verdict_has_every_field_of_its_type_and_no_other(code: str, status: str, kept: int) -> None:
    with Judge() as judge:
        verdict = judge.verify({"code": code, "tests": TESTS, "keep_output_bytes": kept})
    assert verdict["status"] == status
    assert verdict.keys() == get_type_hints(Verdict).keys()
    fields = get_type_hints(RanTest).keys() - (set() if kept else {"output"})
    assert [test.keys() for test in verdict["tests"]] == [fields] * verdict["ran"]
