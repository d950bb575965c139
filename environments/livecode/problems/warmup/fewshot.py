"""Worked turns before the question, for a model too small to follow the standard prompt alone."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from environments.livecode.problems.problem import Problem
from environments.livecode.problems.warmup.reference import call_statement, stdin_statement
from environments.livecode.problems.warmup.template import FunctionCall, Value


class FewshotTurn(BaseModel):
    """A question and its answer as the model should give it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["stdin", "function"] = Field(description="The kind of problem that the turn shows.")
    question: str = Field(description="The statement with its sample, as a problem's statement.")
    starter_code: str = Field(default="", description="Code that the answer starts from; empty for stdin.")
    answer: str = Field(description="The assistant's whole turn: one fenced program.")


def _fence(code: str) -> str:
    return f"```python\n{code}\n```"


def _stdin(sentence: str, given: str, wanted: str, code: str) -> FewshotTurn:
    return FewshotTurn(kind="stdin", question=stdin_statement(sentence, given, wanted), answer=_fence(code))


def _call(sentence: str, call: FunctionCall, values: tuple[Value, ...], result: str, body: str) -> FewshotTurn:
    return FewshotTurn(
        kind="function",
        question=call_statement(sentence, call.signature, values, result),
        starter_code=call.starter_code,
        answer=_fence(call.starter_code + body),
    )


# One turn for each way of reading, the most typical first: the model reads every stdin like a turn it saw.
FEWSHOT = (
    _stdin("Read an integer n and print n * (n + 1).", "4", "20", "n = int(input())\nprint(n * (n + 1))"),
    _stdin("Read a word s and print s[0] + s.", "moon", "mmoon", "s = input()\nprint(s[0] + s)"),
    _stdin(
        "Read one line of integers as a list v and print v[0] + v[-1].",
        "5 8 2",
        "7",
        "v = list(map(int, input().split()))\nprint(v[0] + v[-1])",
    ),
    _stdin(
        "Read two integers a and b from one line and print a * a + b.",
        "3 4",
        "13",
        "a, b = map(int, input().split())\nprint(a * a + b)",
    ),
    _call(
        "Given two integers a and b, return 2 * a - b.",
        FunctionCall("combine", "a: int, b: int", "int"),
        (4, 3),
        "5",
        "return 2 * a - b",
    ),
    _call(
        "Given a string s, return s[0] + s.",
        FunctionCall("stutter", "s: str", "str"),
        ("moon",),
        '"mmoon"',
        "return s[0] + s",
    ),
)


def turns_for(problem: Problem, count: int = 4) -> list[FewshotTurn]:
    """At most `count` turns, of the problem's own kind first of all; the most typical one comes last.

    The turn before the question weighs most. Turns of the other kind, where they are needed to fill up to
    `count`, come first.
    """
    own = [turn for turn in FEWSHOT if turn.kind == problem.kind]
    other = [turn for turn in FEWSHOT if turn.kind != problem.kind]
    return (own + other)[:count][::-1]
