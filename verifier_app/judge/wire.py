"""Tagged JSON for the value that a called function returns: the child encodes, the judge decodes.

JSON scalars stand for None, bool, int, float and str, a JSON list for a list; {"t": [...]} is a tuple,
{"d": [[key, value], ...]} a dict and {"x": "type name"} any other type, which equals nothing. The judge reads data
and nothing else: bytes that are not this format are `Malformed`, never an exception of another kind.
"""

from __future__ import annotations

import json
from typing import Any

SCALARS = frozenset((int, float, str, bool, type(None)))


def argument_lines(text: str) -> list[str]:
    """The arguments of a call, one JSON value a line; blank lines count for nothing."""
    return [line for line in text.split("\n") if line.strip()]


class Malformed(ValueError):
    """The child's bytes are not one tagged-JSON value."""


class Other:
    """A value of a type that JSON tests cannot expect. Equal to nothing, itself included."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, name: str) -> None:
        self.name = name

    def __eq__(self, other: object) -> bool:
        return False

    def __repr__(self) -> str:
        return f"<{self.name}>"


def encode(value: Any) -> bytes:
    """The child's half. Subclasses count as their base (a Counter is a dict), numpy scalars go through .item()."""
    try:
        return json.dumps(_tag(value)).encode()
    except (RecursionError, MemoryError, ValueError, OverflowError):  # too deep, or an int of over 4300 digits
        return json.dumps({"x": f"unprintable {type(value).__name__}"}).encode()


def _tag(value: Any) -> Any:
    kind = type(value)
    if kind in SCALARS:
        return value
    if issubclass(kind, list):
        items = list.__iter__(value)
        if set(map(type, value)) <= SCALARS and kind is list:
            return value
        return [_tag(item) for item in items]
    if issubclass(kind, tuple):
        return {"t": [_tag(item) for item in tuple.__iter__(value)]}
    if issubclass(kind, dict):
        return {"d": [[_tag(key), _tag(item)] for key, item in dict.items(value)]}
    if issubclass(kind, str):
        return str.__str__(value)
    if issubclass(kind, int):
        return int.__int__(value)
    if issubclass(kind, float):
        return float.__float__(value)
    if (getattr(kind, "__module__", None) or "").partition(".")[0] == "numpy" and getattr(value, "shape", None) == ():
        plain = value.item()
        if type(plain) in SCALARS:
            return plain
    return {"x": str(kind.__name__)[:80]}


def decode(data: bytes) -> Any:
    """The judge's half: plain data, or Malformed."""
    try:
        return _untag(json.loads(data))
    except Malformed:
        raise
    except (ValueError, RecursionError, MemoryError) as error:
        raise Malformed(f"not one JSON value ({type(error).__name__})") from None


def _untag(node: Any) -> Any:
    kind = type(node)
    if kind is list:
        if set(map(type, node)) <= SCALARS:
            return node
        return [_untag(item) for item in node]
    if kind is not dict:
        return node
    if len(node) != 1:
        raise Malformed("an object with other than one tag")
    ((tag, body),) = node.items()
    if tag == "x" and type(body) is str:
        return Other(body)
    if type(body) is not list:
        raise Malformed(f"tag {tag[:20]!r} with a body that is no list")
    if tag == "t":
        return tuple(_untag(item) for item in body)
    if tag == "d":
        try:
            return {_untag(key): _untag(item) for key, item in body}
        except (TypeError, ValueError):
            raise Malformed("a dict whose items are no pairs of hashable key and value") from None
    raise Malformed(f"unknown tag {tag[:20]!r}")
