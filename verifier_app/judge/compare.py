"""Comparison of answers, exactly LiveCodeBench's (lcb_runner/evaluation/testing_util.py), quirks included.

stdin: strip the whole output, split on "\\n", strip each line, equal line counts; a line matches when it is equal or
when both sides are equal lists of `Decimal`. Call: a top-level tuple becomes a list, then Python's ==. A tolerance,
which LiveCodeBench does not have, is for decimals of a line and for floats in a call's result, at any depth.

What a comparison costs is bounded by the expected output: of the program's, which may be 64 MB, lines and words are
counted where it lies before anything is made of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Context, Decimal, DivisionByZero, InvalidOperation, Overflow
from itertools import islice
from typing import Any

from verifier_app.judge.value_codec import Items, One

Bytes = bytes | bytearray
MESSAGE_CHARS = 300
LONG_LINE_BYTES = 4096
WINDOW_BYTES = 1 << 16
_LONG_NUMBER = re.compile(r"[\d._+\-eE]*")
_CONTEXT = Context(prec=60, traps=[InvalidOperation, DivisionByZero, Overflow])  # not the embedding process's


def _decimals(words: list[str]) -> list[Decimal] | None:
    """The words as numbers, None when one is none. Accepts what Decimal does: 1_000, 1e3, Infinity, NaN."""
    try:
        return [Decimal(word, _CONTEXT) for word in words]
    except (InvalidOperation, ValueError):
        return None


def _numbers_equal(got: list[Decimal], expected: list[Decimal], tolerance: float | None) -> bool:
    try:
        if got == expected:
            return True
        if tolerance is None:
            return False
        bound = Decimal(repr(tolerance))
        pairs = zip(got, expected, strict=True)
        return all(a == b or _CONTEXT.abs(_CONTEXT.subtract(a, b)) <= bound for a, b in pairs)
    except ArithmeticError:  # a signalling NaN, or infinity less infinity
        return False


def _words_equal(words: list[str] | None, wanted: list[Decimal], tolerance: float | None) -> bool:
    if words is None or len(words) != len(wanted):
        return False
    numbers = _decimals(words)
    return numbers is not None and _numbers_equal(numbers, wanted, tolerance)


def line_equal(got: str, expected: str, tolerance: float | None = None) -> bool:
    """Whether two stripped lines match."""
    if got == expected:
        return True
    wanted = _decimals(expected.split())
    if wanted is None:
        return False
    return _words_equal(got.split(None, len(wanted)), wanted, tolerance)


def stripped_lines(text: str) -> list[str]:
    """The lines that are compared: at least one, as "".split gives."""
    return [line.strip() for line in text.strip().split("\n")]


def _text(data: Bytes, start: int, stop: int) -> str:
    return data[start:stop].decode("utf-8", "surrogateescape")


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogateescape"))


def _character(data: Bytes, at: int, low: int) -> int:
    """The start of the character that the byte `at` belongs to."""
    start = at
    while start > max(low, at - 3) and data[start] & 0xC0 == 0x80:
        start -= 1
    return start if start > low else at


def _windows(data: Bytes, start: int, stop: int) -> Iterator[str]:
    """The text between two offsets, in pieces."""
    while start < stop:
        end = start + WINDOW_BYTES
        end = _character(data, end, start) if end < stop else stop
        yield _text(data, start, end)
        start = end


def _stripped(data: Bytes, start: int, stop: int) -> tuple[int, int]:
    """str.strip of the text between two offsets, as offsets."""
    for piece in _windows(data, start, stop):
        rest = piece.lstrip()
        start += _size(piece[: len(piece) - len(rest)])
        if rest:
            break
    while start < stop:
        low = stop - WINDOW_BYTES
        low = _character(data, low, start) if low > start else start
        piece = _text(data, low, stop)
        rest = piece.rstrip()
        stop -= _size(piece[len(rest) :])
        if rest:
            break
    return start, stop


def _words(data: Bytes, start: int, stop: int, most: int) -> list[str] | None:
    """str.split of the text between two offsets; None for more than `most` words, or a long one that is no number."""
    words: list[str] = []
    pieces: list[str] = []  # of a word that may continue in the next window
    for piece in _windows(data, start, stop):
        found = piece.split()
        if pieces and (not found or piece[0].isspace()):
            words.append("".join(pieces))
            pieces = []
        if found:
            if not piece[-1].isspace():
                last = found.pop()
                if found and pieces:
                    words.append("".join(pieces) + found.pop(0))
                    pieces = []
                if len(last) > len("-Infinity") and not _LONG_NUMBER.fullmatch(last):
                    return None
                pieces.append(last)
            elif pieces:
                found[0] = "".join(pieces) + found[0]
                pieces = []
            words += found
        if len(words) + bool(pieces) > most:
            return None
    return [*words, "".join(pieces)] if pieces else words


def _line_matches(data: Bytes, start: int, stop: int, expected: str, tolerance: float | None) -> bool:
    """Whether the line between two offsets matches one that is stripped."""
    short = LONG_LINE_BYTES + 4 * len(expected)
    if stop - start > short:
        start, stop = _stripped(data, start, stop)
    if stop - start <= short:
        return line_equal(_text(data, start, stop).strip(), expected, tolerance)
    wanted = _decimals(expected.split())
    return wanted is not None and _words_equal(_words(data, start, stop, len(wanted)), wanted, tolerance)


def output_difference(got: Bytes | str, expected: str, tolerance: float | None = None) -> str | None:
    """None when the outputs match, else one line that shows the first difference (at most 300 characters)."""
    data = got.encode("utf-8", "surrogatepass") if isinstance(got, str) else got
    if data == expected.encode("utf-8", "surrogatepass"):
        return None
    lines = stripped_lines(expected)
    if len(data) <= LONG_LINE_BYTES + 2 * len(expected) and stripped_lines(_text(data, 0, len(data))) == lines:
        return None
    at, end = _stripped(data, 0, len(data))
    count = data.count(b"\n", at, end) + 1
    counts = f"{count} lines, expected {len(lines)}; " if count != len(lines) else ""
    room = 200 if counts else 260
    for number, wanted in enumerate(lines, 1):
        stop = data.find(b"\n", at, end) if number <= count else at
        stop = end if stop < 0 else stop
        if number > count or not _line_matches(data, at, stop, wanted, tolerance):
            mine = _text(data, at, min(stop, at + 4 * (len(wanted) + room))).strip()
            return f"{counts}line {number}: {_versus(mine, wanted, room)}"
        at = stop + 1
    if not counts:
        return None
    stop = data.find(b"\n", at, end)
    mine = _text(data, at, min(end if stop < 0 else stop, at + 4 * room)).strip()
    return f"{counts}line {len(lines) + 1}: {_versus(mine, '', room)}"


def value_difference(got: Any, expected: Any, deep: bool = False, tolerance: float | None = None) -> str | None:
    """The same for the values of a call-based problem; `got` is decoded data of plain types, never an object.

    deep: the expected value is nested so deeply that == may not be asked.
    """
    if isinstance(got, tuple):
        got = list(got)
    try:
        equal = not deep and bool(got == expected)
    except RecursionError:  # the caller itself is at the end of its own limit
        deep = True
    if deep:
        equal = _deep_equal(got, expected)
    if not equal and tolerance is not None:
        equal = _deep_equal(got, expected, tolerance)
    if equal:
        return None
    theirs = shown_value(expected, 1 << 16)
    return _versus(shown_value(got, len(theirs) + MESSAGE_CHARS), theirs, 280, quote=False)


def _close(mine: Any, theirs: Any, tolerance: float) -> bool:
    """Whether two numbers, one of them a float, are within the tolerance. A bool is no number here."""
    kinds = {type(mine), type(theirs)}
    if float not in kinds or not kinds <= {float, int}:
        return False
    try:
        return bool(abs(mine - theirs) <= tolerance)
    except OverflowError:  # an int beyond every float
        return False


def _deep_equal(got: Any, expected: Any, tolerance: float | None = None) -> bool:
    """== without recursion; numbers within the tolerance where there is one."""
    left = [(got, expected)]
    while left:
        mine, theirs = left.pop()
        if isinstance(mine, list) and isinstance(theirs, list):
            if len(mine) != len(theirs):
                return False
            left += zip(mine, theirs, strict=True)
        elif isinstance(mine, Items):
            pairs = mine.beside(theirs)
            if pairs is None:
                return False
            left += pairs
        elif tolerance is not None and isinstance(mine, dict) and isinstance(theirs, dict):
            if mine.keys() != theirs.keys():
                return False
            left += ((mine[key], theirs[key]) for key in mine)
        elif isinstance(mine, (list, tuple)) or (
            mine != theirs and (tolerance is None or not _close(mine, theirs, tolerance))
        ):
            return False
    return True


class _Literal(str):
    """A piece of text among values."""


def shown_value(value: Any, most: int) -> str:
    """The beginning of repr(value), made without recursion."""
    parts: list[str] = []
    size, left = 0, [value]
    while left and size <= most:
        item = left.pop()
        inner: list[Any] = []
        if isinstance(item, (list, tuple)):
            marks = "[]" if isinstance(item, list) else "()"
            for element in item[:most]:
                inner += [_Literal(", "), element]
            end = "," + marks[1] if marks == "()" and len(item) == 1 else marks[1]
            text, inner = marks[0], [*inner[1:], _Literal(end)]
        elif isinstance(item, (dict, Items)):
            for key, element in islice(item.pairs if isinstance(item, Items) else item.items(), most):
                inner += [_Literal(", "), key, _Literal(": "), element]
            text, inner = "{", [*inner[1:], _Literal("}")]
        elif isinstance(item, One):
            text, inner = "array([", [item.value, _Literal("])")]
        else:
            text = item if type(item) is _Literal else _scalar(item, most)
        left += reversed(inner)
        parts.append(text)
        size += len(text)
    return "".join(parts)


def _scalar(value: Any, most: int) -> str:
    if isinstance(value, Decimal):
        return f"{value:f}"  # an int of many digits
    if isinstance(value, str):
        return repr(value[:most])
    try:
        return repr(value)
    except ValueError:
        return f"<{type(value).__name__} of {value.bit_length()} bits>"


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
