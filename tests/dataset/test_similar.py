"""The same problem is found in other clothes, and different problems are not the same."""

from __future__ import annotations

import pytest

from environments.dataset.deduplicate import Overlap, Signature, duplicates, hashed_inputs
from environments.livecode.problems import window
from tests.dataset.conftest import statement

BOILERPLATE = (
    "The input is given from standard input in the following format and you print the answer to standard output. "
)
KNOWN = [Signature(f"t{n}", BOILERPLATE + statement(f"t{n}"), f"sha{n}") for n in range(8)]


@pytest.mark.parametrize(
    ("text", "tests", "how"),
    [
        (KNOWN[3].statement.upper().replace(" ", "\n\n"), "", "exact"),
        ("Quite another story.", "sha3", "tests"),
        ("Alice has a story of her own first. " + statement("x", 200) + " " + statement("t3"), "", "ngram"),
        (" ".join("zzz" if n == 40 else word for n, word in enumerate(KNOWN[3].statement.split())), "", "ngram"),
    ],
)
def test_a_held_out_problem_is_found(text: str, tests: str, how: str) -> None:
    match = Overlap(KNOWN).match(Signature("mine", text, tests))
    assert match is not None
    assert (match.other, match.how) == ("t3", how)


def test_short_statements_are_found_by_their_shingles() -> None:
    short = Signature("t", "Print the sum of two numbers a and b.")
    match = Overlap([short]).match(Signature("mine", "Print the sum of two numbers a and b, please."))
    assert match is not None
    assert match.how == "near"


def test_shared_boilerplate_is_no_match() -> None:
    assert Overlap(KNOWN).match(Signature("mine", BOILERPLATE + statement("mine"), "other")) is None


def test_the_first_of_equal_problems_is_kept() -> None:
    rows = [Signature("a", statement("a")), Signature("b", statement("b")), Signature("c", statement("a") + " Hi."),
            Signature("d", statement("b").lower())]  # fmt: skip
    assert {name: (match.other, match.how) for name, match in duplicates(rows).items()} == {
        "c": ("a", "near"), "d": ("b", "exact"),
    }  # fmt: skip


def test_the_window_is_known_by_its_ids_kinds_and_difficulties() -> None:
    names = sorted(window.ids())
    kinds = ["stdin"] * 287 + ["function"] * 167
    levels = ["easy"] * 110 + ["medium"] * 141 + ["hard"] * 203
    rows = [{"id": i, "kind": k, "difficulty": d} for i, k, d in zip(names, kinds, levels, strict=True)]
    assert len(names) == 454
    assert set(window.KNOWN_BAD) <= set(names)
    assert window.complaints(rows) == []
    other = [*rows[1:], {"id": "new", "kind": "function", "difficulty": "easy"}]
    assert window.complaints(other) == [
        f"1 missing: {names[0]}", "1 not of the window: new",
        "by kind {'function': 168, 'stdin': 286} instead of {'stdin': 287, 'function': 167}",
    ]  # fmt: skip
    assert window.complaints(rows[1:])[0] == "453 problems instead of 454"


def _inputs(start: int, count: int = 6) -> frozenset[str]:
    return hashed_inputs(f"{number} long enough to be this problem's own\n" for number in range(start, start + count))


@pytest.mark.parametrize(
    ("inputs", "share"),
    [
        pytest.param(_inputs(0), 1.0, id="all of them"),
        pytest.param(_inputs(0) | _inputs(100, 40), 1.0, id="among others"),
        pytest.param(_inputs(3), 0.5, id="half of them"),
        pytest.param(_inputs(4), None, id="a third of them"),
        pytest.param(_inputs(0, 2), None, id="two are no sign"),
        pytest.param(frozenset(), None, id="none"),
    ],
)
def test_a_problem_told_anew_is_found_by_its_test_inputs(inputs: frozenset[str], share: float | None) -> None:
    known = [Signature("a", statement("a"), "", _inputs(0)), Signature("b", statement("b"), "", _inputs(50))]
    match = Overlap(known).match(Signature("c", statement("c"), "", inputs))
    assert (match and (match.other, match.how, match.score)) == (share and ("a", "inputs", share))


def test_inputs_that_are_short_or_that_many_problems_have_say_nothing() -> None:
    assert hashed_inputs(["1\n", "[1, 2, 3, 4, 5]", " 1 2 3   \n"]) == frozenset()
    known = [Signature(name, statement(name), "", _inputs(0)) for name in "abcde"]
    assert Overlap(known).match(Signature("f", statement("f"), "", _inputs(0))) is None
    assert len(hashed_inputs(str(10**20 + number) for number in range(1000))) == 64
