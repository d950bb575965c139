"""The kinds of difference between the graders, each as a program that is as short as it can be."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

NOTHING = object()


@dataclass(frozen=True)
class Example:
    """A kind of difference. printed: the answer; returned: the result of a call in its place; code: where it takes more
    than to print the answer. right: whether a person takes the answer for right."""

    kind: str
    expected: str
    right: bool
    printed: str = ""
    returned: Any = NOTHING
    code: str = ""

    @property
    def call(self) -> bool:
        """Whether it is a call-based problem."""
        return self.returned is not NOTHING

    @property
    def program(self) -> str:
        """The source that is judged."""
        if self.call:
            return f"def solve(n):\n    return {self.returned!r}\n"
        return self.code or f"print({self.printed!r}, end='')\n"

    @property
    def test(self) -> dict[str, str]:
        """The one test of its problem."""
        return {"input": "1" if self.call else "1\n", "output": self.expected}

    @property
    def fields(self) -> dict[str, str]:
        """What the judge's request needs beside program and test."""
        return {"fn_name": "solve"} if self.call else {}

    @property
    def shown(self) -> str:
        """The answer for a table."""
        return repr(self.returned) if self.call else json.dumps(self.printed) if not self.code else self.code


CRASH = "print({!r})\nraise ValueError\n"
EXAMPLES = [
    Example("space at a line's end", "1\n2", True, "1 \n2\n"),
    Example("carriage returns", "1\n2", True, "1\r\n2\r\n"),
    Example("a number written otherwise", "1000", True, "1e3\n"),
    Example("two numbers on a line, written otherwise", "1 2", True, "1.0 2.0\n"),
    Example("exit status 1 after the answer", "3", True, code="print(3)\nexit(1)\n"),
    Example("a decimal within 1e-4", "0.00009", False, "0\n"),
    Example("a decimal within 1e-5 of its size", "3.14159", False, "3.14160\n"),
    Example("an integer within a millionth", "10000001", False, "10000000\n"),
    Example("a negative integer within a millionth", "-10000001", False, "-10000000\n"),
    Example("upper and lower case", "YES", False, "yes\n"),
    Example("another word", "YES", False, "NO\n"),
    Example("a number for a word", "IMPOSSIBLE", False, "7\n"),
    Example("a blank line between", "1\n2", False, "1\n\n2\n"),
    Example("a form feed for a line's end", "1\n2", False, "1\x0c2\n"),
    Example("digits run together", "1\n2", False, "12\n"),
    Example("lines of one digit in another order", "1\n2", False, "2\n1\n"),
    Example("each digit once", "1\n2\n1\n2", False, "1 2\n"),
    Example("a crash after the answer", "3", False, code=CRASH.format(3)),
    Example("a crash where nothing is expected", "", False, code="raise ValueError\n"),
    Example("a call: True for 1", "1", True, returned=True),
    Example("a call: a tuple for the list", "[1, 2]", True, returned=(1, 2)),
    Example("a call: tuples in the list", "[[1, 2]]", False, returned=[(1, 2)]),
    Example("a call: a dict as JSON has it", '{"1": 2}', True, returned={"1": 2}),
    Example("a call: int keys for text", '{"1": 2}', False, returned={1: 2}),
    Example("a call: the first element for the list", "[5, 6]", False, returned=5),
    Example("a call: a list around the value", "3", False, returned=[3]),
    Example("a call: a list of dicts as JSON has it", '[{"1": 2}, {"3": 4}]', True, returned=[{"1": 2}, {"3": 4}]),
    Example("a call: the first dict for the list", '[{"1": 2}, {"3": 4}]', False, returned={1: 2}),
]
