"""Other graders' rules as benchmarks/grading_rules has them: verdicts that follow from the sources named there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.grading_rules import pages, publisher, rllm, sandbox_fusion, strategies, verl
from benchmarks.grading_rules.examples import EXAMPLES
from benchmarks.grading_rules.programs import Program, verdicts
from benchmarks.grading_rules.table import NAMES, RULES, UNREADABLE, Rule, TestRun
from verifier_app.judge import Judge

ROOT = Path(__file__).parents[2]
BY_NAME = {rule.name: rule for rule in RULES}
PRINTED = {
    "publisher": publisher.printed,
    "verl": verl.printed,
    "sandbox_fusion": sandbox_fusion.printed,
    "verl_sandbox_fusion": sandbox_fusion.printed_for_verl,
    "rllm": rllm.printed,
}
LETTERS = {"p": "publisher", "v": "verl", "s": "sandbox_fusion", "f": "verl_sandbox_fusion", "r": "rllm"}


@pytest.mark.parametrize(
    ("got", "expected", "taken_by"),
    [
        ("3\n", "3", "pvsfr"),
        ("4\n", "3", ""),
        ("\n3", "3", "pvsr"),  # the client strips the end only
        ("1 \n2", "1\n2", "pvsr"),
        ("1\n2", "1 \n2\n", "pvsr"),
        ("0.5001", "0.5", "p"),
        ("0.50011", "0.5", ""),
        ("-5", "-5.00009", "p"),
        ("1 2", "1 2.0001", "p"),
        ("NaN", "NaN", "pvsfr"),
        ("nan", "NaN", "s"),  # only the case differs
        ("inf", "Infinity", "pvr"),  # SandboxFusion divides infinities: nan is not below 1e-5
        ("1_000", "1000", "pvsr"),
        ("100001", "100000", "r"),
        ("100001\n-1", "100000\n-1", "vr"),  # a minus sign brings all lines under the tolerance
        ("100001 -1", "100000 -1", "r"),  # but a line of two numbers is no float
        ("100002\n-1", "100000\n-1", ""),
        ("1000001", "1000000", "sr"),
        ("Yes\nno", "YES\nNO", "sr"),
        ("maybe", "YES", "r"),
        ("maybe not", "YES", ""),  # as many words in each line
        ("maybe\nnot", "YES", ""),
        ("3 apples", "3 pears", "r"),
        ("4 apples", "3 pears", ""),
        ("12", "1\n2", "r"),
        ("13", "1\n2", ""),
        ("2 1 1", "1\n2", "r"),
        ("21 1", "1\n2", ""),
        ("0", "0.0004", "r"),  # rounded to three places
        ("0", "0.0006", ""),
        ("1\n\n\n2", "1\n2", "vr"),
        ("10\x0b20", "10\n20", "v"),
        ("", "", "pvsfr"),
        ("", "0", ""),
    ],
)  # fmt: skip
def test_a_printed_answer_gets_the_verdict_that_follows_from_the_source(got: str, expected: str, taken_by: str) -> None:
    assert {name for name, printed in PRINTED.items() if printed(got, expected)} == {LETTERS[one] for one in taken_by}


@pytest.mark.parametrize(
    ("got", "expected", "taken_by"),
    [
        (3, 3, "pvr"),
        (4, 3, ""),
        (True, 1, "pvr"),
        (0.30000000000000004, 0.3, ""),  # no tolerance in any of them
        ((1, 2), [1, 2], "pvr"),
        ([(1, 2), (3, 4)], [[1, 2], [3, 4]], "r"),  # verl compares these with the first of the expected list only
        ([(1, 2), (3, 4)], [[[1, 2], [3, 4]]], "v"),
        ([3], 3, "r"),
        (3, [3, 4], "v"),
        ([], [[], 1], "v"),
        ({1: 2}, {"1": 2}, "vr"),
        ({"1": 2}, {"1": 2}, "p"),
        ({"a": 2}, {"a": 2}, "pvr"),
        ([{"1": 2}, 7], [{"1": 2}, 7], "pr"),  # for verl only the first is left of the list
        ([{1: 2}], [{"1": 2}, 7], "v"),
        ({1, 2}, [1, 2], ""),
    ],
)
def test_a_result_gets_the_verdict_that_follows_from_the_source(got: Any, expected: Any, taken_by: str) -> None:
    rules = {"publisher": publisher.returned, "verl": verl.returned, "rllm": rllm.returned}
    assert {name for name, returned in rules.items() if returned(got, expected)} == {LETTERS[one] for one in taken_by}


def run(status: str = "accepted", output: str = "3\n", **fields: Any) -> TestRun:
    return TestRun("1\n", "3", status, output, **fields)


@pytest.mark.parametrize(
    ("one", "taken_by"),
    [
        (run(), "pvsfr"),
        (run("wrong_answer"), "pvsfr"),  # its rules decide, not our verdict
        (run("runtime_error"), "r"),
        (run("time_limit_exceeded"), ""),
        (run("memory_limit_exceeded"), ""),
        (run(exit_status=True), "pvr"),
        (run(cpu_s=5.5), "pvsfr"),  # verl's second look gives each test 10 s
        (run(cpu_s=11), "psr"),
        (run(cpu_s=13), "ps"),
        (run(cpu_s=16), "s"),
    ],
)
def test_how_a_test_ends_counts_as_the_source_has_it(one: TestRun, taken_by: str) -> None:
    assert {name for name, rule in BY_NAME.items() if rule.accepts([one], call=False)} == {
        LETTERS[letter] for letter in taken_by
    }


def test_only_the_longest_inputs_count_and_the_whole_time_is_bounded() -> None:
    rule = Rule("few", "", lambda got, expected: got == expected, None, seconds=5, all_seconds=6, most_tests=2)
    long, short = TestRun("11", "1", "accepted", "1", cpu_s=3), TestRun("1", "1", "wrong_answer", "2", cpu_s=3)
    assert rule.accepts([short, long, long], call=False) is True
    assert rule.accepts([short, long], call=False) is False
    assert rule.accepts([long, TestRun("11", "1", "accepted", "1", cpu_s=3.1)], call=False) is False
    assert rule.accepts([long], call=True) is None


def test_verl_pays_for_the_first_ten_tests_that_pass() -> None:
    right, wrong = run(), run(output="4\n")
    for name in ("verl", "verl_sandbox_fusion"):
        rule = BY_NAME[name]
        assert rule.reward([right] * 12, call=False) == 1
        assert rule.reward([right] * 3 + [wrong], call=False) == 0.75
        assert rule.reward([wrong] * 5 + [right] * 20, call=False) == 0.5
        assert rule.accepts([right] * 10 + [wrong], call=False) is True
    assert BY_NAME["verl"].reward([run(cpu_s=4)] * 2, call=False) == 1  # 8 s together, but each within 10 s by itself
    assert BY_NAME["sandbox_fusion"].reward([right] * 3 + [wrong], call=False) == 0


def test_a_result_that_cannot_be_read_back_passes_nowhere() -> None:
    unread = run(value=UNREADABLE, expected_value=UNREADABLE)
    assert not any(rule.accepts([unread], call=True) for rule in RULES)


def test_a_strategy_passes_the_problems_of_which_every_changed_output_passes() -> None:
    problems = [["YES", "NO"], ["YES", "3"], ["3", "4"]]
    word = strategies.WRONG["every word that is no number is x"]
    count = strategies.problems_passed
    assert strategies.made_wrong(word, problems) == problems[:2]
    assert [count(word, printed, problems[:2]) for printed in (rllm.printed, sandbox_fusion.printed)] == [2, 0]
    assert count(str.swapcase, sandbox_fusion.printed, problems) == 3
    assert count(str.swapcase, verl.printed, problems) == 1
    near = strategies.WRONG["numbers changed by two millionths"]
    assert near("1000000 3 2.0 x\n-5000009\n") == "1000001 3 2.000004 x\n-5000008\n"
    assert near("7" * 9000) == "7" * 8999 + "8"
    assert strategies.RIGHT["integers as decimals, 5 as 5.0"]("-5 2.5 x") == "-5.0 2.5 x"


def test_each_kind_of_difference_is_found_by_a_program_in_the_sandbox() -> None:
    recorded = json.loads((ROOT / "benchmarks" / "results" / "graders.json").read_text())["groups"]["examples"]
    with Judge() as judge:
        for one in EXAMPLES:
            program = Program("examples", one.kind, one.program, [one.test], one.right, one.fields)
            found = verdicts(judge, program)
            assert found == recorded["by_program"][one.kind]
            assert found["ours"] is found["livecodebench"] is one.right
    assert all(any(row[name] is not row["ours"] for row in recorded["by_program"].values()) for name in NAMES[2:])


def test_the_page_shows_what_was_measured() -> None:
    page = (ROOT / "docs" / "graders.md").read_text()
    result = json.loads((ROOT / "benchmarks" / "results" / "graders.json").read_text())
    assert pages.replaced(page, result) == page
    assert all(f"<!-- begin {name} -->" in page for name in pages.tables(result))
