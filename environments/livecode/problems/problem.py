"""Problems in the project's normal form.

ValueError
└── ProblemError    a row that cannot be used; the message names the file, the line and the problem's id
    └── NoTests     a row without a test
"""

from __future__ import annotations

import json
from typing import Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from environments.common.errors import ConfigError
from verifier_app.judge.checkers import source_of
from verifier_app.judge.protocol import JudgeError

LATER = ("time_limit_s", "memory_limit_mb", "checker", "pass_rate")
"""Fields of `Problem` that earlier files do not have, and that are not written where nothing is stated."""


class ProblemError(ConfigError):
    """A problem that cannot be used; the message names its place and its id."""


class NoTests(ProblemError):
    """A problem without a single test."""


class TestCase(BaseModel):
    """One test. For a function problem `input` is one JSON value a line, one per positional argument."""

    __test__ = False  # the name is LiveCodeBench's; pytest must not collect it
    model_config = ConfigDict(extra="forbid", frozen=True)

    input: str = Field(description="What stdin holds, or the arguments as one JSON value a line.")
    output: str = Field(description="The expected stdout, or the expected return value as one JSON value.")


class Problem(BaseModel):
    """A problem with its tests; the tests are the judge's and never part of a prompt."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(min_length=1, description="Unique within a file.")
    source: str = Field(description="Where it comes from, for example livecodebench or warmup.")
    kind: Literal["stdin", "function"] = Field(description="A program over stdin and stdout, or a call.")
    fn_name: str | None = Field(default=None, description="The function or method to call; only for function.")
    statement: str = Field(min_length=1, description="The text that the model reads.")
    starter_code: str = Field(default="", description="Code that the answer starts from; empty for stdin.")
    difficulty: str | None = Field(default=None, description="easy, medium or hard where it is known.")
    date: str | None = Field(default=None, description="The contest's date in ISO form, without a zone.")
    platform: str | None = Field(default=None, description="leetcode, codeforces or atcoder where known.")
    template: str | None = Field(default=None, description="The warm-up template it was made from, else null.")
    pass_rate: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Share of a start model's samples that passed (`atropos data filter`); `learnable` begins with it.",
    )
    checker: dict[str, Any] | None = Field(
        default=None,
        description='Where several answers are right: {"code": a Python checker}, or {"name": "any_order_lines"}, '
        '{"name": "any_order_words"} (stdin), {"name": "any_order_items"} (function), '
        '{"name": "floats", "tolerance": 1e-6}.',
    )
    time_limit_s: float | None = Field(default=None, gt=0, description="Seconds for a test, as the source states it.")
    memory_limit_mb: float | None = Field(default=None, gt=0, description="Megabytes, as the source states it.")
    tests: list[TestCase] = Field(min_length=1, description="At least one; all of the problem's kind.")

    @model_validator(mode="after")
    def _call_and_tests_agree(self) -> Problem:
        if self.checker is not None:
            try:
                source_of(self.checker, call=self.kind == "function")
            except JudgeError as error:
                raise ValueError(error.message) from None
        if self.kind == "stdin":
            if self.fn_name is not None:
                raise ValueError(f"fn_name = {self.fn_name!r} with kind stdin: set it to null or kind to function")
            return self
        if not self.fn_name or not self.fn_name.isidentifier():
            raise ValueError(f"fn_name = {self.fn_name!r} with kind function: give the function's name")
        for index, test in enumerate(self.tests):
            for part, lines in (("input", test.input.strip("\n").split("\n")), ("output", [test.output])):
                try:
                    for line in lines:
                        # parse_int: only the form is looked at, and an integer may have any number of digits
                        if line.strip() or part == "output":
                            json.loads(line, parse_int=str)
                except (ValueError, RecursionError):
                    raise ValueError(
                        f"tests.{index}.{part} = {getattr(test, part)[:60]!r}: "
                        "a function's arguments and result are JSON, one value a line"
                    ) from None
        return self


def validated(fields: dict[str, Any], name: str) -> Problem:
    """The problem of these fields; ProblemError with every field that is wrong."""
    try:
        return Problem.model_validate(fields)
    except ValidationError as error:
        reasons = []
        for item in error.errors():
            field = ".".join(str(part) for part in item["loc"])
            value = "" if item["type"] == "missing" or not field else f" = {_shown(item['input'])}"
            message = item["msg"].removeprefix("Value error, ")
            reasons.append(f"{field}{value}: {message}" if field else message)
        refuse(name, "; ".join(reasons))


def _shown(value: Any) -> str:
    """The beginning of a value as what it is: a list is no text that looks like one."""
    return repr(value[:60]) if isinstance(value, str) else repr(value)[:60]


def refuse(name: str, reason: str) -> NoReturn:
    """Raise the ProblemError of one problem."""
    raise ProblemError(f"problem {name}: {reason}.") from None
