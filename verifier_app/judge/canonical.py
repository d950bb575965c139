"""Results of other types than JSON's that Python's == takes for equal to one of JSON's, as plain values.

LiveCodeBench compares with ==, so a Fraction, a Decimal or a UserList passes there. Here the program's side turns such
a value into the plain one that it equals, by its type alone: no `__eq__` of the program decides, and the expected
value is not there.
"""

from __future__ import annotations

import sys
import types
from typing import Any

NOTHING: Any = object()  # the value equals no JSON value
_MAX_EXPONENT = 5000  # a Decimal beyond it is longer than any expected number


class Single:
    """An array of one element."""

    def __init__(self, value: Any) -> None:
        self.value = value


def plain(value: Any) -> Any:
    """The plain value that `value` equals, a Single, or NOTHING."""
    kind = type(value)
    try:
        names = {(base.__module__.partition(".")[0], base.__name__) for base in kind.__mro__}
        if kind is complex or ("builtins", "complex") in names:
            return NOTHING if value.imag else value.real
        if ("decimal", "Decimal") in names:
            return _decimal(value)
        if ("numpy", "generic") in names:
            return _item(value.item(), kind)
        if ("numpy", "ndarray") in names:
            return Single(value.item()) if value.size == 1 else NOTHING
        if ("collections", "UserList") in names:
            return list(value.data)
        if ("collections", "UserString") in names:
            return str(value.data)
        if ("sortedcontainers", "SortedList") in names:
            return list(value)
        if kind is types.MappingProxyType or ("collections", "Mapping") in names:
            return dict(value.items())
        return _number(value)
    except Exception:  # what the program's own types raise
        return NOTHING


def _item(value: Any, kind: type[Any]) -> Any:
    """What a numpy scalar holds; one that is its own item (a long double) equals what it equals as a float."""
    if type(value) is not kind:
        return value
    number = float(value)
    return number if number == value else NOTHING


def _decimal(value: Any) -> Any:
    if not value.is_finite():
        return NOTHING if value.is_snan() else float(value)
    if abs(value.adjusted()) > _MAX_EXPONENT:
        return NOTHING
    return _fraction(*value.as_integer_ratio())


def _fraction(above: int, below: int) -> Any:
    """A fraction in lowest terms as an int or, where one is equal, as a float."""
    if below == 1:
        return above
    try:
        number = above / below
    except OverflowError:
        return NOTHING
    return number if number.as_integer_ratio() == (above, below) else NOTHING


def _number(value: Any) -> Any:
    """Other types of numbers: Fraction, and those that a package registers as such."""
    numbers = sys.modules.get("numbers")
    if numbers is None or not isinstance(value, numbers.Real):
        return NOTHING
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Rational):
        return _fraction(int(value.numerator), int(value.denominator))
    return float(value)
