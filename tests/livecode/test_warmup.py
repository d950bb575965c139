"""The warm-up sets: what is split from what, that the tests tell programs apart, and that the references pass."""

from __future__ import annotations

import json
import string
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from environments.livecode.problems.load import load_problems
from environments.livecode.problems.problem import Problem, TestCase
from environments.livecode.problems.warmup import FEWSHOT, TEMPLATES, UNSEEN, WarmupSets, turns_for, write
from environments.livecode.problems.warmup import build as build_anew
from environments.livecode.problems.warmup.generate import _spread
from environments.livecode.problems.warmup.reference import Reference
from verifier_app.judge import verify

build = cache(build_anew)
BY_ID = {template.id: template for template in TEMPLATES}


@pytest.fixture(scope="module")
def sets() -> WarmupSets:
    return build(0)


def all_problems(sets: WarmupSets) -> list[Problem]:
    return sets.train + sets.new_instances + sets.unseen_templates


def values(test: TestCase) -> list[object]:
    return [json.loads(line) for line in test.input.split("\n")]


def passes(program: str, problem: Problem) -> bool:
    """Whether a reference program of the same template passes a problem's tests."""
    call = BY_ID[str(problem.template)].call
    reference = Reference(program, call)
    for test in problem.tests:
        given = tuple(values(test)) if call else tuple(test.input.rstrip("\n").split("\n"))
        try:
            if reference.test(given).output != test.output:  # type: ignore[arg-type]
                return False
        except IndexError:
            return False
    return True


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "environments.livecode.problems.warmup",
        "--seed",
        "1",
        "--out",
        str(tmp_path / "b"),
    ]
    subprocess.run(command, check=True, capture_output=True)  # a process of its own: another hash seed
    write(build(1), tmp_path / "a", 1)
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names == {"train.jsonl", "new_instances.jsonl", "unseen_templates.jsonl", "manifest.json"}
    assert all((tmp_path / "a" / n).read_bytes() == (tmp_path / "b" / n).read_bytes() for n in names)


def test_another_seed_gives_other_instances(sets: WarmupSets) -> None:
    assert {p.id for p in build(1).train} != {p.id for p in sets.train}


def test_written_sets_load_equal_and_the_manifest_counts_them(sets: WarmupSets, tmp_path: Path) -> None:
    write(sets, tmp_path, 0)
    files = json.loads((tmp_path / "manifest.json").read_text())["files"]
    for name in ("train", "new_instances", "unseen_templates"):
        assert load_problems(tmp_path / f"{name}.jsonl") == getattr(sets, name)
        assert files[f"{name}.jsonl"]["problems"] == len(getattr(sets, name))


def test_there_are_at_least_sixty_templates_of_every_step_and_kind() -> None:
    assert len(BY_ID) == len(TEMPLATES) >= 60
    for part in (UNSEEN, BY_ID.keys() - UNSEEN):
        assert {(BY_ID[i].step, BY_ID[i].call is None) for i in part} == {
            (step, stdin) for step in (1, 2, 3) for stdin in (True, False)
        }


def test_some_calls_are_methods_and_some_are_functions() -> None:
    assert {t.call.in_class for t in TEMPLATES if t.call and t.id not in UNSEEN} == {True, False}


@pytest.mark.parametrize("seed", [0, 1])
def test_new_instances_have_parameters_that_were_not_trained(seed: int) -> None:
    sets = build(seed)
    trained = {(p.template, json.dumps(sets.parameters[p.id], sort_keys=True)) for p in sets.train}
    held_out = [(p.template, json.dumps(sets.parameters[p.id], sort_keys=True)) for p in sets.new_instances]
    assert not trained & set(held_out)
    assert len(set(held_out)) == len(held_out)


def test_every_trained_template_with_parameters_has_a_new_instance(sets: WarmupSets) -> None:
    want = {t.id for t in TEMPLATES if t.parametrised and t.id not in UNSEEN}
    assert {p.template for p in sets.new_instances} == want


def test_unseen_templates_are_never_trained_and_the_same_for_every_seed(sets: WarmupSets) -> None:
    assert len(UNSEEN) == 18
    assert BY_ID.keys() >= UNSEEN
    for built in (sets, build(1)):
        assert {p.template for p in built.unseen_templates} == UNSEEN
        assert not UNSEEN & {p.template for p in built.train + built.new_instances}


def test_ids_and_statements_are_unique_over_all_sets(sets: WarmupSets) -> None:
    problems = all_problems(sets)
    assert max(Counter(p.id for p in problems).values()) == 1
    assert max(Counter(p.statement for p in problems).values()) == 1


def test_every_problem_has_eight_to_ten_different_inputs(sets: WarmupSets) -> None:
    for problem in all_problems(sets):
        assert 8 <= len({test.input for test in problem.tests}) == len(problem.tests) <= 10, problem.id


def test_no_constant_answer_passes_most_tests(sets: WarmupSets) -> None:
    for problem in all_problems(sets):
        (_, most), *_ = Counter(test.output for test in problem.tests).most_common()
        assert most <= 0.7 * len(problem.tests), problem.id


