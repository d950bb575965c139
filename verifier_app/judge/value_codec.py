"""Tagged JSON for the value that a called function returns: the child encodes, the judge decodes.

JSON scalars stand for None, bool, int, float and str, a JSON list for a list; {"t": [...]} is a tuple,
{"d": [[key, value], ...]} a dict, {"i": "0x..."} an int of many digits, {"a": value} an array of one element and
{"x": "type name"} any other type, which equals nothing. The judge reads data and nothing else: bytes that are not this
format are `Malformed`, never an exception of another kind.
"""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any

from verifier_app.judge import plain_json
from verifier_app.judge.canonical import NOTHING, Single, plain

SCALARS = frozenset((int, float, str, bool, type(None)))
MAX_DEPTH = 20_000
MAX_INT_BITS = 1 << 20
NAME_CHARS = 80
_LONG_BITS = 2000  # below it no limit on an int's digits is reached
_HEX = re.compile(r"-?0x[0-9a-f]+")
_SHORT_BYTES = 1 << 16
_MARKS = (b",", b"[", b"{", b":", b'"')


def argument_lines(text: str) -> list[str]:
    """The arguments of a call, one JSON value a line; blank lines count for nothing."""
    return [line for line in text.split("\n") if line.strip()]


class Malformed(ValueError):
    """The child's bytes are not one tagged-JSON value."""


class OtherValue:
    """A value of a type that JSON tests cannot expect. Equal to nothing, itself included."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, name: str) -> None:
        self.name = name

    def __eq__(self, other: object) -> bool:
        return False

    def __repr__(self) -> str:
        return f"<{self.name}>"


class Items:
    """A dict as it came, pairs of key and value, and not built: its keys are the program's choice, and may collide."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, pairs: list[tuple[Any, Any]]) -> None:
        self.pairs = pairs

    def beside(self, expected: Any) -> list[tuple[Any, Any]] | None:
        """Each value with the expected one; None when the keys are not those of `expected`."""
        if not isinstance(expected, dict) or len(self.pairs) != len(expected):
            return None
        found = {}
        for key, value in self.pairs:
            if type(key) is not str or key not in expected:
                return None
            found[key] = value, expected[key]
        return list(found.values()) if len(found) == len(expected) else None

    def __eq__(self, other: object) -> bool:
        pairs = self.beside(other)
        return pairs is not None and all(got == expected for got, expected in pairs)


class One:
    """An array of one element, which numpy compares with a number, and with lists of one element, by that element."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        while isinstance(other, list) and len(other) == 1:
            (other,) = other
        return bool(self.value == other)


def encode(value: Any) -> bytes:
    """The child's half. Subclasses count as their base (a Counter is a dict), other types by their value."""
    try:
        try:
            return json.dumps(_tag(value, 0, False)).encode()
        except ValueError:  # an int of more digits than the program's limit
            return json.dumps(_tag(value, 0, True)).encode()
    except (RecursionError, MemoryError, ValueError, OverflowError):
        return json.dumps({"x": f"unprintable {type(value).__name__}"}).encode()


def _tag(value: Any, depth: int, long: bool) -> Any:
    """`long`: look for ints of many digits."""
    kind = type(value)
    if kind in SCALARS:
        return _long_int(value) if long and kind is int and value.bit_length() > _LONG_BITS else value
    if depth > MAX_DEPTH:
        raise RecursionError
    depth += 1
    if issubclass(kind, list):
        if not long and kind is list and set(map(type, value)) <= SCALARS:
            return value
        return [_tag(item, depth, long) for item in list.__iter__(value)]
    if issubclass(kind, tuple):
        return {"t": [_tag(item, depth, long) for item in tuple.__iter__(value)]}
    if issubclass(kind, dict):
        return {"d": [[_tag(key, depth, long), _tag(item, depth, long)] for key, item in dict.items(value)]}
    if issubclass(kind, str):
        return str.__str__(value)
    if issubclass(kind, int):
        return _tag(int.__int__(value), depth, long)
    if issubclass(kind, float):
        return float.__float__(value)
    found = plain(value)
    if found is NOTHING:
        return {"x": str(kind.__name__)[:NAME_CHARS]}
    if isinstance(found, Single):
        return {"a": _tag(found.value, depth, long)}
    return _tag(found, depth, long)


