"""What results of calls stand for: the likeliest reading first, every other one for a known solution to choose."""

from __future__ import annotations

from typing import Any

import pytest

from environments.dataset.call_results import readings


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        pytest.param([[8], [-1]], [[8, -1], [[8], [-1]]], id="every result wrapped"),
        pytest.param([[[1, 2]], [[3]]], [[[1, 2], [3]], [[[1, 2]], [[3]]]], id="a wrapped list"),
        pytest.param([[1], [1, 2]], [[[1], [1, 2]]], id="lists of other lengths are results"),
        pytest.param([[], []], [[[], []]], id="empty lists are results"),
        pytest.param([[None], [None]], [[None, None], [[None], [None]]], id="wrapped null"),
        pytest.param([[1], 2], [[1, 2], [[1], 2]], id="wrapped here and there"),
        pytest.param([8, True], [[8, True]], id="plain"),
        pytest.param([["1"], ["9"]], [["1", "9"], [["1"], ["9"]]], id="wrapped text is text"),
        pytest.param(["12", "13"], [["12", "13"], [12, 13]], id="text that looks like numbers"),
        pytest.param(["true", "no"], [["true", "no"], [True, "no"]], id="text that looks like a boolean"),
        pytest.param(["[1, 2]", "[3]"], [[[1, 2], [3]], ["[1, 2]", "[3]"]], id="text of lists"),
        pytest.param(["abc"], [["abc"]], id="a word"),
    ],
)
def test_native_results(outputs: list[Any], expected: list[list[Any]]) -> None:
    assert list(map(repr, readings(outputs, json_text=False))) == list(map(repr, expected))


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        pytest.param(["[1]", "[2]"], [[[1], [2]]], id="a list in JSON text is a list"),
        pytest.param(["12", '"12"'], [[12, "12"]], id="a number and a string in JSON text"),
        pytest.param([[8], [20]], [[8, 20], [[8], [20]]], id="lists that are no text are wrapped"),
        pytest.param([[8], "[20]"], [[8, [20]], [[8], [20]]], id="only what is no text is wrapped"),
    ],
)
def test_json_text(outputs: list[Any], expected: list[list[Any]]) -> None:
    assert readings(outputs, json_text=True) == expected


def test_readings_that_differ_only_in_type_are_two() -> None:
    assert list(map(repr, readings(["1", "true"], json_text=False))) == ["['1', 'true']", "[1, True]"]