def test_a_program_with_another_parameter_fails(sets: WarmupSets) -> None:
    for problem in sets.new_instances + sets.unseen_templates + sets.train[::5]:
        template = BY_ID[str(problem.template)]
        own = sets.parameters[problem.id]
        for params in template.space if template.parametrised else ():
            if params != own:
                assert not passes(template.program(params), problem), (problem.id, params)


def test_the_statement_shows_the_first_test_and_nothing_is_left_to_fill_in(sets: WarmupSets) -> None:
    for problem in all_problems(sets):
        first = problem.tests[0]
        if problem.kind == "stdin":
            sample = f"Sample Input 1\n\n{first.input.strip()}\n\nSample Output 1\n\n{first.output.strip()}"
            assert problem.statement.endswith(sample)
        else:
            assert all(json.dumps(value) in problem.statement for value in values(first))
            assert problem.statement.endswith(f"Output: {first.output}")
        assert "$" not in problem.statement + problem.starter_code
        assert first.output.strip()


def test_problems_carry_no_reference_program(sets: WarmupSets) -> None:
    for problem in all_problems(sets):
        program = sets.references[problem.id].strip()
        assert program not in problem.starter_code + problem.statement


def test_answers_are_short(sets: WarmupSets) -> None:
    longest = max(sets.references.values(), key=len)
    assert len(longest) <= 130, longest


def test_worked_turns_are_in_no_set(sets: WarmupSets) -> None:
    sentences = {problem.statement.partition("\n")[0] for problem in all_problems(sets)}
    assert not sentences & {turn.question.partition("\n")[0] for turn in FEWSHOT}


def test_worked_turns_are_answered_correctly() -> None:
    for turn in FEWSHOT:
        code = turn.answer.removeprefix("```python\n").removesuffix("\n```")
        if turn.kind == "stdin":
            given, _, wanted = turn.question.partition("Sample Input 1")[2].partition("Sample Output 1")
            request: dict[str, Any] = {
                "fn_name": None,
                "tests": [{"input": given.strip() + "\n", "output": wanted.strip()}],
            }
        else:
            given, _, wanted = turn.question.partition("Input: ")[2].partition("\nOutput: ")
            lines = "\n".join(part.partition(" = ")[2] for part in given.split(", "))
            name = turn.starter_code.partition("def ")[2].rpartition("def ")[2].partition("(")[0]
            request = {"fn_name": name, "tests": [{"input": lines, "output": wanted}]}
        assert verify({"code": code} | request)["status"] == "accepted", turn.question


def test_turns_of_the_problems_own_kind_come_last(sets: WarmupSets) -> None:
    stdin, function = sets.train[0], sets.train[-1]
    assert [turn.kind for turn in turns_for(stdin, 4)] == ["stdin"] * 4
    assert [turn.kind for turn in turns_for(function, 4)] == ["stdin", "stdin", "function", "function"]


def test_spread_takes_turns_over_the_outputs_and_shows_a_visible_one_first() -> None:
    tests = [TestCase(input=str(i), output=o) for i, o in enumerate(["\n", "\n", "a", "a", "a", "b"])]
    assert [t.input for t in _spread(tests, 5)] == ["2", "5", "0", "3", "1"]


@pytest.mark.parametrize(
    ("name", "params", "given", "wanted"),
    [
        ("add_k", {"k": 7}, ("4",), "11\n"),
        ("floor_div_k", {"k": 4}, ("11",), "2\n"),
        ("even_odd", {"yes": "up", "no": "down"}, ("3",), "down\n"),
        ("word_or_number", {"word": "fizz", "k": 3}, ("9",), "fizz\n"),
        ("remove_letter", {"c": "a"}, ("banana",), "bnn\n"),
        ("count_equal_k", {"k": 5}, ("5 1 5",), "2\n"),
        ("keep_greater_than_k", {"k": 5}, ("6 5 9",), "6 9\n"),
        ("call_add_k_to_each", {"k": 2}, ([1, 5],), "[3, 7]"),
        ("call_is_greater", {"k": 10}, (10,), "false"),
    ],
)
def test_references_answer_as_counted_by_hand(
    name: str, params: dict[str, int | str], given: tuple[str | int | list[int], ...], wanted: str
) -> None:
    template = BY_ID[name]
    assert Reference(template.program(params), template.call).test(given).output == wanted


@pytest.mark.parametrize("template", sorted(BY_ID))
def test_the_judge_accepts_the_reference(sets: WarmupSets, template: str) -> None:
    problem = next(p for p in reversed(all_problems(sets)) if p.template == template)
    request = {"code": sets.references[problem.id], "fn_name": problem.fn_name}
    verdict = verify(request | {"tests": [test.model_dump() for test in problem.tests]})
    assert (verdict["status"], verdict["passed"]) == ("accepted", len(problem.tests)), verdict["message"]


def test_the_command_refuses_a_folder_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-m", "environments.livecode.problems.warmup", "--out", str(tmp_path / "file")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert f"--out {tmp_path / 'file'}: " in result.stderr


def test_words_are_plain_ascii(sets: WarmupSets) -> None:
    for problem in all_problems(sets):
        assert set(problem.model_dump_json()) <= set(string.printable), problem.id