def _long_int(value: int) -> Any:
    bits = value.bit_length()
    return {"i": hex(value)} if bits <= MAX_INT_BITS else {"x": f"int of {bits} bits"}


def decode(data: bytes | bytearray, expected: Any = NOTHING) -> Any:
    """The judge's half: plain data, or Malformed.

    Args:
        expected: the value that is expected; data much longer than that is only read if it may be equal.
    """
    try:
        if len(data) > _SHORT_BYTES and expected is not NOTHING and not _may_equal(data, expected):
            return OtherValue(f"{data[:NAME_CHARS].decode('ascii', 'replace')}..., {len(data)} bytes")
        return plain_json.loads(data.decode(), _untag)
    except Malformed:
        raise
    except (ValueError, MemoryError) as error:
        raise Malformed(f"not one JSON value ({type(error).__name__})") from None


def _may_equal(data: bytes | bytearray, expected: Any) -> bool:
    """Whether data may stand for this value, by its length or else by its marks: only a number has two spellings."""
    own = encode(expected)
    if len(data) <= _SHORT_BYTES + 2 * len(own):
        return True
    shell = b'{"t": }' if data.startswith(b'{"t": ') else b""  # a tuple may stand for the outermost list
    return all(data.count(mark) == own.count(mark) + shell.count(mark) for mark in _MARKS)


def _untag(node: dict[str, Any]) -> Any:
    if len(node) != 1:
        raise Malformed("an object with other than one tag")
    ((tag, body),) = node.items()
    kind = type(body)
    if tag == "x" and kind is str:
        return OtherValue(ascii(body)[1:-1][:NAME_CHARS])
    if tag == "i" and kind is str and _HEX.fullmatch(body):
        return int(body, 16)
    if tag == "a" and (kind in SCALARS or kind is OtherValue):
        return One(body)
    if tag == "t" and kind is list:
        return tuple(body)
    if tag == "d" and kind is list:
        if not all(type(pair) is list and len(pair) == 2 for pair in body):
            raise Malformed("a dict whose items are no pairs of key and value")
        return Items([(key, value) for key, value in body])
    raise Malformed(f"unknown tag {tag[:20]!r}, or a body that is not its own")


def as_json(value: Any) -> str | None:
    """A decoded value as JSON, None for one that JSON cannot hold. A tuple is a list, a one-element array its element.

    Made without recursion, and an int may have any number of digits.
    """
    parts: list[str] = []
    left: list[Any] = [value]
    while left:
        item = left.pop()
        kind = type(item)
        if kind is _Mark:
            parts.append(item)
        elif kind is list or kind is tuple:
            left.append(_Mark("]"))
            for element in reversed(item):
                left += [element, _Mark(",")]
            parts.append("[")
            if item:
                left.pop()
        elif kind is Items:
            if not all(type(key) is str for key, _ in item.pairs):
                return None
            left.append(_Mark("}"))
            for key, element in reversed(item.pairs):
                left += [element, _Mark(f"{json.dumps(key)}:"), _Mark(",")]
            parts.append("{")
            if item.pairs:
                left.pop()
        elif kind is One:
            left.append(item.value)
        elif kind is Decimal:  # an int of many digits
            parts.append(f"{item:f}")
        elif kind in SCALARS:
            parts.append(_digits(item) if kind is int else json.dumps(item))
        else:
            return None
    return "".join(parts)


def _digits(value: int) -> str:
    """An int in decimal, whatever the caller's limit on digits is."""
    return f"{Decimal(value):f}" if value.bit_length() > _LONG_BITS else str(value)


class _Mark(str):
    """A piece of JSON that is kept as it is."""
