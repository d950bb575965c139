"""Scores around the training cut-off: by value, against an exact enumeration, silent where nothing can be said."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from environments.livecode.evaluation.contamination import around_cutoff, permutation_p
from environments.livecode.evaluation.evaluate import pass_interval, pass_rate
from environments.livecode.problems.problem import Problem, TestCase

CUTOFF = "2024-07-31"


def problem(name: str, date: str | None, difficulty: str = "easy") -> Problem:
    tests = [TestCase(input="", output="")]
    return Problem(
        id=name, source="t", kind="stdin", statement="s", tests=tests, date=date, difficulty=difficulty
    )  # fmt: skip


def exact(shares: list[float], labelled: int) -> float:
    """The two-sided p-value over all ways to choose the labelled ones, the first `labelled` being those observed."""
    mean = sum(shares) * labelled / len(shares)
    observed = abs(sum(shares[:labelled]) - mean)
    ways = [abs(sum(way) - mean) for way in combinations(shares, labelled)]
    return sum(way >= observed - 1e-9 for way in ways) / len(ways)


@pytest.mark.parametrize(
    "shares", [[1.0, 1.0, 1.0, 0.5, 0.0, 0.0, 0.0, 0.25], [0.5, 0.1, 0.9, 0.4, 0.6, 0.2, 0.8, 0.3]]
)
def test_the_p_value_is_that_of_all_permutations(shares: list[float]) -> None:
    labels = np.array([True] * 4 + [False] * 4)
    found = permutation_p(np.array(shares), labels, ["all"] * 8)
    assert found == pytest.approx(exact(shares, 4), abs=0.02)


def test_labels_are_permuted_within_strata_only() -> None:
    shares = np.array([1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    labels = np.array([True] * 4 + [False] * 4)
    assert permutation_p(shares, labels, ["all"] * 8) < 0.05
    # Early problems are all easy: among equals nothing differs, and nothing can be said.
    assert permutation_p(shares, labels, ["easy"] * 4 + ["hard"] * 4) == 1.0


def test_the_sides_and_the_months_by_value() -> None:
    dates = ["2024-06-01", "2024-06-30T10:00:00", "2024-07-31T23:00:00", "2024-08-01", "2024-09-02", "2024-09-03", None]
    problems = [problem(str(number), date) for number, date in enumerate(dates)]
    per_problem = {str(number): [str(number), right, 2] for number, right in enumerate([2, 2, 1, 1, 0, 0, 2])}
    found = around_cutoff(problems, per_problem, CUTOFF, pass_rate, pass_interval)
    assert found is not None
    assert (found["before"]["problems"], found["before"]["pass_at_1"]) == (3, pytest.approx(2.5 / 3))
    assert (found["after"]["problems"], found["after"]["pass_at_1"]) == (3, pytest.approx(0.5 / 3))
    assert found["difference"] == pytest.approx(2 / 3)
    assert {month: cell["pass_at_1"] for month, cell in found["by_month"].items()} == {
        "2024-06": 1.0, "2024-07": 0.5, "2024-08": 0.5, "2024-09": 0.0,
    }  # fmt: skip
    low, high = found["by_month"]["2024-06"]["ci95"]
    assert low <= 1.0 <= high
    assert 0 < found["p_value"] <= 1


def test_one_side_alone_is_no_comparison() -> None:
    problems, per_problem = [problem("a", "2024-08-01")], {"a": ["a", 1, 2]}
    assert around_cutoff(problems, per_problem, CUTOFF, pass_rate, pass_interval) is None
    assert around_cutoff([problem("a", None)], per_problem, CUTOFF, pass_rate, pass_interval) is None
    both = [problem("a", "2024-08-01"), problem("b", "2024-06-01")]
    assert around_cutoff(both, per_problem | {"b": ["b", 0, 0]}, CUTOFF, pass_rate, pass_interval) is None
    assert around_cutoff(both, per_problem | {"b": ["b", 1, 2]}, None, pass_rate, pass_interval) is None
