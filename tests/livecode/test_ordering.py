"""Hardest tests first: what failed wrong programs and costs little comes first; learned, kept, never a gap."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from environments.livecode.verification.ordering import TestOrder

SIZES = [10] * 5


def verdict(*results: tuple[int, bool], cpu_s: float = 0.01) -> dict[str, Any]:
    tests = [{"index": index, "status": "accepted" if ok else "wrong_answer", "cpu_s": cpu_s} for index, ok in results]
    return {"status": tests[-1]["status"], "tests": tests}


def test_a_problem_that_was_never_judged_begins_with_its_large_inputs() -> None:
    assert TestOrder().order("p", [10, 30, 20]) == [1, 2, 0]


def test_one_test_or_none_has_no_order() -> None:
    assert TestOrder().order("p", [10]) is None
    assert TestOrder().order("p", []) is None


def test_the_test_that_failed_a_program_comes_first() -> None:
    order = TestOrder()
    order.record("p", verdict((0, True), (1, True), (2, True), (3, False)))
    assert order.order("p", SIZES) == [3, 4, 2, 1, 0]  # 4 was never run: it may fail more than those that passed
    assert order.order("another", SIZES) == [4, 3, 2, 1, 0]


def test_of_two_that_fail_as_often_the_cheap_one_comes_first() -> None:
    order = TestOrder()
    order.record("p", verdict((4, False), cpu_s=1.0))
    order.record("p", verdict((2, False), cpu_s=0.01))
    assert order.order("p", SIZES)[:1] == [2]  # type: ignore[index]
    assert order.order("p", SIZES)[-1:] == [4]  # type: ignore[index]


def test_a_large_input_waits_until_it_has_failed_somebody() -> None:
    order = TestOrder()
    order.record("p", verdict((1, True), (2, False)))
    sizes = [50_000_000, 10, 10]
    assert order.order("p", sizes) == [2, 1, 0]


def test_an_accepted_program_says_what_tests_cost_and_not_that_they_find_nothing() -> None:
    order = TestOrder()
    order.record("p", verdict((0, True), (1, False)))
    for _ in range(100):
        order.record("p", verdict(*((index, True) for index in range(5))))
    assert order.order("p", SIZES)[0] == 1  # type: ignore[index]


def test_a_failure_of_long_ago_fades() -> None:
    order = TestOrder()
    for _ in range(3):
        order.record("p", verdict((0, False)))
    for _ in range(200):
        order.record("p", verdict((0, True), (1, False)))
    assert order.order("p", SIZES)[0] == 1  # type: ignore[index]


@pytest.mark.parametrize("bare", [{"status": "no_code"}, {"status": "compile_error", "tests": []}])
def test_a_verdict_without_tests_changes_nothing(bare: dict[str, Any]) -> None:
    order = TestOrder()
    order.record("p", bare)
    assert order.state() == {}


RUNS = st.lists(
    st.tuples(st.sampled_from("ab"), st.permutations(range(5)), st.integers(1, 5), st.floats(0, 10)), max_size=30
)


@given(RUNS)
def test_any_history_gives_a_permutation_that_outlives_its_process(runs: list[Any]) -> None:
    order, again = TestOrder(), TestOrder()
    for problem, permutation, count, cpu in runs:
        ran = permutation[:count]
        order.record(problem, verdict(*((index, index != ran[-1] or count == 5) for index in ran), cpu_s=cpu))
    again.restore(json.loads(json.dumps(order.state())))
    for problem in "ab":
        assert sorted(order.order(problem, SIZES) or []) == list(range(5))
        assert again.state() == order.state()


@pytest.mark.parametrize("state", [{"p": [[0, 1]]}, {"p": 3}, {"p": [["x", 1, 1, 1, 1]]}])
def test_a_damaged_state_names_the_problem(state: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="test order of problem 'p'"):
        TestOrder().restore(state)
