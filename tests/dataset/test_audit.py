"""Problems with several right answers and with wrong tests are found; what is clear is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import data_audit
from environments.dataset.audit import Ran, compare, says_any
from environments.dataset.cli import app
from environments.livecode.problems.load import save_problems
from environments.livecode.problems.problem import Problem, TestCase

RIGHT = Ran("accepted", "1")


def problem(tests: int = 2, statement: str = "Print 1.", name: str = "p") -> Problem:
    cases = [TestCase(input=f"{number}\n", output="1\n") for number in range(tests)]
    return Problem(id=name, source="t", kind="stdin", statement=statement, tests=cases)


def denied(words: str) -> Ran:
    return Ran("wrong_answer", words)


@pytest.mark.parametrize(
    ("ran", "kinds"),
    [
        ([[RIGHT, RIGHT], [RIGHT, RIGHT]], None),
        ([[RIGHT, RIGHT], [RIGHT, denied("2")]], {"several_answers"}),
        ([[RIGHT, denied("2")], [RIGHT, denied("2")]], {"wrong_tests"}),
        ([[RIGHT, denied("2")], [RIGHT, denied("3")]], {"several_answers"}),
        ([[RIGHT, denied("2")]], None),  # one program alone may be wrong
        ([[RIGHT, Ran("runtime_error", None)], [RIGHT, RIGHT]], None),
        ([[RIGHT, denied("2")], [RIGHT, Ran("time_limit_exceeded", None)]], None),
        ([], None),
    ],
)
def test_what_programs_say_of_a_problem(ran: list[list[Ran]], kinds: set[str] | None) -> None:
    found = compare(problem(), ran)
    assert (found.kinds if found else None) == kinds


def test_programs_of_a_run_count_only_where_they_pass_most_tests() -> None:
    good, bad = [RIGHT, RIGHT, denied("2")], [denied("2"), denied("2"), denied("2")]
    assert compare(problem(3), [good, bad, bad], agreeing=3, most=0.5) is None
    found = compare(problem(3), [good, good, good], agreeing=3, most=0.5)
    assert found is not None
    assert found.kinds == {"wrong_tests"}
    assert (found.tests[0]["index"], found.tests[0]["expected"], found.tests[0]["outputs"]) == (2, "1\n", {"2": 3})


@pytest.mark.parametrize(
    ("statement", "allows"),
    [
        ("Print any of them.", True),
        ("If there are several answers, print one.", True),
        ("Return the answer in any order.", True),
        ("You may output any valid pair.", True),
        ("The answer is not unique.", True),
        ("Print 0 if any of them is odd.", False),
        ("It is at least as large as any of them.", False),
        ("Print the number of ways.", False),
        ("There are many people. Print their count.", False),
    ],
)
def test_a_statement_that_allows_any_answer_is_known_by_its_words(statement: str, allows: bool) -> None:
    assert (says_any(statement) is not None) == allows


def test_precision_and_recall_are_those_that_are_stated() -> None:
    stated = json.loads((Path(data_audit.__file__).parent / "results" / "data_audit.json").read_text())
    assert data_audit.measure() == stated["measured"]


def test_the_command_reads_known_solutions_and_names_the_denied_outputs(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "parts").mkdir()
    save_problems([problem(name="a"), problem(name="b")], tmp_path / "train" / "problems.jsonl")
    row = {"id": "a", "solutions": ["print(1)", "print(1 if input() == '0' else 2)"]}
    (tmp_path / "parts" / "t.jsonl").write_text(json.dumps(row) + "\n{torn")
    done = CliRunner().invoke(app, ["audit", str(tmp_path / "train" / "problems.jsonl"), "--workers", "1"])
    assert done.exit_code == 0, done.output
    assert "a: several_answers: " in done.output
    assert "1 of 2 problems are to be looked at; 1 had 2 programs or more" in done.output
    (found,) = map(json.loads, (tmp_path / "train" / "audit.jsonl").read_text().splitlines())
    assert found["tests"][0]["outputs"] == {"2": 1}


def test_the_command_reads_a_runs_programs(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "rollouts"
    folder.mkdir(parents=True)
    codes = [f"# {n}\nprint(1 if int(input()) < 2 else 7)" for n in range(3)]
    save_problems([problem(4, name="a")], tmp_path / "p.jsonl")
    lines = [json.dumps({"problem_id": "a", "code": code}) for code in codes]
    (folder / "step-00000.jsonl").write_text("\n".join(lines))
    done = CliRunner().invoke(app, ["audit", str(tmp_path / "p.jsonl"), "--run", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    assert "a: wrong_tests: 2 tests deny" in done.output
    empty = CliRunner().invoke(app, ["audit", str(tmp_path / "p.jsonl"), "--run", str(tmp_path)])
    assert empty.exit_code == 2
