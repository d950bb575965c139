"""Comparison of answers, exactly LiveCodeBench's (lcb_runner/evaluation/testing_util.py), quirks included.

stdin: strip the whole output, split on "\\n", strip each line, equal line counts; a line matches when it is equal or
when both sides are equal lists of `Decimal`. Call: a top-level tuple becomes a list, then Python's ==.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Any

MESSAGE_CHARS = 300


def _decimals(line: str) -> list[Decimal] | None:
    """The line's words as numbers, None when one is none. Accepts what Decimal does: 1_000, 1e3, Infinity, NaN."""
    try:
        return [Decimal(word) for word in line.split()]
    except (InvalidOperation, ValueError):
        return None


def _numbers_equal(got: list[Decimal], expected: list[Decimal], tolerance: float | None) -> bool:
    try:
        if got == expected:
            return True
        if tolerance is None or len(got) != len(expected):
            return False
        bound = Decimal(repr(tolerance))
        return all(a == b or abs(a - b) <= bound for a, b in zip(got, expected, strict=True))
    except ArithmeticError:  # a signalling NaN, or infinity less infinity
        return False


def line_equal(got: str, expected: str, tolerance: float | None = None) -> bool:
    """Whether two stripped lines match."""
    if got == expected:
        return True
    numbers = _decimals(got)
    if numbers is None:
        return False
    wanted = _decimals(expected)
    return wanted is not None and _numbers_equal(numbers, wanted, tolerance)


def stripped_lines(text: str) -> list[str]:
    """The lines that are compared: at least one, as "".split gives."""
    return [line.strip() for line in text.strip().split("\n")]


def output_difference(got: str, expected: str, tolerance: float | None = None) -> str | None:
    """None when the outputs match, else one line that shows the first difference (at most 300 characters)."""
    if got == expected:
        return None
    got_lines, expected_lines = stripped_lines(got), stripped_lines(expected)
    if len(got_lines) != len(expected_lines):
        where = f"{len(got_lines)} lines, expected {len(expected_lines)}"
        pairs = zip(got_lines, expected_lines, strict=False)
        first = next((i for i, (a, b) in enumerate(pairs) if not line_equal(a, b, tolerance)), None)
        if first is None:
            first = min(len(got_lines), len(expected_lines))
        mine = got_lines[first] if first < len(got_lines) else ""
        theirs = expected_lines[first] if first < len(expected_lines) else ""
        return f"{where}; line {first + 1}: {_versus(mine, theirs, 200)}"
    for number, (a, b) in enumerate(zip(got_lines, expected_lines, strict=True), 1):
        if not line_equal(a, b, tolerance):
            return f"line {number}: {_versus(a, b, 260)}"
    return None


def value_difference(got: Any, expected: Any) -> str | None:
    """The same for the values of a call-based problem; `got` is decoded data of plain types, never an object."""
    if isinstance(got, tuple):
        got = list(got)
    try:
        if got == expected:
            return None
    except RecursionError:
        return "the value is nested too deeply"
    return _versus(_short(got), _short(expected), 280, quote=False)


def _short(value: Any) -> str:
    try:
        return repr(value)
    except (ValueError, RecursionError):  # an int of more than 4300 digits, or nested too deeply
        return f"<{type(value).__name__}>"


def _versus(got: str, expected: str, room: int, quote: bool = True) -> str:
    """got and expected, cut around the first character that differs."""
    half = room // 2 - 20
    start = 0
    if max(len(got), len(expected)) > half:
        same = next((i for i, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b), None)
        same = min(len(got), len(expected)) if same is None else same
        start = max(0, same - half // 2)
    sides = []
    for text in (got, expected):
        piece = text[start : start + half]
        piece = repr(piece)[: half + 10] if quote else piece
        sides.append(("..." if start else "") + piece + ("..." if start + half < len(text) else ""))
    return f"got {sides[0]}, expected {sides[1]}"[:MESSAGE_CHARS]
