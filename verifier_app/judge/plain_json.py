"""JSON read the same in every process: the caller's limits on recursion and on the digits of an int have no influence.

An int of more digits than every limit allows is read as a Decimal, which compares with ints and floats exactly. Values
that are nested deeply are read without recursion. Each NaN is an object of its own: a list that holds one equals none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

DEPTH = 100  # nesting that is safe to recurse into
_DIGITS = 640  # the lowest limit that sys.set_int_max_str_digits takes
_LONG_INT = re.compile(rf"\d{{{_DIGITS + 1}}}")
_STRING = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_NESTING = re.compile(rf"{_STRING}|([\[{{])|([\]}}])", re.DOTALL)
_TOKEN = re.compile(rf"[ \t\n\r]*+(?:([\[\]{{}},:])|({_STRING}|[^ \t\n\r\[\]{{}},:\"]++))[ \t\n\r]*+", re.DOTALL)

Hook = Callable[[dict[str, Any]], Any]


def is_deep(text: str) -> bool:
    """Whether brackets in this JSON are nested more than DEPTH deep."""
    if text.count("[") + text.count("{") <= DEPTH:
        return False
    depth = 0
    for match in _NESTING.finditer(text):
        if match[1]:
            depth += 1
            if depth > DEPTH:
                return True
        elif match[2]:
            depth -= 1
    return False


def loads(text: str, hook: Hook | None = None) -> Any:
    """json.loads; `hook` gets each object (a dict) and gives its replacement. ValueError: the text is not JSON."""
    options: dict[str, Any] = {"object_hook": hook, "parse_constant": float}
    if _LONG_INT.search(text):
        options["parse_int"] = lambda digits: int(digits) if len(digits) <= _DIGITS else Decimal(digits)
    decoder = json.JSONDecoder(**options)
    if not is_deep(text):
        try:
            return decoder.decode(text)
        except RecursionError:  # the caller itself is at the end of its own limit
            pass
    return _Reader(text, decoder, hook).read()


class _Reader:
    """A JSON parser that keeps its own stack."""

    def __init__(self, text: str, decoder: json.JSONDecoder, hook: Hook | None) -> None:
        self.text, self.decoder, self.hook = text, decoder, hook
        self.at = 0

    def _token(self) -> tuple[str | None, str | None]:
        match = _TOKEN.match(self.text, self.at)
        if match is None:
            raise ValueError(f"not JSON at character {self.at}")
        self.at = match.end()
        return match[1], match[2]

    def read(self) -> Any:
        """The one value of the text."""
        open_lists: list[Any] = []  # lists, and dicts with the key that waits for its value
        keys: list[str | None] = []
        while True:
            mark, scalar = self._token()
            empty = False
            if scalar is not None:
                value = self.decoder.decode(scalar)
            elif mark in ("[", "{"):
                container: Any = [] if mark == "[" else {}
                if not self._closes("]" if mark == "[" else "}"):
                    open_lists.append(container)
                    keys.append(None if mark == "[" else self._key())
                    continue
                value, empty = container, mark == "{"
            else:
                raise ValueError(f"{mark!r} at character {self.at} where a value is due")
            if empty and self.hook:
                value = self.hook(value)
            while open_lists:
                container, key = open_lists[-1], keys[-1]
                if key is None:
                    container.append(value)
                else:
                    container[key] = value
                mark, _ = self._token()
                if mark == ",":
                    keys[-1] = None if key is None else self._key()
                    break
                if mark != ("]" if key is None else "}"):
                    raise ValueError(f"no comma and no end at character {self.at}")
                open_lists.pop()
                keys.pop()
                value = container if key is None or self.hook is None else self.hook(container)
            if not open_lists:
                if self.text[self.at :].strip(" \t\n\r"):
                    raise ValueError(f"more than one value at character {self.at}")
                return value

    def _closes(self, mark: str) -> bool:
        before = self.at
        try:
            if self._token()[0] == mark:
                return True
        except ValueError:
            pass
        self.at = before
        return False

    def _key(self) -> str:
        _, scalar = self._token()
        colon, _ = self._token()
        if scalar is None or not scalar.startswith('"') or colon != ":":
            raise ValueError(f"no key at character {self.at}")
        key: str = self.decoder.decode(scalar)
        return key
