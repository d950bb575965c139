"""A problem on its way from a source's row to the normal form, and what readers share."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Test = dict[str, str]
_FENCE = re.compile(r"```(?:python|py|Python)?[ \t]*\n(.*?)```", re.DOTALL)


class Dropped(Exception):
    """A row that is left out. `reason` is counted, `detail` says more about this one."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Row:
    """One problem of a source.

    `unwrapped` are the same tests with every one-element list that an output is taken out of its list: some sources
    wrap the results of calls. Which of the two is meant, a known solution decides.
    """

    statement: str
    tests: list[Test]
    fn_name: str | None = None
    starter_code: str = ""
    solutions: Sequence[str] = ()
    id: str | None = None  # None: numbered by the builder
    difficulty: str | None = None
    date: str | None = None
    platform: str | None = None
    unwrapped: list[Test] | None = field(default=None, repr=False)


def need(row: dict[str, Any], *names: str) -> Any:
    """The first of these columns that has a value; Dropped where none has."""
    for name in names:
        if row.get(name) not in (None, ""):
            return row[name]
    raise Dropped("missing_column", " or ".join(names))


def literal(value: Any, name: str) -> Any:
    """A value that a source keeps as JSON, or as a Python literal, or as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise Dropped(
            "unparsable_tests", f"{name}: neither JSON nor a Python literal ({type(error).__name__})"
        ) from None


def text(value: Any) -> str:
    """What stdin or stdout holds: a string, or a list of lines."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        return "\n".join(value)
    if isinstance(value, (list, dict)) or value is None:
        raise Dropped("unparsable_tests", f"text is a {type(value).__name__}")
    return str(value)


def stdin_tests(pairs: Sequence[tuple[Any, Any]]) -> list[Test]:
    """Tests over stdin and stdout."""
    return [{"input": text(given), "output": text(wanted)} for given, wanted in pairs]


def call_tests(pairs: Sequence[tuple[Any, Any]]) -> tuple[list[Test], list[Test] | None]:
    """Tests of a function, and the same with unwrapped outputs where every output is a list of one value.

    An input is a list of arguments, or text with one JSON value a line; an output is a value, or JSON text.
    """
    tests, unwrapped = [], []
    for given, wanted in pairs:
        if isinstance(given, str):
            lines = [_json_line(line) for line in given.strip("\n").split("\n")]
        elif isinstance(given, list):
            lines = [_dump(argument) for argument in given]
        else:
            raise Dropped("unparsable_tests", f"a call's arguments are a {type(given).__name__}")
        value = _value(wanted)
        tests.append({"input": "\n".join(lines), "output": _dump(value)})
        if isinstance(value, list) and len(value) == 1:
            unwrapped.append({"input": "\n".join(lines), "output": _dump(value[0])})
    return tests, unwrapped if tests and len(unwrapped) == len(tests) else None


def _json_line(line: str) -> str:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        raise Dropped("unparsable_tests", f"an argument is not JSON: {line[:60]!r}") from None
    return line


def _value(wanted: Any) -> Any:
    if not isinstance(wanted, str):
        return wanted
    try:
        return json.loads(wanted)
    except (ValueError, RecursionError):
        return wanted  # a plain string, the value itself


def _dump(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        raise Dropped("unparsable_tests", "a value that JSON cannot hold") from None


def pairs(inputs: Any, outputs: Any) -> list[tuple[Any, Any]]:
    """Inputs and outputs kept in two lists."""
    if not isinstance(inputs, list) or not isinstance(outputs, list):
        raise Dropped("unparsable_tests", "inputs and outputs are not two lists")
    if len(inputs) != len(outputs):
        raise Dropped("unparsable_tests", f"{len(inputs)} inputs and {len(outputs)} outputs")
    return list(zip(inputs, outputs, strict=True))


def split_tests(given: list[tuple[Any, Any]], fn_name: str | None) -> tuple[list[Test], list[Test] | None]:
    """Tests of the kind that `fn_name` says; Dropped where there is none."""
    if not given:
        raise Dropped("no_tests")
    if fn_name is None:
        return stdin_tests(given), None
    return call_tests(given)


def solutions(value: Any) -> list[str]:
    """Known solutions: a string, a list, or either as JSON; code fences are taken off."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            value = json.loads(value)
        except ValueError:
            value = [value]
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        return []
    found = []
    for code in value:
        if isinstance(code, str) and code.strip():
            fenced = _FENCE.findall(code)
            found.append(fenced[-1] if fenced else code)
    return found
