"""rllm's rules for TACO, APPS, CodeContests and PrimeIntellect's problems (rllm/rewards/code_utils/taco.py).

A printed answer is tried in steps, the first that agrees decides:

1. both texts equal after stripping, or both one float and close as numpy.isclose has it. Unless both are one float:
   equally many lines that are not blank, equally many words in each, and no pair of words that are *both* numbers and
   not close. A pair in which one is no number is not looked at.
2. each character of the answer as a float against each expected line as one;
3. the set of the answer's words, each as the set of its characters, against the set of expected lines, each as the set
   of its words; then the same with every member a number, rounded to three places.

The exit status is not looked at: a program that crashed is judged by what it had printed. Of more than 15 tests the 15
with the longest inputs count. The data sets wrap the result of a call in a list, which also accepts itself.
"""

from __future__ import annotations

from typing import Any

from benchmarks.grading_rules.numbers import all_close, as_float, close
from benchmarks.grading_rules.verl import accepts_value, with_int_keys

MOST_TESTS = 15
PLACES = 3


def printed(got: str, expected: str) -> bool:
    """Whether the printed answer is right."""
    got = got.rstrip("\n")
    if words_alike(got.strip(), expected.strip()):
        return True
    lines = [line.strip() for line in expected.split("\n") if line]
    return all_close(list(got), lines) or sets_alike(got.split(), lines)


def words_alike(got: str, expected: str) -> bool:
    """The first step, on stripped texts."""
    if got == expected:
        return True
    mine, theirs = as_float(got), as_float(expected)
    if mine is not None and theirs is not None:
        return close(mine, theirs)
    rows = [[line.split() for line in text.split("\n") if line.strip()] for text in (got, expected)]
    if list(map(len, rows[0])) != list(map(len, rows[1])):
        return False
    return all(_pair(*pair) for a, b in zip(*rows, strict=True) for pair in zip(a, b, strict=True))


def _pair(got: str, expected: str) -> bool:
    mine, theirs = as_float(got), as_float(expected)
    return got == expected or mine is None or theirs is None or close(mine, theirs)


def sets_alike(words: list[str], lines: list[str]) -> bool:
    """The third step."""
    mine: set[frozenset[Any]] = {frozenset(word) for word in words}
    theirs: set[frozenset[Any]] = {frozenset(line.split()) for line in lines}
    if mine == theirs:
        return True
    try:
        rounded = [{frozenset(round(float(item), PLACES) for item in one) for one in side} for side in (mine, theirs)]
    except (ValueError, OverflowError):
        return False
    return rounded[0] == rounded[1]


def returned(got: Any, expected: Any) -> bool:
    """Whether the result of a call is right; `expected` without the list around it."""
    return accepts_value(got, with_int_keys([expected]))
