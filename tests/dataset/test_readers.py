"""Readers: each format with its quirks, by value; what cannot be used says why."""

from __future__ import annotations

import base64
import copy
import datetime
import json
import os
import pickle
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from environments.dataset.call_results import MAX_DIGITS
from environments.dataset.drop_reasons import Dropped
from environments.dataset.readers import READERS, read_row
from environments.dataset.rows import Row
from environments.livecode.problems.problem import Problem
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
    assert (row.fn_name, row.tests, row.readings) == (None, STDIN, [])
    call = {"inputs": [[[1, 2], 3]] * 2, "outputs": [[6], "[6]"], "fn_name": "f"}
    row = read(name, **{statement: "s", column: kept(call)})
    assert (row.fn_name, row.tests) == ("f", CALL)
    assert [{"input": "[1, 2]\n3", "output": "[6]"}] * 2 in row.readings


def test_primeintellect_cases_are_programs_or_calls() -> None:
    cases = [{"type": "stdin_stdout", "input": "1\n", "output": "2\n"}] * 2
    assert read("deepcoder_primeintellect", problem="s", tests=json.dumps(cases)).tests == STDIN
    calls = [{"type": "function_call", "fn_name": "f", "input": [[1, 2], 3], "output": [6]}] * 2
    row = read("deepcoder_primeintellect", problem="s", tests=calls)
    assert (row.fn_name, row.tests) == ("f", CALL)


def test_a_list_that_a_livecodebench_function_returns_stays_a_list() -> None:
    tests = [{"input": "3", "output": "[3]", "testtype": "functional"}]
    row = read("deepcoder_lcbv5", problem="s", tests=json.dumps(tests), metadata='{"func_name": "f"}')
    assert (row.fn_name, row.tests, row.readings) == ("f", [{"input": "3", "output": "[3]"}], [])


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


def test_rlvr_results_are_wrapped_in_a_list_or_json_text() -> None:
    def outputs(*results: Any) -> list[str]:
        tests = {"input": [[n] for n in range(len(results))], "output": list(results)}
        row = read("rlvr", problem="s", problem_type="func", fn_name="f", tests=json.dumps(tests), starter_code="")
        return [test["output"] for test in row.tests]

    assert outputs([8], [-1]) == ["8", "-1"]
    assert outputs([[1, 2]], [[]]) == ["[1, 2]", "[]"]
    assert outputs("[1]", "[2]") == ["[1]", "[2]"]
    assert outputs("8", '"a"') == ["8", '"a"']


def test_a_function_problem_without_a_name_is_no_stdin_problem() -> None:
    with pytest.raises(Dropped, match="missing_column: fn_name"):
        read("rlvr", problem="s", problem_type="func", fn_name="none", tests={"input": [[1]], "output": [[1]]})


def test_a_function_without_arguments_has_an_empty_input() -> None:
    row = read("deepcoder_taco", problem="s", tests={"fn_name": "f", "inputs": [[], []], "outputs": [[3], [3]]})
    assert row.tests == [{"input": "", "output": "3"}] * 2
    Problem(id="p", source="s", kind="function", fn_name="f", statement="s", tests=row.tests)


def test_a_livecodebench_function_may_be_named_in_the_tests_metadata() -> None:
    tests = [{"input": "3", "output": "[3]", "testtype": "functional", "metadata": {"func_name": "f"}}]
    assert read("deepcoder_lcbv5", problem="s", tests=tests).fn_name == "f"
    info = json.dumps({"ground_truth": json.dumps(tests)})
    assert read("synthetic1", problem_statement="s", verification_info=info).fn_name == "f"


def test_integers_of_many_digits_are_read_and_too_many_are_named() -> None:
    for digits, kept in ((5_000, True), (MAX_DIGITS + 1, False)):
        raw = {"question": "s", "input_output": f'{{"fn_name": "f", "inputs": [[1]], "outputs": [[{"7" * digits}]]}}'}
        if kept:
            assert read_row("taco_verified", raw).tests[0]["output"] == "7" * digits
        else:
            with pytest.raises(Dropped, match="an integer of more than 100000 digits"):
                read_row("taco_verified", raw)


