"""What a warm-up template is: a sentence and a program with the same parameters, and a maker of inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product
from random import Random
from string import Template as Text
from typing import Literal

Value = int | str | list[int] | list[str]
Params = dict[str, int | str]
Inputs = Callable[[Random, Params], tuple[Value, ...]]
"""The values of one test: one per stdin line (a list shares its line), or one per positional argument."""


@dataclass(frozen=True)
class FunctionCall:
    """How a call-based problem is called: `signature` is what follows `self` in the parentheses."""

    fn_name: str
    signature: str
    returns: str
    in_class: bool = True

    @property
    def starter_code(self) -> str:
        """LeetCode's form, up to the place where the body starts."""
        if not self.in_class:
            return f"def {self.fn_name}({self.signature}) -> {self.returns}:\n    "
        return f"class Solution:\n    def {self.fn_name}(self, {self.signature}) -> {self.returns}:\n        "


@dataclass(frozen=True)
class ProblemTemplate:
    """One kind of problem. `$name` in the statement and in the answer is a parameter.

    The answer is the reference program; of a call-based problem it is the body that follows the starter code.
    A template whose answer has no parameter differs between its instances in wording and sample only.
    """

    id: str
    step: Literal[1, 2, 3]
    statement: str
    answer: str
    inputs: Inputs
    space: tuple[Params, ...]
    call: FunctionCall | None = None

    @property
    def parametrised(self) -> bool:
        """Whether instances differ in what has to be computed."""
        return "$" in self.answer

    def sentence(self, params: Params) -> str:
        """The statement without its sample."""
        return Text(self.statement).substitute(params)

    def program(self, params: Params) -> str:
        """The reference program, complete."""
        answer = Text(self.answer).substitute(params)
        if self.call is None:
            return answer + "\n"
        indent = " " * (8 if self.call.in_class else 4)
        return self.call.starter_code + answer.replace("\n", "\n" + indent) + "\n"


def grid(**axes: Iterable[int | str]) -> tuple[Params, ...]:
    """Every combination of the axes' values, the last axis fastest."""
    return tuple(dict(zip(axes, values, strict=True)) for values in product(*axes.values()))


def pairs(first: str, second: str, values: Iterable[tuple[str, str]]) -> tuple[Params, ...]:
    """A space of two parameters that go together, such as the words for yes and no."""
    return tuple({first: one, second: other} for one, other in values)


def texts(*sentences: str) -> tuple[Params, ...]:
    """The space of a template without parameters: several wordings of the same task (`$text`)."""
    return tuple({"text": sentence} for sentence in sentences)
