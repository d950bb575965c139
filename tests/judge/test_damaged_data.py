"""Data that is damaged, hostile or at a limit: a set, a returned value, a frame, a language that cannot be loaded."""

from __future__ import annotations

import hashlib
import io
import json
import numbers
import types
from collections import UserDict
from decimal import Decimal
from fractions import Fraction
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from sortedcontainers import SortedList

from verifier_app.judge import Judge, JudgeError, TestStore, compare, store, value_codec
from verifier_app.judge.canonical import NOTHING, plain
from verifier_app.judge.judging import default_store
from verifier_app.judge.languages import registry
from verifier_app.judge.languages.language import Language
from verifier_app.judge.protocol import TestSet
from verifier_app.judge.value_codec import OtherValue, as_json, decode, encode
from verifier_app.judge.worker import read_frame

TESTS = [{"input": "1", "output": "2"}]


# -- stored sets ---------------------------------------------------------------------------------------------------


def test_a_set_that_cannot_be_read_is_missing_with_the_reason(tmp_path: Path) -> None:
    sets = TestStore(tmp_path)
    reference = sets.put(TESTS)
    path = sets.path(reference["sha256"])
    path.unlink()
    path.mkdir()
    with pytest.raises(JudgeError) as caught:
        sets.get(sha=reference["sha256"], count=1)
    assert (caught.value.kind, caught.value.message) == (
        "test_set_missing",
        f"{reference['sha256']}: cannot be read: Is a directory",
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"[" * 100_000, "no test set (is not JSON)"),
        (b"[{]", "no test set (is not JSON)"),
        (b'[{"input": 1, "output": "2"}]', "no test set (tests[0].input: is int; give a string)"),
        (b'[{"input": "\\ud800", "output": "2"}]', "no test set (tests[0].input: has a lone surrogate; give text)"),
    ],
)
def test_a_file_whose_hash_fits_is_still_no_set(tmp_path: Path, data: bytes, reason: str) -> None:
    sets = TestStore(tmp_path)
    sha = hashlib.sha256(data).hexdigest()
    sets.put_bytes(sha, data)
    with pytest.raises(JudgeError) as caught:
        sets.get(sha, 1)
    assert caught.value.kind == "test_set_corrupt"
    assert reason in caught.value.message


def test_a_store_keeps_the_sets_used_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "KEPT_SETS", 2)
    sets = TestStore(tmp_path)
    a, b, c = (sets.put([{"input": name, "output": name}])["sha256"] for name in "abc")
    for sha in (a, b, a, c):
        assert len(sets.get(sha, 1)) == 1
    assert list(sets._kept) == [a, c]


def test_the_default_store_follows_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VERIFIER_TESTS_DIR", raising=False)
    assert default_store() is None
    for name in ("one", "two"):
        monkeypatch.setenv("VERIFIER_TESTS_DIR", str(tmp_path / name))
        found = default_store()
        assert found is not None
        assert found.folder == tmp_path / name
        assert default_store() is found


# -- values that a program returns ---------------------------------------------------------------------------------


