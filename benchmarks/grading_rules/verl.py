"""verl's prime_code (volcengine/verl, verl/utils/reward_score/prime_code/testing_util.py).

A printed answer is tried against the expected one in steps, the first that agrees decides:

1. the whole text, or its lines, without the space around them;
2. its lines as printed against the expected lines that are not empty, stripped; then without its own empty lines;
3. where the lines are equally many and not all of them plain digits on both sides: each line one float, close as
   numpy.allclose has it. A minus sign or a point anywhere among the lines brings all of them here.

Lines of the answer end where str.splitlines sees an end (form feed and others included). The source compares sets of
words after that, but no set is ever equal to the list beside it, so that step accepts nothing.

The reward is 1 where all tests pass together, else the share of the first ten that pass, each by itself in 10 s: verl
calls it with `continuous`. So a program is paid in full that fails after its tenth test.

The expected result of a call goes through JSON's loss of int keys first: a dict whose keys are all ints becomes a list
with that dict, and so does a list that begins with one, whatever follows. Then a list also accepts its first element.
"""

from __future__ import annotations

import json
from typing import Any

from benchmarks.grading_rules.numbers import all_close


def printed(got: str, expected: str) -> bool:
    """Whether the printed answer is right."""
    lines = got.splitlines()
    whole = expected.strip()
    if whole in ("\n".join(lines).strip(), "\n".join(line.strip() for line in lines).strip()):
        return True
    wanted = [line.strip() for line in expected.split("\n") if line]
    filled = [line for line in lines if line]
    if lines in ([expected], wanted) or filled == wanted:
        return True
    return not _all_digits(filled, wanted) and all_close(filled, wanted)


def _all_digits(got: list[str], expected: list[str]) -> bool:
    return len(got) == len(expected) and all(line.isdigit() for line in got + expected)


def with_int_keys(expected: Any) -> Any:
    """The expected value with the keys that JSON could not keep."""
    first = expected[0] if isinstance(expected, list) and expected else None
    for candidate in (expected, first):
        if isinstance(candidate, dict):
            try:
                return [{int(key): value for key, value in candidate.items()}]
            except ValueError:
                return expected
    return expected


def returned(got: Any, expected: Any) -> bool:
    """Whether the result of a call is right."""
    try:
        json.dumps(got)
    except (TypeError, ValueError):
        return False
    return accepts_value(got, with_int_keys(expected))


def accepts_value(got: Any, expected: Any) -> bool:
    """The result, a tuple as a list; or the first of an expected list, which alone is compared with inner tuples."""
    mine = list(got) if isinstance(got, tuple) else got
    if mine == expected:
        return True
    if not isinstance(expected, list) or not expected:
        return False
    if mine == expected[0]:
        return True
    if isinstance(mine, list) and mine and isinstance(mine[0], tuple):
        try:
            return bool([list(item) for item in mine] == expected[0])
        except TypeError:
            return False
    return False
