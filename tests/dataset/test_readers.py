"""Readers: each format with its quirks, by value; what cannot be used says why."""

from __future__ import annotations

import base64
import json
import os
import pickle
import zlib
from typing import Any

import pytest

from environments.dataset.readers import READERS
from environments.dataset.rows import Dropped, Row
from tests.dataset.conftest import lcb_row

STDIN = [{"input": "1\n", "output": "2\n"}] * 2
CALL = [{"input": "[1, 2]\n3", "output": "6"}] * 2


def read(name: str, **row: Any) -> Row:
    return READERS[name](row)


def test_livecodebench_rows_keep_kind_date_and_private_tests() -> None:
    row = READERS["livecodebench"](lcb_row("x", "2024-09-01T10:00:00", "functional", "hard"))
    assert (row.id, row.fn_name, row.date, row.difficulty, row.platform) == (
        "x", "f", "2024-09-01T10:00:00", "hard", "leetcode",
    )  # fmt: skip
    assert row.tests == [{"input": "1", "output": "2"}, {"input": "[3]", "output": "[4]"}]
    assert row.starter_code.startswith("class Solution")


@pytest.mark.parametrize("kept", [json.dumps, repr, lambda value: value])
@pytest.mark.parametrize(("name", "column", "statement"), [
    ("deepcoder_taco", "tests", "problem"), ("taco_verified", "input_output", "question"),
])  # fmt: skip
def test_two_lists_as_json_as_a_literal_and_plain(name: str, column: str, statement: str, kept: Any) -> None:
    tests = {"inputs": ["1\n", ["1", ""]], "outputs": ["2\n", ["2", ""]]}
    row = read(name, **{statement: "s", column: kept(tests)})
    assert (row.fn_name, row.tests, row.unwrapped) == (None, STDIN, None)
    call = {"inputs": [[[1, 2], 3]] * 2, "outputs": [[6], "[6]"], "fn_name": "f"}
    row = read(name, **{statement: "s", column: kept(call)})
    assert (row.fn_name, row.unwrapped) == ("f", CALL)
    assert row.tests == [{"input": "[1, 2]\n3", "output": "[6]"}] * 2


def test_outputs_that_are_no_lists_of_one_value_have_one_form() -> None:
    call = {"inputs": [[1], [2]], "outputs": [[1], [1, 2]], "fn_name": "f"}
    assert read("deepcoder_taco", problem="s", tests=call).unwrapped is None


def test_primeintellect_cases_are_programs_or_calls() -> None:
    cases = [{"type": "stdin_stdout", "input": "1\n", "output": "2\n"}] * 2
    assert read("deepcoder_primeintellect", problem="s", tests=json.dumps(cases)).tests == STDIN
    calls = [{"type": "function_call", "fn_name": "f", "input": [[1, 2], 3], "output": [6]}] * 2
    row = read("deepcoder_primeintellect", problem="s", tests=calls)
    assert (row.fn_name, row.unwrapped) == ("f", CALL)


def test_a_list_that_a_livecodebench_function_returns_stays_a_list() -> None:
    tests = [{"input": "3", "output": "[3]", "testtype": "functional"}]
    row = read("deepcoder_lcbv5", problem="s", tests=json.dumps(tests), metadata='{"func_name": "f"}')
    assert (row.fn_name, row.tests, row.unwrapped) == ("f", [{"input": "3", "output": "[3]"}], None)


@pytest.mark.parametrize("kept", [json.dumps, repr])
def test_synthetic1_verification_info_is_json_or_a_literal(kept: Any) -> None:
    info = {"language": "python", "test_cases": [{"type": "stdin_stdout", "input": "1\n", "output": "2\n"}] * 2}
    row = read("synthetic1", task_type="verifiable_code", prompt="s", verification_info=kept(info),
               gold_standard_solution="text\n```python\nprint(2)\n```\n")  # fmt: skip
    assert (row.tests, list(row.solutions)) == (STDIN, ["print(2)\n"])


@pytest.mark.parametrize("name", [None, "none"])
def test_rlvr_without_a_function_is_stdin(name: str | None) -> None:
    tests = {"input": ["1\n", "1\n"], "output": ["2\n", "2\n"], "fn_name": name}
    assert read("rlvr", problem="s", tests=json.dumps(tests)).tests == STDIN
    assert read("rlvr", problem="s", tests=tests | {"fn_name": "f", "input": ["3", "4"]}).fn_name == "f"
    assert read("rlvr", problem="s", tests=STDIN, fn_name=name).tests == STDIN


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch /tmp/evil",)


PACKED_EVIL = base64.b64encode(zlib.compress(pickle.dumps(Evil()))).decode()


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("livecodebench", lcb_row("x", "2024-09-01", private_test_cases=PACKED_EVIL), "unparsable_tests"),
        ("livecodebench", lcb_row("x", "2024-09-01", public_test_cases="[]", private_test_cases="[]"), "no_tests"),
        ("deepcoder_taco", {"problem": "s", "tests": "__import__('os').system('true')"}, "unparsable_tests"),
        ("deepcoder_taco", {"problem": "s", "tests": "[" * 100_000}, "unparsable_tests"),
        ("deepcoder_taco", {"problem": "s", "tests": {"inputs": ["1"], "outputs": []}}, "unparsable_tests"),
        ("deepcoder_taco", {"problem": "s", "tests": {"inputs": [{"a": 1}], "outputs": ["1"]}}, "unparsable_tests"),
        ("deepcoder_taco", {"problem": "s", "tests": {"inputs": [], "outputs": []}}, "no_tests"),
        ("deepcoder_taco", {"problem": "s"}, "missing_column"),
        ("deepcoder_taco", {"tests": {"inputs": ["1"], "outputs": ["1"]}}, "missing_column"),
        ("deepcoder_primeintellect", {"problem": "s", "tests": [{"type": "function_call", "input": [1], "output": 1}]},
         "missing_column"),
        ("deepcoder_codeforces", {"problem": "s", "tests": "[1]"}, "unparsable_tests"),
        ("synthetic1", {"task_type": "verifiable_math", "prompt": "s", "verification_info": "{}"}, "not_code"),
        ("synthetic1", {"prompt": "s", "verification_info": {"language": "rust", "test_cases": []}}, "not_python"),
        ("rlvr", {"problem": "s", "tests": {"input": ["x"], "output": ["1"], "fn_name": "f"}}, "unparsable_tests"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_says_why(name: str, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(Dropped) as caught:
        READERS[name](row)
    assert caught.value.reason == reason
    assert not os.path.exists("/tmp/evil")
