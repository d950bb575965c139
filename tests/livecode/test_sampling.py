"""The order of problems."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from environments.livecode.problems.load import save_problems
from environments.livecode.problems.problem import Problem, ProblemError, TestCase
from environments.livecode.problems.sampler import (
    FLOOR,
    LearnableSampler,
    Sampler,
    UniformSampler,
    build_sampler,
    load_set,
)


def problem(name: str, template: str | None = None) -> Problem:
    tests = [TestCase(input="", output="")]
    return Problem(id=name, source="t", kind="stdin", statement="s", template=template, tests=tests)


PROBLEMS = [problem(f"{template}{n}", template) for template in "abc" for n in range(4)]


def drawn(sampler: Sampler, count: int) -> list[str]:
    return [sampler.next().id for _ in range(count)]


def test_uniform_gives_every_problem_once_an_epoch_in_another_order() -> None:
    ids = drawn(UniformSampler(PROBLEMS, 1), 24)
    assert sorted(ids[:12]) == sorted(ids[12:]) == sorted(one.id for one in PROBLEMS)
    assert ids[:12] != ids[12:]


def test_the_order_follows_the_seed() -> None:
    for rule in ("uniform", "learnable"):
        first, same, other = (drawn(build_sampler(rule, PROBLEMS, seed), 12) for seed in (1, 1, 2))
        assert first == same
        assert first != other


def test_learnable_draws_by_p_times_one_minus_p_plus_the_floor() -> None:
    sampler = LearnableSampler(PROBLEMS, 0)
    for _ in range(30):
        sampler.update(PROBLEMS[0], 1.0)  # a: always solved
        sampler.update(PROBLEMS[4], 0.0)  # b: never solved
    count = Counter(name[0] for name in drawn(sampler, 12000))
    total = 2 * FLOOR + 0.25 + FLOOR  # c was never tried: p = 0.5
    for template, weight in (("a", FLOOR), ("b", FLOOR), ("c", 0.25 + FLOOR)):
        assert count[template] / 12000 == pytest.approx(weight / total, abs=0.02)


def test_learnable_gives_every_problem_of_a_template_before_any_again() -> None:
    ids = drawn(LearnableSampler(PROBLEMS[:4], 3), 8)
    assert sorted(ids[:4]) == sorted(ids[4:]) == ["a0", "a1", "a2", "a3"]


def test_one_group_moves_the_running_rate_half_way() -> None:
    sampler = LearnableSampler([problem("x"), problem("y")], 0)
    sampler.update(problem("x"), 1.0)
    assert sampler.state()["rates"] == {"x": 0.75, "y": 0.5}


@pytest.mark.parametrize("rule", ["uniform", "learnable"])
def test_a_restart_goes_on_where_the_state_was_taken(rule: Any) -> None:
    sampler = build_sampler(rule, PROBLEMS, 5)
    drawn(sampler, 17)
    sampler.update(PROBLEMS[5], 0.25)
    state = json.loads(json.dumps(sampler.state()))
    expected = drawn(sampler, 30)
    again = build_sampler(rule, PROBLEMS, 5)
    again.restore(state)
    assert drawn(again, 30) == expected


def test_a_set_is_a_file_or_a_part_of_the_warm_up(tmp_path: Path) -> None:
    save_problems(PROBLEMS, tmp_path / "p.jsonl")
    assert load_set(str(tmp_path / "p.jsonl"), 0) == PROBLEMS
    assert {one.source for one in load_set("warmup:train", 0)} == {"warmup"}


def test_an_unknown_warm_up_set_names_the_known_ones() -> None:
    with pytest.raises(ProblemError, match=r"'warmup:trian'.*warmup:train, warmup:new_instances"):
        load_set("warmup:trian", 0)


def test_with_a_floor_every_problem_comes_at_least_once_in_so_many_epochs() -> None:
    problems = [problem(f"p{number:02}") for number in range(40)]
    orders: dict[int, list[str]] = {}
    for floor in (0, 3):
        sampler = build_sampler("learnable", problems, 1, floor)
        orders[floor] = []
        for _ in range(40 * 30):
            one = sampler.next()
            sampler.update(one, 0.5 if one is problems[0] else 0.0)
            orders[floor].append(one.id)
    longest = {}
    for floor, order in orders.items():
        at = {one.id: 0 for one in problems}
        gaps = []
        for number, name in enumerate([*order, *at], 1):
            gaps.append(number - at[name])
            at[name] = number
        longest[floor] = max(gaps)
    assert longest[3] <= 3 * 40 + 40  # one may wait while others that are due come first
    assert longest[0] > longest[3]
    assert orders[3].count(problems[0].id) > 2 * 30  # more often than once an epoch all the same
