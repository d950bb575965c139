"""Worked turns before the question, for a model too small to follow the standard prompt alone."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from environments.livecode.problems import Problem
from environments.livecode.warmup.reference import call_statement, stdin_statement
from environments.livecode.warmup.template import Call

_COMBINE = Call("combine", "a: int, b: int", "int")


class FewshotTurn(BaseModel):
    """A question and its answer as the model should give it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["stdin", "function"] = Field(description="The kind of problem that the turn shows.")
    question: str = Field(description="The statement with its sample, as a problem's statement.")
    starter_code: str = Field(default="", description="Code that the answer starts from; empty for stdin.")
    answer: str = Field(description="The assistant's whole turn: one fenced program.")


def _fence(code: str) -> str:
    return f"```python\n{code}\n```"


FEWSHOT = (
    FewshotTurn(
        kind="stdin",
        question=stdin_statement("Read an integer n and print n * (n + 1).", "4", "20"),
        answer=_fence("n = int(input())\nprint(n * (n + 1))"),
    ),
    FewshotTurn(
        kind="stdin",
        question=stdin_statement(
            "Read one line of integers separated by spaces and print the first one plus the last one.",
            "5 8 2",
            "7",
        ),
        answer=_fence("v = list(map(int, input().split()))\nprint(v[0] + v[-1])"),
    ),
    FewshotTurn(
        kind="stdin",
        question=stdin_statement("Read a word and print it twice, with a comma between.", "moon", "moon,moon"),
        answer=_fence('s = input()\nprint(s + "," + s)'),
    ),
    FewshotTurn(
        kind="function",
        question=call_statement("Given two integers a and b, return 2 * a - b.", _COMBINE.signature, (4, 3), "5"),
        starter_code=_COMBINE.starter_code,
        answer=_fence(_COMBINE.starter_code + "return 2 * a - b"),
    ),
)


def turns_for(problem: Problem, count: int = 2) -> list[FewshotTurn]:
    """At most `count` turns for a problem, those of its own kind last, where a model weighs them most."""
    own = [turn for turn in FEWSHOT if turn.kind == problem.kind][:count]
    other = [turn for turn in FEWSHOT if turn.kind != problem.kind][: count - len(own)]
    return other + own
