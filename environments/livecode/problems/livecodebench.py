"""Rows of livecodebench/code_generation_lite, as problems in the normal form."""

from __future__ import annotations

import base64
import binascii
import io
import json
import pickle
import zlib
from datetime import UTC, date, datetime
from typing import Any, NoReturn

from environments.livecode.problems.problem import NoTests, Problem, refuse, validated

MAX_UNPACKED = 1 << 30
"""Bytes of a problem's private tests: a few hundred packed ones could fill any memory."""


def from_livecodebench(row: dict[str, Any]) -> Problem:
    """A row of livecodebench/code_generation_lite: public tests first, then private ones.

    Raises:
        ProblemError: a missing field, tests of two kinds, private tests that do not decode.
    """
    name = str(row.get("question_id", "without question_id"))
    missing = [key for key in ("question_id", "question_content", "public_test_cases") if key not in row]
    if missing:
        refuse(name, f"{', '.join(missing)}: missing, and a LiveCodeBench row needs it")
    public = _json(row["public_test_cases"], name, "public_test_cases")
    tests = public + _private_tests(row.get("private_test_cases") or "[]", name)
    if not all(isinstance(test, dict) and {"input", "output", "testtype"} <= test.keys() for test in tests):
        refuse(name, "public_test_cases, private_test_cases: every test needs input, output and testtype")
    kinds = sorted({str(test["testtype"]) for test in tests})
    if not kinds:
        raise NoTests(f"problem {name}: public_test_cases, private_test_cases: no tests. Leave the problem out.")
    if kinds not in (["stdin"], ["functional"]):
        refuse(name, f"testtype = {', '.join(kinds)}: need all stdin or all functional")
    metadata = _json(row.get("metadata") or "{}", name, "metadata")
    call = kinds == ["functional"]
    fields = {
        "id": name,
        "source": "livecodebench",
        "kind": "function" if call else "stdin",
        "fn_name": metadata.get("func_name") if call else None,
        "statement": row["question_content"],
        "starter_code": row.get("starter_code") or "",
        "difficulty": row.get("difficulty"),
        "date": _date(row.get("contest_date"), name),
        "platform": row.get("platform"),
        "tests": [{"input": test["input"], "output": test["output"]} for test in tests],
    }
    return validated(fields, name)


def iso_date(value: Any) -> str | None:
    """A date in ISO form without a zone (UTC), None for an empty one.

    Stores of LiveCodeBench's rows keep it as text, as a date or datetime, or as epoch milliseconds.

    Raises:
        ValueError: text that is no ISO date, a value of another type.
    """
    if value is None or value == "":
        return None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = value / 1000 if abs(value) > 1e11 else value
        value = datetime.fromtimestamp(seconds, UTC)
    elif isinstance(value, str):
        text = value.strip()
        value = datetime.fromisoformat(text)
        if value.tzinfo is None and " " not in text:
            return text
    if isinstance(value, datetime):
        return (value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo else value).isoformat()
    if isinstance(value, date):
        return value.isoformat()
    raise ValueError(f"{value!r} is no date")


def _date(value: Any, name: str) -> str | None:
    try:
        return iso_date(value)
    except (ValueError, OverflowError, OSError) as error:
        refuse(name, f"contest_date = {str(value)[:60]!r}: not a date in ISO form ({error})")


def _json(value: Any, name: str, field: str) -> Any:
    """LiveCodeBench keeps lists and objects as JSON strings; other stores of its rows unpack them."""
    want = dict if field == "metadata" else list
    try:
        loaded = json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        refuse(name, f"{field}: not JSON ({error})")
    if not isinstance(loaded, want):
        refuse(name, f"{field}: holds a {type(loaded).__name__}, need a {want.__name__}")
    return loaded


_UNDECODABLE = (
    binascii.Error,
    zlib.error,
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    AttributeError,
    IndexError,
    KeyError,
    OverflowError,
)  # what damaged bytes make the decoder, the inflater and the unpickler raise


class _NoClasses(pickle.Unpickler):
    """Unpickling a class or function runs code of whoever wrote the row: plain values only."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"{module}.{name} refused: only plain text is unpickled")


def _private_tests(value: Any, name: str) -> list[Any]:
    """Private tests are JSON, or base64 over zlib over a pickle of one string that is JSON."""
    field = "private_test_cases"
    if not isinstance(value, str) or value.lstrip()[:1] in ("[", ""):
        return list(_json(value, name, field))
    try:
        inflater = zlib.decompressobj()
        packed = inflater.decompress(base64.b64decode(value, validate=True), MAX_UNPACKED)
        if not inflater.eof:
            raise zlib.error(f"cut off, or more than {MAX_UNPACKED} bytes unpacked")
        text = _NoClasses(io.BytesIO(packed)).load()
    except _UNDECODABLE as error:
        refuse(name, f"{field}: neither JSON nor base64 of zlib of a pickled string ({error})")
    if not isinstance(text, str):
        refuse(name, f"{field}: the pickle holds a {type(text).__name__}, need a string of JSON")
    return list(_json(text, name, field))
