"""A problem on its way from a source's row to the normal form, and what readers share."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from environments.dataset.call_results import MAX_DIGITS, dump, readings
from environments.dataset.drop_reasons import Dropped
from environments.dataset.wrappers import program

Test = dict[str, str]


@dataclass(frozen=True)
class Row:
    """One problem of a source.

    `readings` are the same tests with the results of calls read in other ways, the likelier first: sources do not say
    whether a list wraps a result or "12" is a number. A known solution decides; without one, `tests` hold.
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
    time_limit_s: float | None = None
    memory_limit_mb: float | None = None
    checker: dict[str, Any] | None = None  # where several answers are right (verifier_app.judge.checkers)
    readings: Sequence[list[Test]] = field(default=(), repr=False)


_SECONDS = {"": 1.0, "s": 1.0, "sec": 1.0, "secs": 1.0, "second": 1.0, "seconds": 1.0,
            "ms": 1e-3, "millisecond": 1e-3, "milliseconds": 1e-3, "minute": 60.0, "minutes": 60.0}  # fmt: skip
_MEGABYTES = {"": 1.0, "mb": 1.0, "mib": 1.0, "megabyte": 1.0, "megabytes": 1.0, "gb": 1024.0, "gib": 1024.0,
              "gigabyte": 1024.0, "gigabytes": 1024.0, "kb": 1 / 1024, "kib": 1 / 1024, "kilobyte": 1 / 1024,
              "kilobytes": 1 / 1024, "b": 1 / 2**20, "byte": 1 / 2**20, "bytes": 1 / 2**20}  # fmt: skip
_QUANTITY = re.compile(r"([0-9]*\.?[0-9]+)\s*([a-z]*)\.?", re.IGNORECASE)


def limits(row: dict[str, Any]) -> tuple[float | None, float | None]:
    """What a row states of its problem's limits: seconds and MB, None where it says nothing readable.

    Sources write 2, "2.0 seconds", "2000 ms" or {"seconds": 2, "nanos": 0}; 256, "256.0 megabytes" or, in a column of
    its own, bytes.
    """
    time = row.get("time_limit")
    if isinstance(time, dict):
        whole, nanos = _quantity(time.get("seconds") or 0, _SECONDS), _quantity(time.get("nanos") or 0, _SECONDS)
        time = (whole or 0.0) + (nanos or 0.0) / 1e9
    memory = _quantity(row.get("memory_limit"), _MEGABYTES)
    if memory is None and (size := _quantity(row.get("memory_limit_bytes"), _MEGABYTES)) is not None:
        memory = size / 2**20
    return _quantity(time, _SECONDS) or None, memory or None


def _quantity(value: Any, units: dict[str, float]) -> float | None:
    """A number, with the unit that text may name; None for anything else."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value) if 0 <= value < 1e15 else None
    found = _QUANTITY.fullmatch(value.strip()) if isinstance(value, str) else None
    factor = None if found is None else units.get(found[2].lower())
    return None if found is None or factor is None else float(found[1]) * factor


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
    except (json.JSONDecodeError, RecursionError):
        pass
    except ValueError:
        raise Dropped("unparsable_tests", f"{name}: an integer of more than {MAX_DIGITS} digits") from None
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


def arguments(given: Any) -> str:
    """A call's arguments, one JSON value a line: from a list of values, or from text that is so already."""
    if isinstance(given, str):
        return "\n".join(_json_line(line) for line in given.strip("\n").split("\n") if line.strip())
    if isinstance(given, list):
        return "\n".join(dump(argument) for argument in given)
    raise Dropped("unparsable_tests", f"a call's arguments are a {type(given).__name__}")


def _json_line(line: str) -> str:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        raise Dropped("unparsable_tests", f"an argument is not JSON: {line[:60]!r}") from None
    return line


def pairs(inputs: Any, outputs: Any) -> list[tuple[Any, Any]]:
    """Inputs and outputs kept in two lists."""
    if not isinstance(inputs, list) or not isinstance(outputs, list):
        raise Dropped("unparsable_tests", "inputs and outputs are not two lists")
    if len(inputs) != len(outputs):
        raise Dropped("unparsable_tests", f"{len(inputs)} inputs and {len(outputs)} outputs")
    return list(zip(inputs, outputs, strict=True))


def split_tests(
    given: list[tuple[Any, Any]], fn_name: str | None, json_text: bool = False
) -> tuple[list[Test], list[list[Test]]]:
    """Tests of the kind that `fn_name` says, and the other readings of a call's results; Dropped where there is none.

    `json_text`: the source keeps results as JSON text (see `results.readings`).
    """
    if not given:
        raise Dropped("no_tests")
    if fn_name is None:
        return stdin_tests(given), []
    inputs = [arguments(each) for each, _ in given]
    as_text = json_text or any(isinstance(each, str) for each, _ in given)
    first, *others = [
        [{"input": lines, "output": dump(value)} for lines, value in zip(inputs, values, strict=True)]
        for values in readings([wanted for _, wanted in given], as_text)
    ]
    return first, others


def function_name(value: Any) -> str | None:
    """The function to call, None for a program over stdin; Dropped for a value that is no name."""
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise Dropped("unparsable_tests", f"fn_name is a {type(value).__name__}")
    return value


def solutions(value: Any) -> list[str]:
    """Known solutions: a string, a list, or either as JSON; code fences are taken off."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = [value]
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        return []
    return [program(code) for code in value if isinstance(code, str) and code.strip()]
