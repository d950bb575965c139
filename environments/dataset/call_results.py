"""What a function's results in a source mean: wrapped in a list or not, JSON text or a string."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from environments.dataset.drop_reasons import Dropped

MAX_DIGITS = 100_000  # of an integer in a row; parsing takes quadratic time


@contextmanager
def wide_integers() -> Iterator[None]:
    """Integers of up to MAX_DIGITS digits can be read and written: Python's own limit is 4,300."""
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(MAX_DIGITS)
    try:
        yield
    finally:
        sys.set_int_max_str_digits(before)


def dump(value: Any) -> str:
    """The value as JSON; Dropped where JSON cannot hold it."""
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        raise Dropped("unparsable_tests", "a value that JSON cannot hold") from None


def readings(outputs: Sequence[Any], json_text: bool) -> list[list[Any]]:
    """The values that a problem's results may stand for, the likeliest reading first, no two the same.

    A source that wraps results wraps all of them, so lists that all hold one element are read as their elements; a
    single list of another length says that lists are what the function returns. The other reading comes second.

    Args:
        outputs: one result for each test, as the row has it.
        json_text: results that are text are JSON, as LiveCodeBench keeps them (`"[1]"` is a list and has no other
            reading). Otherwise text that reads as a number, a boolean or null is first taken for a string.
    """
    found: list[list[Any]] = []
    for values in _ways(outputs, json_text):
        # compared as JSON, since 1 == True == 1.0 in Python
        if dump(values) not in map(dump, found):
            found.append(values)
    return found


def _ways(outputs: Sequence[Any], json_text: bool) -> Iterator[list[Any]]:
    wrapped = _one_element_each([value for value in outputs if isinstance(value, list)])
    for text in (_json,) if json_text else (_typed, _json, str):
        values = [text(value) if isinstance(value, str) else value for value in outputs]
        # Text that is a list is wrapped only beside lists that are: alone it is the list that it says.
        if wrapped and not json_text and _one_element_each([value for value in values if isinstance(value, list)]):
            yield [value[0] if isinstance(value, list) else value for value in values]
        if wrapped:
            yield [value[0] if isinstance(given, list) else value for given, value in zip(outputs, values, strict=True)]
        yield values


def _one_element_each(lists: Sequence[list[Any]]) -> bool:
    return bool(lists) and all(len(value) == 1 for value in lists)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text  # a plain string, the value itself


def _typed(text: str) -> Any:
    value = _json(text)
    return value if isinstance(value, (list, dict, str)) else text
