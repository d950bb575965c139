"""LiveCodeBench's comparison, quirk by quirk, and against an independent oracle."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verifier_app.judge import compare, verify
from verifier_app.judge.compare import MESSAGE_CHARS, output_difference, value_difference

SAME = [
    ("3", "3\n", "a final newline"),
    ("\n\n 3 \n\n", "3", "the whole output is stripped"),
    ("1  \n  2", "1\n2", "lines are stripped"),
    ("1\r\n2\r\n", "1\n2", "carriage returns are stripped as space"),
    ("1\x1f", "1", "str.strip takes the unit separator"),
    ("1\u00a0", "1", "str.strip takes the no-break space"),
    ("1_000", "1000", "Decimal reads underscores"),
    ("1e3", "1000", "Decimal reads exponents"),
    ("1.50", "1.5", "Decimal forgets trailing zeros"),
    ("-0", "0", "negative zero is zero"),
    ("1  2", "1 2", "numbers may be apart as far as they like"),
    ("1\t2", "1 2", "or by a tab"),
    ("Infinity", "inf", "infinity has two names"),
    ("٣", "3", "Decimal reads other digits"),
    ("nan", "nan", "equal text is equal, whatever it means"),
    ("", "\n", "nothing is nothing"),
    ("a  b", "a  b", "equal text with two spaces"),
]
DIFFERENT = [
    ("nan", "NaN", "NaN never matches as a number"),
    ("snan", "sNaN", "nor does a signalling one, and it raises nothing"),
    ("a  b", "a b", "words are compared as text"),
    ("A", "a", "case counts"),
    ("1\n\n2", "1\n2", "an empty line between counts"),
    ("1 2", "1\n2", "lines are not words"),
    ("0.30000000000000004", "0.3", "no tolerance"),
    ("0", "0.00009", "not even for small numbers"),
    ("1 a", "1.0 a", "one word that is no number makes the line text"),
    ("0x10", "16", "no other bases"),
    ("1/2", "0.5", "no fractions"),
    ("1", "", "something is not nothing"),
    ("True", "1", "text is not a number"),
    ("50000000000000000", "50000000000000001", "exact beyond floats"),
]


@pytest.mark.parametrize(("got", "expected", "why"), SAME, ids=[case[2] for case in SAME])
def test_these_outputs_match(got: str, expected: str, why: str) -> None:
    assert output_difference(got, expected) is None


@pytest.mark.parametrize(("got", "expected", "why"), DIFFERENT, ids=[case[2] for case in DIFFERENT])
def test_these_outputs_differ(got: str, expected: str, why: str) -> None:
    assert output_difference(got, expected) is not None


@pytest.mark.parametrize(
    ("got", "expected"),
    [(True, 1), (1, 1.0), ((1, 2), [1, 2]), ([], []), ({"a": 1.0}, {"a": 1}), (-0.0, 0), (None, None), (False, 0)],
)
def test_these_values_match(got: Any, expected: Any) -> None:
    assert value_difference(got, expected) is None


@pytest.mark.parametrize(
    ("got", "expected"),
    [([(1,)], [[1]]), (0.1 + 0.2, 0.3), ("1", 1), (None, []), ({1: 2}, {"1": 2}), ([1], [1, 1]), (float("nan"), None)],
)
def test_these_values_differ(got: Any, expected: Any) -> None:
    assert value_difference(got, expected) is not None


NEAR = [
    (0.30000000000000004, 0.3),
    ([1, 2.00009], [1, 2.0]),
    ((1.0, 2.00009), [1.0, 2]),
    ({"a": [0.10009]}, {"a": [0.1]}),
    (3, 3.00009),
    ([[[1.00009]]], [[[1]]]),
]
FAR = [
    (0.3002, 0.3),
    ([1, 2.0], [1, 2.0, 3.0]),
    (True, 1.00001),
    ("0.30000000000000004", 0.3),
    (float("nan"), 0.0),
    (float("inf"), 1e308),
    (10**400, 1e308),
    (1, 2),
    ({"a": 1.00001}, {"b": 1.0}),
    ([(1.00001,)], [[1.0]]),
]


@pytest.mark.parametrize(("got", "expected"), NEAR)
def test_floats_of_a_result_may_lie_within_the_tolerance_at_any_depth(got: Any, expected: Any) -> None:
    assert value_difference(got, expected, tolerance=1e-4) is None
    assert value_difference(got, expected, deep=True, tolerance=1e-4) is None
    assert value_difference(got, expected) is not None


@pytest.mark.parametrize(("got", "expected"), FAR)
def test_a_tolerance_takes_nothing_else_for_equal(got: Any, expected: Any) -> None:
    assert value_difference(got, expected, tolerance=1e-4) is not None


def test_the_tolerance_of_a_request_is_for_calls_too() -> None:
    code = "def f(n):\n    return [n / 3]"
    request = {"code": code, "fn_name": "f", "tests": [{"input": "1", "output": "[0.3333]"}]}
    assert verify(request)["status"] == "wrong_answer"
    assert verify(request | {"decimal_tolerance": 1e-4})["status"] == "accepted"


def test_the_decimal_tolerance_is_off_unless_asked_for() -> None:
    assert output_difference("0.33334", "0.33333") is not None
    assert output_difference("0.33334", "0.33333", 1e-4) is None
    assert output_difference("0.3345", "0.33333", 1e-4) is not None
    assert output_difference("inf", "-inf", 1e-4) is not None
    assert output_difference("1.0 2", "1.0", 1e-4) is not None


def test_the_difference_names_the_first_line_that_differs() -> None:
    assert output_difference("1\n2\n4", "1\n2\n3") == "line 3: got '4', expected '3'"
    assert output_difference("1", "1\n2") == "1 lines, expected 2; line 2: got '', expected '2'"


def test_a_long_line_is_cut_around_the_difference() -> None:
    message = output_difference("a" * 10_000 + "X" + "b" * 10_000, "a" * 10_000 + "Y" + "b" * 10_000)
    assert message is not None
    assert len(message) <= MESSAGE_CHARS
    assert "X" in message
    assert "Y" in message


# an oracle that shares no code: numbers as Fractions, lines by hand

SPACE = " \t\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\u00a0"


def oracle_number(word: str) -> Fraction | str | None:
    """A finite number, "inf" or "-inf", or None for what is no number or never equal."""
    text = word.lower().replace("_", "")
    sign = -1 if text.startswith("-") else 1
    text = text[1:] if text[:1] in "+-" else text
    if text in ("inf", "infinity"):
        return "inf" if sign > 0 else "-inf"
    mantissa, mark, exponent = text.partition("e")
    if mark and not exponent.removeprefix("-").removeprefix("+").isdigit():
        return None
    whole, _, part = mantissa.partition(".")
    if not (whole + part).isdigit():
        return None
    return sign * Fraction(int(whole + part), 10 ** len(part)) * Fraction(10) ** (int(exponent) if mark else 0)


def oracle(got: str, expected: str) -> bool:
    def lines(text: str) -> list[str]:
        text = text.strip(SPACE + "\n")
        return [line.strip(SPACE) for line in text.split("\n")]

    mine, theirs = lines(got), lines(expected)
    if len(mine) != len(theirs):
        return False
    for a, b in zip(mine, theirs, strict=True):
        if a != b:
            left, right = [oracle_number(w) for w in a.split()], [oracle_number(w) for w in b.split()]
            if left != right or None in left:
                return False
    return True


WORDS = st.one_of(
    st.integers(-99, 99).map(str),
    st.sampled_from(
        [
            "1.0",
            "1.00",
            "01",
            "1e0",
            "10e-1",
            "+1",
            "-0",
            "0",
            "0.0",
            "1_0",
            "10",
            "1e1",
            "inf",
            "-inf",
            "Infinity",
            "nan",
            "NaN",
            "a",
            "b",
            "A",
            "1a",
            ".",
            "-",
            "e1",
        ]
    ),
)
LINES = st.lists(WORDS, max_size=3).flatmap(
    lambda words: st.sampled_from([" ", "  ", "\t"]).map(lambda gap: gap.join(words))
)
TEXTS = st.lists(
    st.tuples(st.sampled_from(["", " ", "\t"]), LINES, st.sampled_from(["", " ", "\r"])).map("".join), max_size=4
).map("\n".join)


@settings(max_examples=600, deadline=None)
@given(TEXTS, TEXTS)
def test_any_two_texts_compare_as_the_oracle_says(got: str, expected: str) -> None:
    assert (output_difference(got, expected) is None) == oracle(got, expected)


WIDE = st.text(alphabet="1.0ae \n\t\u00a0\u2003\u0661\U0001f600", max_size=40)


@settings(max_examples=400, deadline=None)
@given(TEXTS | WIDE, st.none() | TEXTS | WIDE, st.sampled_from([" ", "\t ", "\u2003"]), st.integers(4, 9))
def test_any_two_texts_compare_the_same_in_windows(text: str, other: str | None, gap: str, window: int) -> None:
    got, expected = text.replace(" ", gap * 30).replace("1.0", "1." + "0" * 40), text if other is None else other
    plain = output_difference(got, expected)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "WINDOW_BYTES", window)
        patch.setattr(compare, "LONG_LINE_BYTES", 0)  # from four times the expected line's length on it is a long one
        assert output_difference(got, expected) == plain


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.data())
def test_respelled_texts_compare_as_the_oracle_says(text: str, data: st.DataObject) -> None:
    words = [
        data.draw(st.sampled_from([w, w + ".0", "+" + w, w + "e0"])) if w.isdigit() else w for w in text.split(" ")
    ]
    other = " ".join(words)
    assert (output_difference(other, text) is None) == oracle(other, text)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60), st.text(max_size=60))
def test_any_text_gives_an_answer_and_a_short_message(got: str, expected: str) -> None:
    message = output_difference(got, expected)
    assert message is None or 0 < len(message) <= MESSAGE_CHARS


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(JSON)
def test_a_value_equals_its_own_json(value: Any) -> None:
    assert value_difference(value, json.loads(json.dumps(value))) is None
