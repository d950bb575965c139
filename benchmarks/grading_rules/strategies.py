"""Answers made from the expected output of a whole problem: what a rule lets through, and what it refuses.

Each keeps the form of the answer and changes its content, as a model could learn to. They need no program: what is
counted is the problems of which every test would pass.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from verifier_app.judge.compare import output_difference

_WORD = re.compile(r"\S+")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_INTEGER = re.compile(r"[+-]?\d+")


def _each_word(change: Callable[[str], str]) -> Callable[[str], str]:
    return lambda text: _WORD.sub(lambda match: change(match[0]), text)


def _is_number(word: str) -> bool:
    return _NUMBER.fullmatch(word) is not None


def _near(word: str) -> str:
    if _INTEGER.fullmatch(word) and len(word.lstrip("+-")) > 6:  # not through int, which refuses 4,300 digits
        return word[:-1] + ("8" if word[-1] == "9" else str(int(word[-1]) + 1))
    if _NUMBER.fullmatch(word) and not _INTEGER.fullmatch(word):
        return repr(float(word) * (1 + 2e-6))
    return word


def _as_float(word: str) -> str:
    return f"{word}.0" if _INTEGER.fullmatch(word) else word


WRONG: dict[str, Callable[[str], str]] = {
    "every word that is no number is x": _each_word(lambda word: word if _is_number(word) else "x"),
    "every word is 0 where it is no number": _each_word(lambda word: word if _is_number(word) else "0"),
    "upper and lower case changed": str.swapcase,
    "numbers changed by two millionths": _each_word(_near),
    "lines in reverse order": lambda text: "\n".join(reversed(text.strip().split("\n"))),
    "blank lines between the lines": lambda text: "\n\n".join(text.strip().split("\n")),
    "all lines joined": lambda text: "".join(text.split()),
}
"""Wrong answers by what was done to the right one."""
RIGHT: dict[str, Callable[[str], str]] = {
    "as expected": lambda text: text,
    "a space at each line's end": lambda text: "".join(f"{line} \n" for line in text.strip().split("\n")),
    "integers as decimals, 5 as 5.0": _each_word(_as_float),
}
"""Right answers in another form; LiveCodeBench takes them where a line holds numbers alone."""


def problems_passed(
    change: Callable[[str], str], printed: Callable[[str, str], bool], problems: list[list[str]]
) -> int:
    """The problems of which every expected output, changed, passes.

    Args:
        problems: the expected outputs of each.
    """
    return sum(all(printed(change(output), output) for output in outputs) for outputs in problems)


def made_wrong(change: Callable[[str], str], problems: list[list[str]]) -> list[list[str]]:
    """The problems of which some changed output is a wrong answer by the exact comparison."""
    return [
        outputs
        for outputs in problems
        if any(output_difference(change(output), output) is not None for output in outputs)
    ]
