"""Malformed requests: one clear JudgeError that names the field, before any work starts."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from verifier_app.judge import JudgeError, TestStore
from verifier_app.judge.protocol import parse_request

TESTS = [{"input": "1\n", "output": "1\n"}]
GOOD = {"code": "print(input())", "tests": TESTS}
SHA = "0" * 64


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"code": None}, "code"),
        ({"code": 3}, "code"),
        ({"code": "x" * (5 << 20)}, "code"),
        ({"fn_name": "not a name"}, "fn_name"),
        ({"fn_name": 1}, "fn_name"),
        ({"tests": []}, "tests"),
        ({"tests": None}, "tests"),
        ({"tests": "1"}, "tests"),
        ({"tests": [{"input": "1"}]}, "tests[0]"),
        ({"tests": [*TESTS, {"input": "1", "output": 1}]}, "tests[1].output"),
        ({"tests": [{"input": b"1", "output": "1"}]}, "tests[0].input"),
        ({"tests": [{"input": "1", "output": "1", "kind": "x"}]}, "tests[0]"),
        ({"tests_ref": {"sha256": SHA, "count": 1}}, "tests"),
        ({"tests": None, "tests_ref": {"sha256": "../../x", "count": 1}}, "tests_ref.sha256"),
        ({"tests": None, "tests_ref": {"sha256": SHA, "count": 0}}, "tests_ref.count"),
        ({"tests": None, "tests_ref": SHA}, "tests_ref"),
        ({"order": [1]}, "order"),
        ({"order": [0, 0]}, "order"),
        ({"order": [False]}, "order"),
        ({"order": "0"}, "order"),
        ({"time_limit_s": 0}, "time_limit_s"),
        ({"time_limit_s": "15"}, "time_limit_s"),
        ({"time_limit_s": float("nan")}, "time_limit_s"),
        ({"time_limit_s": True}, "time_limit_s"),
        ({"memory_limit_mb": 1}, "memory_limit_mb"),
        ({"deadline_s": -1}, "deadline_s"),
        ({"stop_at_first_failure": 1}, "stop_at_first_failure"),
        ({"decimal_tolerance": 2}, "decimal_tolerance"),
        ({"timeout": 3}, "timeout"),
        ({"fn_name": "f", "tests": [{"input": "{", "output": "1"}]}, "tests[0].input"),
        ({"fn_name": "f", "tests": [{"input": "1", "output": ""}]}, "tests[0].output"),
    ],
)  # fmt: skip
def test_the_error_names_the_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(JudgeError) as caught:
        parse_request({**GOOD, **changes}, None)
    assert caught.value.kind == "bad_request"
    assert caught.value.message.startswith(f"{field}: ") or (
        field == "tests" and caught.value.message.startswith("tests ")
    )
    assert ";" in caught.value.message, "the message says what to do"


@pytest.mark.parametrize("request_", [None, [], "x", {}, {"tests": TESTS}])
def test_what_is_no_request_is_a_bad_request(request_: Any) -> None:
    with pytest.raises(JudgeError, match="bad_request"):
        parse_request(request_, None)


def test_a_missing_set_asks_for_an_upload(tmp_path: Path) -> None:
    request = {"code": "", "tests_ref": {"sha256": SHA, "count": 1}}
    for store in (None, TestStore(tmp_path)):
        with pytest.raises(JudgeError) as caught:
            parse_request(request, store)
        assert caught.value.kind == "test_set_missing"


def test_a_stored_set_comes_back_by_its_hash(tmp_path: Path) -> None:
    store = TestStore(tmp_path / "sets")
    reference = store.put(TESTS)
    assert store.put(TESTS) == reference
    assert TestStore(tmp_path / "sets").get(reference["sha256"], 1).outputs == ["1\n"]
    assert (tmp_path / "sets").stat().st_mode & 0o077 == 0


def test_a_changed_file_is_a_corrupt_set(tmp_path: Path) -> None:
    store = TestStore(tmp_path)
    reference = store.put(TESTS)
    store.path(reference["sha256"]).write_text("[]")
    with pytest.raises(JudgeError, match="test_set_corrupt"):
        store.get(reference["sha256"], 1)


def test_a_count_that_is_not_the_sets_is_refused(tmp_path: Path) -> None:
    store = TestStore(tmp_path)
    with pytest.raises(JudgeError, match=r"tests_ref\.count"):
        store.get(store.put(TESTS)["sha256"], 2)


def test_the_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(JudgeError("judge_died", "twice")))
    assert (error.kind, str(error)) == ("judge_died", "judge_died: twice")
