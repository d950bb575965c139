"""Advantages by value, and the trainer's check of the environment's dynamic sampling."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from environments.common import rewards
from environments.common.rewards import drop_reason, group_advantages
from trainer.data.advantages import DropDisagreement, cross_check, tensor_drop_reason
from trainer.data.scored_groups import Rollout, ScoredGroup

VECTORS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "advantages.json").read_text(encoding="utf-8")
)["cases"]

cases = pytest.mark.parametrize("case", VECTORS, ids=lambda case: case["name"])
baselines = pytest.mark.parametrize("baseline", ["include", "exclude"])


def group(scores: list[float], overlong: list[bool]) -> ScoredGroup:
    rollouts = [
        Rollout([7], [-0.5], score, over, "length" if over else "stop", [(0, 0, 1)])
        for score, over in zip(scores, overlong, strict=True)
    ]
    return ScoredGroup("g-1", "p-1", 1.0, 64, [1, 2], rollouts)


@cases
@baselines
def test_the_vectors_advantages(case: dict[str, Any], baseline: str) -> None:
    found = group_advantages(case["scores"], case["overlong"], baseline)
    assert found == pytest.approx(case[baseline]["advantages"], abs=1e-15)


@cases
@baselines
def test_the_vectors_advantages_without_std(case: dict[str, Any], baseline: str) -> None:
    found = group_advantages(case["scores"], case["overlong"], baseline, scale_by_std=False)
    assert found == pytest.approx(case[baseline]["unscaled"], abs=1e-15)


@cases
@baselines
def test_the_vectors_drop_reasons_from_tensors(case: dict[str, Any], baseline: str) -> None:
    scores = torch.tensor(case["scores"], dtype=torch.float64)
    assert tensor_drop_reason(scores, torch.tensor(case["overlong"]), baseline) == case[baseline]["drop"]


@baselines
def test_both_sides_agree_on_every_group_of_up_to_five(baseline: str) -> None:
    for size in range(1, 6):
        for scores in itertools.product([1.0, -1.0], repeat=size):
            for overlong in itertools.product([False, True], repeat=size):
                pure = drop_reason(scores, overlong, baseline)
                tensors = tensor_drop_reason(
                    torch.tensor(scores, dtype=torch.float64), torch.tensor(overlong), baseline
                )
                assert pure == tensors, (scores, overlong)


@baselines
def test_a_group_is_kept_iff_an_effective_advantage_is_not_zero(baseline: str) -> None:
    for scores in itertools.product([1.0, -1.0], repeat=4):
        for overlong in itertools.product([False, True], repeat=4):
            effective = any(group_advantages(scores, overlong, baseline))
            assert effective == (drop_reason(scores, overlong, baseline) is None), (scores, overlong)


def test_the_std_is_the_populations() -> None:
    # sample std of (1, -1) is sqrt(2), the population's 1
    assert group_advantages([1.0, -1.0], [False, False], "include") == [1.0, -1.0]


def test_no_epsilon_shrinks_a_small_spread() -> None:
    assert group_advantages([1e-12, -1e-12], [False, False], "include") == [1.0, -1.0]


def test_equal_scores_that_do_not_round_give_exact_zeros() -> None:
    assert group_advantages([0.1] * 3, [False] * 3, "include") == [0.0] * 3


def test_a_left_out_row_does_not_shift_its_neighbours() -> None:
    # known fault: rows dropped before the reshape into groups
    found = group_advantages([-1.0, 1.0, 1.0, -1.0], [True, False, False, False], "exclude")
    assert found == pytest.approx([0.0, 2**-0.5, 2**-0.5, -(2**0.5)])


def test_lengths_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="2 scores and 1 overlong"):
        group_advantages([1.0, -1.0], [False], "include")


def test_an_unknown_baseline_is_refused() -> None:
    with pytest.raises(ValueError, match="choose include or exclude"):
        group_advantages([1.0], [False], "none")


def test_a_mixed_group_passes_the_check() -> None:
    assert cross_check([group([1, -1], [False, False])], "include") == [None]


def test_the_reasons_of_groups_without_a_signal_come_back() -> None:
    assert cross_check([group([1, -1], [False, True])], "exclude") == ["finished_equal"]
    groups = [group([1, 1], [False, False]), group([1, -1], [False, False]), group([1, -1], [True, True])]
    assert cross_check(groups, "include") == ["all_pass", None, "all_overlong"]


def test_a_wrong_drop_reason_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    # a change to the environment's function alone must not pass unseen
    monkeypatch.setattr("trainer.data.advantages.drop_reason", lambda *_: rewards.drop_reason([1.0], [False]))
    with pytest.raises(DropDisagreement, match="drop_reason says all_pass, the advantages say None"):
        cross_check([group([1, -1], [False, False])], "include")
