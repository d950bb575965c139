"""Problems in the project's normal form, and the reader of LiveCodeBench rows.

A file holds one JSON object a line: either the normal form (`Problem`'s fields) or a row of
livecodebench/code_generation_lite (`question_content`, `public_test_cases`, ...); both may be mixed.

    ValueError
    └── ProblemError    a row that cannot be used; the message names the file, the line and the problem's id
        └── NoTests     a row without a test
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import pickle
import zlib
from collections.abc import Iterable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from environments.errors import ConfigError

MAX_UNPACKED = 1 << 30
"""Bytes of a problem's private tests: a few hundred packed ones could fill any memory."""


class ProblemError(ConfigError):
    """A problem that cannot be used; the message names where it stands and its id."""


class NoTests(ProblemError):
    """A problem without a single test."""


class TestCase(BaseModel):
    """One test. For a function problem `input` is one JSON value a line, one per positional argument."""

    __test__ = False  # the name is LiveCodeBench's; pytest must not collect it
    model_config = ConfigDict(extra="forbid", frozen=True)

    input: str = Field(description="What stdin holds, or the arguments as one JSON value a line.")
    output: str = Field(description="The expected stdout, or the expected return value as one JSON value.")


class Problem(BaseModel):
    """A problem with its tests; the tests are the judge's and never part of a prompt."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(min_length=1, description="Unique within a file.")
    source: str = Field(description="Where it comes from, for example livecodebench or warmup.")
    kind: Literal["stdin", "function"] = Field(description="A program over stdin and stdout, or a call.")
    fn_name: str | None = Field(default=None, description="The function or method to call; only for function.")
    statement: str = Field(min_length=1, description="The text that the model reads.")
    starter_code: str = Field(default="", description="Code that the answer starts from; empty for stdin.")
    difficulty: str | None = Field(default=None, description="easy, medium or hard where it is known.")
    date: str | None = Field(default=None, description="The contest's date in ISO form, without a zone.")
    platform: str | None = Field(default=None, description="leetcode, codeforces or atcoder where known.")
    template: str | None = Field(default=None, description="The warm-up template it was made from, else null.")
    tests: list[TestCase] = Field(min_length=1, description="At least one; all of the problem's kind.")

    @model_validator(mode="after")
    def _call_and_tests_agree(self) -> Problem:
        if self.kind == "stdin":
            if self.fn_name is not None:
                raise ValueError(f"fn_name = {self.fn_name!r} with kind stdin: set it to null or kind to function")
            return self
        if not self.fn_name or not self.fn_name.isidentifier():
            raise ValueError(f"fn_name = {self.fn_name!r} with kind function: give the function's name")
        for index, test in enumerate(self.tests):
            for part, lines in (("input", test.input.strip("\n").split("\n")), ("output", [test.output])):
                try:
                    for line in lines:
                        # parse_int: only the form is looked at, and an integer may have any number of digits
                        if line.strip() or part == "output":
                            json.loads(line, parse_int=str)
                except (ValueError, RecursionError):
                    raise ValueError(
                        f"tests.{index}.{part} = {getattr(test, part)[:60]!r}: "
                        "a function's arguments and result are JSON, one value a line"
                    ) from None
        return self


def load_problems(path: str | Path) -> list[Problem]:
    """The problems of a JSONL file in its order; normal form and LiveCodeBench rows are told apart by line.

    A split that `atropos data build` made (its folder or problems.parquet) is read with its test sets left on disk.

    Raises:
        ProblemError: a file that is missing or empty, a line that is not a JSON object, a problem without
            tests, an unknown kind or field, an id that occurs twice.
    """
    path = Path(path)
    if path.is_dir() or path.suffix == ".parquet":
        from environments.dataset.stored import is_built, load_built

        if not is_built(path):
            raise ProblemError(
                f"{path}: a folder without problems.parquet. Give a split that `atropos data build` made."
            )
        return load_built(path)
    try:
        stream = path.open(encoding="utf-8-sig")
    except OSError as error:
        raise ProblemError(f"{path}: cannot be read ({error.strerror}). Give the path of a JSONL file.") from None
    problems: list[Problem] = []
    seen: dict[str, int] = {}
    with stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            problem = _parse(line, f"{path}:{number}")
            if problem.id in seen:
                raise ProblemError(
                    f"{path}:{number}: problem {problem.id}: the id is on line {seen[problem.id]} already. "
                    "Give every problem an id of its own."
                )
            seen[problem.id] = number
            problems.append(problem)
    if not problems:
        raise ProblemError(f"{path}: holds no problem. Give a JSONL file with one problem a line.")
    return problems


def save_problems(problems: Iterable[Problem], path: str | Path) -> None:
    """Writes the normal form, one JSON object a line; equal problems give equal bytes."""
    lines = [json.dumps(problem.model_dump(), ensure_ascii=False) + "\n" for problem in problems]
    Path(path).write_text("".join(lines), encoding="utf-8", newline="\n")


def from_livecodebench(row: dict[str, Any]) -> Problem:
    """A row of livecodebench/code_generation_lite: public tests first, then private ones.

    Raises:
        ProblemError: a missing field, tests of two kinds, private tests that do not decode.
    """
    name = str(row.get("question_id", "without question_id"))
    missing = [key for key in ("question_id", "question_content", "public_test_cases") if key not in row]
    if missing:
        _refuse(name, f"{', '.join(missing)}: missing, and a LiveCodeBench row needs it")
    public = _json(row["public_test_cases"], name, "public_test_cases")
    tests = public + _private_tests(row.get("private_test_cases") or "[]", name)
    if not all(isinstance(test, dict) and {"input", "output", "testtype"} <= test.keys() for test in tests):
        _refuse(name, "public_test_cases, private_test_cases: every test needs input, output and testtype")
    kinds = sorted({str(test["testtype"]) for test in tests})
    if not kinds:
        raise NoTests(f"problem {name}: public_test_cases, private_test_cases: no tests. Leave the problem out.")
    if kinds not in (["stdin"], ["functional"]):
        _refuse(name, f"testtype = {', '.join(kinds)}: need all stdin or all functional")
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
    return _validate(fields, name)


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
        _refuse(name, f"contest_date = {str(value)[:60]!r}: not a date in ISO form ({error})")


def _parse(line: str, where: str) -> Problem:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ProblemError(f"{where}: not JSON ({error}). Need one object a line.") from None
    if not isinstance(row, dict):
        raise ProblemError(f"{where}: holds a {type(row).__name__}, need one object a line.")
    try:
        if "question_content" in row or "question_id" in row:
            return from_livecodebench(row)
        return _validate(row, str(row.get("id", "without id")))
    except ProblemError as error:
        raise ProblemError(f"{where}: {error}") from None


def _validate(fields: dict[str, Any], name: str) -> Problem:
    try:
        return Problem.model_validate(fields)
    except ValidationError as error:
        reasons = []
        for item in error.errors():
            field = ".".join(str(part) for part in item["loc"])
            value = "" if item["type"] == "missing" or not field else f" = {_shown(item['input'])}"
            message = item["msg"].removeprefix("Value error, ")
            reasons.append(f"{field}{value}: {message}" if field else message)
        _refuse(name, "; ".join(reasons))


def _shown(value: Any) -> str:
    """The beginning of a value as what it is: a list is no text that looks like one."""
    return repr(value[:60]) if isinstance(value, str) else repr(value)[:60]


def _refuse(name: str, reason: str) -> NoReturn:
    raise ProblemError(f"problem {name}: {reason}.") from None


def _json(value: Any, name: str, field: str) -> Any:
    """LiveCodeBench keeps lists and objects as JSON strings; other stores of its rows unpack them."""
    want = dict if field == "metadata" else list
    try:
        loaded = json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        _refuse(name, f"{field}: not JSON ({error})")
    if not isinstance(loaded, want):
        _refuse(name, f"{field}: holds a {type(loaded).__name__}, need a {want.__name__}")
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
        _refuse(name, f"{field}: neither JSON nor base64 of zlib of a pickled string ({error})")
    if not isinstance(text, str):
        _refuse(name, f"{field}: the pickle holds a {type(text).__name__}, need a string of JSON")
    return list(_json(text, name, field))