class Registered:
    """A number of a package that registers its types."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __int__(self) -> int:
        return int(self.value)

    def __float__(self) -> float:
        return float(self.value)


class Whole(Registered):
    pass


class Real(Registered):
    pass


numbers.Integral.register(Whole)
numbers.Real.register(Real)


class Raises(UserDict):  # type: ignore[type-arg]
    def items(self) -> Any:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (SortedList([3, 1, 2]), [1, 2, 3]),
        (types.MappingProxyType({"a": 1}), {"a": 1}),
        (Whole(7), 7),
        (Real(0.5), 0.5),
        (Fraction(1, 4), 0.25),
        (Decimal("1e5000"), 10**5000),
        (Decimal("Infinity"), float("inf")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_that_equals_a_plain_one_is_that_one(value: Any, expected: Any) -> None:
    found = plain(value)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    "value",
    [
        *(Raises(a=1), Decimal("1e5001"), Decimal("-1e-5001"), Decimal("sNaN"), Fraction(1, 3)),
        *(Fraction(10**400, 3), 1j, object()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_that_equals_no_plain_one_is_nothing(value: Any) -> None:
    assert plain(value) is NOTHING


class Text(str):
    def __str__(self) -> str:
        return "forged"


class Number(int):
    def __int__(self) -> int:
        return 99


class Half(float):
    def __float__(self) -> float:
        return 9.5


def test_subclasses_of_scalars_arrive_with_their_contents_and_not_with_what_they_say() -> None:
    assert decode(encode([Text("true"), Number(7), Half(0.5)])) == ["true", 7, 0.5]


def test_a_value_nested_beyond_the_limit_is_unprintable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(value_codec, "MAX_DEPTH", 50)
    deep: Any = []
    for _ in range(60):
        deep = [deep]
    assert json.loads(encode(deep)) == {"x": "unprintable list"}


def test_long_data_is_only_read_where_it_may_equal_what_is_expected() -> None:
    sent = encode([1] * 100_000)
    other = decode(sent, [1])
    assert isinstance(other, OtherValue)
    assert repr(other).endswith(f", {len(sent)} bytes>")
    assert other != [1]
    assert decode(sent, [1] * 100_000) == [1] * 100_000
    # twice as long as the expected value's own spelling: only a number is spelled in two ways
    zeros = ("[" + ", ".join(["1.000000000"] * 30_000) + "]").encode()
    assert decode(zeros, [1] * 30_000) == [1] * 30_000
    assert isinstance(decode(zeros, [1] * 29_999), OtherValue)


@pytest.mark.parametrize(
    ("sent", "text"),
    [
        (b'{"a": 5}', "5"),
        (b'{"t": [1, {"d": [["k", {"a": 0.5}]]}]}', '[1,{"k":0.5}]'),
        (b'{"i": "-0x' + b"f" * 600 + b'"}', str(-(16**600 - 1))),
        (b'{"x": "set"}', None),
        (b'{"d": [[1, 2]]}', None),
    ],
)
def test_a_value_as_a_checker_reads_it(sent: bytes, text: str | None) -> None:
    assert as_json(decode(sent)) == text


def test_a_long_int_that_the_reader_keeps_as_a_decimal_is_written_in_full() -> None:
    assert as_json([Decimal("1" + "0" * 30)]) == "[1" + "0" * 30 + "]"


FORGED = "import os\ndef solve(n):\n    os.write(3, {!r})\n    os._exit(0)\n"


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (b'{"t": 1}', "the returned value cannot be read: unknown tag 't', or a body that is not its own"),
        (b"2 2", "the returned value cannot be read: not one JSON value (JSONDecodeError)"),
        (b'{"a": 2, "i": "0x2"}', "the returned value cannot be read: an object with other than one tag"),
    ],
)
@pytest.mark.parametrize("checker", [None, {"name": "any_order_items"}])
def test_a_program_that_writes_the_result_itself_is_read_as_data(
    judge: Judge, written: bytes, message: str, checker: Any
) -> None:
    verdict = judge.verify(
        {"code": FORGED.format(written), "fn_name": "solve", "tests": [{"input": "1", "output": "2"}]}
        | {"checker": checker, "keep_output_bytes": 100}
    )
    assert (verdict["status"], verdict["message"], verdict["tests"][0]["output"]) == ("wrong_answer", message, "")


@pytest.fixture(scope="module")
def judge() -> Any:
    with Judge() as judge:
        yield judge


@pytest.mark.parametrize(
    ("got", "expected", "equal"),
    [
        ({"k": [1, {"n": 2.0000001}]}, {"k": [1, {"n": 2.0}]}, True),
        ({"k": [1, {"n": 2.1}]}, {"k": [1, {"n": 2.0}]}, False),
        ({"k": 1, "m": 1}, {"k": 1, "n": 1}, False),
        ({"k": 1}, [1], False),
    ],
)
def test_a_dict_as_it_came_compares_within_the_tolerance(got: Any, expected: Any, equal: bool) -> None:
    difference = compare.value_difference(decode(encode(got)), expected, tolerance=1e-3)
    assert (difference is None) is equal


def test_a_dict_with_keys_that_are_no_text_equals_none_that_json_has() -> None:
    came = decode(b'{"d": [[1, 2]]}')
    assert compare.value_difference([came], [{"1": 2}], deep=True) is not None
    assert compare.value_difference([decode(b'{"d": [["1", 2]]}')], [{"1": 2}], deep=True) is None


# -- languages, frames, requests -----------------------------------------------------------------------------------


class Made(Language):
    name = "made"


def broken() -> Language:
    raise RuntimeError("no licence")


def test_an_installed_language_is_loaded_once_and_one_that_fails_names_its_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = __name__
    entries = {
        name: EntryPoint(name, value, registry.GROUP)
        for name, value in {
            "made": f"{here}:Made", "broken": f"{here}:broken", "gone": "no_such_package:Language"
        }.items()
    }  # fmt: skip
    monkeypatch.setattr(registry, "_installed", lambda: entries)
    found = registry.find("made")
    assert type(found) is Made
    assert registry.find("made") is found
    assert registry.known() == ["python", "cpp", "broken", "gone", "made"]
    for name, reason in (("broken", "RuntimeError: no licence"), ("gone", "ModuleNotFoundError: No module named")):
        with pytest.raises(JudgeError) as caught:
            registry.find(name)
        assert caught.value.kind == "language_missing"
        assert reason in caught.value.message
        assert "fix or remove its package" in caught.value.message


def test_what_a_language_leaves_out_has_a_plain_answer() -> None:
    assert Made().interrupted("killed") is False
    assert Made().out_of_memory(1, "MemoryError") is False
    assert Made().complaint("", "") == "the compiler refuses this source"
    assert Made().complaint("", "line 3: no") == "line 3: no"


@pytest.mark.parametrize("header", [b"", b"\0\0"])
def test_a_stream_that_ends_within_a_header_is_at_its_end(header: bytes) -> None:
    assert read_frame(io.BytesIO(header)) is None


def test_programs_for_one_set_must_be_a_list(judge: Judge, tmp_path: Path) -> None:
    reference = TestStore(tmp_path).put(TESTS)
    with pytest.raises(JudgeError, match="codes: is str; give a list of sources"):
        judge.verify_many(reference, "print(2)", TestStore(tmp_path))  # type: ignore[arg-type]


def test_a_value_that_cannot_be_shown_is_named_by_its_type() -> None:
    class Shy:
        def __repr__(self) -> str:
            raise RecursionError

    with pytest.raises(JudgeError, match="is of type Shy; give one of"):
        registry.find(Shy())
    assert TestSet(TESTS, "tests").values() == [2]