@pytest.mark.parametrize(("difficulty", "known"), [("UNKNOWN_DIFFICULTY", None), ("VERY_HARD", "very_hard"), (3, None)])
def test_an_unknown_difficulty_is_none(difficulty: Any, known: str | None) -> None:
    row = read("taco_verified", question="s", input_output={"inputs": ["1"], "outputs": ["1"]}, difficulty=difficulty)
    assert row.difficulty == known


@pytest.mark.parametrize("date", [
    "2024-09-01T00:00:00", "2024-09-01 00:00:00", "2024-09-01T02:00:00+02:00", 1725148800000, 1725148800,
    datetime.datetime(2024, 9, 1), datetime.datetime(2024, 9, 1, tzinfo=datetime.UTC),
])  # fmt: skip
def test_a_contest_date_is_text_a_datetime_or_epoch_milliseconds(date: Any) -> None:
    assert read_row("livecodebench", lcb_row("x", date)).date == "2024-09-01T00:00:00"


def test_a_contest_date_may_be_a_day_and_must_be_a_date() -> None:
    assert read_row("livecodebench", lcb_row("x", datetime.date(2024, 9, 1))).date == "2024-09-01"  # type: ignore[arg-type]
    with pytest.raises(Dropped, match=r"contest_date = 'soon': not a date"):
        read_row("livecodebench", lcb_row("x", "soon"))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
ROWS = {
    "livecodebench": lcb_row("x", "2024-09-01T00:00:00"),
    "deepcoder_taco": {"problem": "s", "tests": {"inputs": [[1]], "outputs": [[2]], "fn_name": "f"}},
    "taco_verified": {"question": "s", "input_output": {"inputs": ["1"], "outputs": ["2"]}, "solutions": ["x"]},
    "deepcoder_primeintellect": {
        "problem": "s", "tests": [{"type": "function_call", "fn_name": "f", "input": [1], "output": [2]}],
    },
    "deepcoder_lcbv5": {
        "problem": "s", "tests": [{"testtype": "functional", "input": "1", "output": "2"}],
        "metadata": {"func_name": "f"},
    },
    "synthetic1": {
        "task_type": "verifiable_code", "prompt": "s", "gold_standard_solution": "x",
        "verification_info": {"language": "python", "test_cases": [{"input": "1", "output": 2, "fn_name": None}]},
    },
    "rlvr": {"problem": "s", "tests": {"input": [[1]], "output": [[2]]}, "fn_name": "f", "starter_code": ""},
}  # fmt: skip


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, each in inner for place in _places(each, (*path, key)))]


@given(st.data())
def test_a_row_of_any_shape_is_read_or_dropped(data: st.DataObject) -> None:
    assert set(ROWS) == set(READERS)
    name = data.draw(st.sampled_from(sorted(ROWS)))
    row = copy.deepcopy(ROWS[name])
    assert read_row(name, row).tests
    *path, last = data.draw(st.sampled_from(_places(row)[1:]))
    holder: Any = row
    for key in path:
        holder = holder[key]
    holder[last] = data.draw(VALUES)
    try:
        found = read_row(name, row)
    except Dropped:
        return
    assert isinstance(found.statement, str)
    assert all(isinstance(part, str) for test in found.tests for part in test.values())


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
        ("synthetic1", {"task_type": "verifiable_math", "prompt": "s", "verification_info": "{}"}, "not_code"),
        ("synthetic1", {"prompt": "s", "verification_info": {"language": "rust", "test_cases": []}}, "not_python"),
        ("deepcoder_taco", {"problem": "s", "tests": {"inputs": [[1]], "outputs": [[1]], "fn_name": {}}},
         "unparsable_tests"),
        ("deepcoder_primeintellect", {"problem": "s", "tests": [{"type": "function_call", "fn_name": ["f"]}]},
         "unparsable_tests"),
        ("synthetic1", {"prompt": "s", "verification_info": {"test_cases": None}}, "no_tests"),
        ("rlvr", {"problem": "s", "tests": {"input": ["x"], "output": ["1"], "fn_name": "f"}}, "unparsable_tests"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_says_why(name: str, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(Dropped) as caught:
        READERS[name](row)
    assert caught.value.reason == reason
    assert not os.path.exists("/tmp/evil")
