"""Metrics: sums with counts that are exact whatever the cut into micro-batches and ranks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from trainer.data.scored_groups import Rollout, ScoredGroup
from trainer.metric_table import METRICS, REDUCTIONS, markdown
from trainer.metrics import Metrics, group_stats


def rollout(length: int, score: float, overlong: bool = False, version: int = 0) -> Rollout:
    reason = "length" if overlong else "stop"
    return Rollout([5] * length, [-1.0] * length, score, overlong, reason, [(version, 0, length)])


def test_a_mean_is_sum_over_count_not_a_mean_of_means() -> None:
    metrics = Metrics()
    metrics.add("entropy", 1.0, 1)
    metrics.add("entropy", 9.0, 9 * 3)
    assert metrics.reduce()["entropy"] == pytest.approx(10 / 28)


def test_a_maximum_stays_the_maximum() -> None:
    metrics = Metrics()
    for value in (0.5, torch.tensor(3.0), 1.0):
        metrics.add("ratio_max", value)
    assert metrics.reduce()["ratio_max"] == 3.0


def test_a_count_is_an_integer_and_zero_without_an_observation() -> None:
    metrics = Metrics()
    metrics.add("dropped_all_fail", torch.tensor(2))
    metrics.add("dropped_all_fail", 1)
    values = metrics.reduce()
    assert (values["dropped_all_fail"], values["dropped_all_pass"]) == (3, 0)
    assert isinstance(values["dropped_all_fail"], int)


def test_a_metric_without_an_observation_is_none() -> None:
    values = Metrics().reduce()
    assert values["entropy"] is None
    assert values["ratio_max"] is None


def test_an_observation_of_nothing_is_none_not_nan() -> None:
    metrics = Metrics()
    metrics.add("length_passed", 0, 0)
    metrics.add("mismatch_abs_max", float("-inf"), 0)
    values = metrics.reduce()
    assert (values["length_passed"], values["mismatch_abs_max"]) == (None, None)


def test_equal_weights_are_worth_all_their_tokens() -> None:
    metrics = Metrics()
    metrics.add("effective_sample_size", 8.0, 4, 16.0)
    assert metrics.reduce()["effective_sample_size"] == 1.0


def test_one_heavy_weight_is_worth_one_token() -> None:
    metrics = Metrics()
    metrics.add("effective_sample_size", 4.0, 4, 16.0)
    assert metrics.reduce()["effective_sample_size"] == 0.25


def test_the_loss_is_summed_over_micro_batches_and_averaged_over_optimizer_steps() -> None:
    metrics = Metrics()
    for value in (0.25, 0.5, 0.75):
        metrics.add("loss", value)
    metrics.add("optimizer_steps", 2)
    assert metrics.reduce()["loss"] == 0.75


def test_reducing_starts_anew() -> None:
    metrics = Metrics()
    metrics.add("groups", 3)
    metrics.reduce()
    assert metrics.reduce()["groups"] == 0


def test_an_unknown_name_says_where_to_add_it() -> None:
    with pytest.raises(KeyError, match=r"'speed' is unknown.*METRICS in trainer/metric_table.py"):
        Metrics().add("speed", 1.0)


def test_large_counts_stay_exact() -> None:
    metrics = Metrics()
    metrics.add("packed_tokens", 2**40)
    metrics.add("packed_tokens", torch.tensor(1))
    assert metrics.reduce()["packed_tokens"] == 2**40 + 1


GROUPS = [
    ScoredGroup(
        "a", "p", 1.0, 64, [1], [rollout(4, 1.0, version=3), rollout(8, -1.0, version=2), rollout(9, -1.0, True, 3)]
    ),
    ScoredGroup("b", "q", 1.0, 64, [1], [rollout(2, -1.0, version=5), rollout(6, 1.0, True, 5)]),
]


def values_of(groups: list[ScoredGroup], step: int) -> dict[str, Any]:
    metrics = Metrics()
    metrics.update(group_stats(groups, step))
    return metrics.reduce()


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("groups", 2),
        ("rollouts", 5),
        ("reward", (1 - 1 - 1 - 1 + 1) / 5),
        ("pass_at_1", 2 / 5),
        ("pass_at_group", 1.0),
        ("overlong", 2 / 5),
        ("length_passed", 4.0),
        ("length_failed", 5.0),
        ("length_overlong", 7.5),
        ("length_max", 9),
        ("staleness", (4 + 1) / 2),
        ("staleness_max", 4),
    ],
)
def test_what_the_groups_say_by_hand(name: str, wanted: float) -> None:
    assert values_of(GROUPS, 6)[name] == pytest.approx(wanted)


def test_groups_of_each_rank_give_the_batchs_values() -> None:
    metrics = Metrics()
    for group in GROUPS:
        metrics.update(group_stats([group], 6))
    assert metrics.reduce() == values_of(GROUPS, 6)


def test_no_groups_give_no_means() -> None:
    values = values_of([], 6)
    assert (values["reward"], values["staleness_max"], values["groups"]) == (None, None, 0)


# what design/objectives.md lists under "Metrics of every step"
LISTED = [
    "clip_low_tokens",
    "clip_high_tokens",
    "clip_low_sequences",
    "clip_high_sequences",
    "dual_clip_tokens",
    "ratio_mean",
    "ratio_max",
    "kl_old_k1",
    "kl_old_k3",
    "mismatch_kl",
    "mismatch_abs",
    "mismatch_abs_max",
    "effective_sample_size",
    "entropy",
    "grad_norm",
    "loss",
    "sequences",
    "tokens",
    "length_passed",
    "length_failed",
    "length_overlong",
    "staleness",
    "staleness_max",
    "dropped_all_pass",
    "dropped_all_fail",
    "dropped_all_overlong",
    "dropped_finished_equal",
    "reward",
    "pass_at_group",
    "clipped_before_update",
    "served_weights_changed",
    "mismatch_abs_after_sync",
]


@pytest.mark.parametrize("name", LISTED)
def test_every_listed_metric_is_in_the_table(name: str) -> None:
    assert name in METRICS


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_has_a_sentence_and_a_known_reduction(name: str) -> None:
    row = METRICS[name]
    assert row.sentence[0].isupper() or row.sentence.startswith("|")
    assert row.sentence.endswith(".")
    assert row.reduction in REDUCTIONS


def test_the_markdown_table_has_three_cells_in_every_line() -> None:
    lines = markdown().splitlines()
    assert len(lines) == len(METRICS) + 2
    # a bar inside a sentence would open a fourth cell
    assert {line.replace(r"\|", "").count("|") for line in lines} == {4}


def test_values_are_plain_numbers() -> None:
    metrics = Metrics()
    metrics.add("mismatch_abs", torch.tensor(1.5, dtype=torch.float64), torch.tensor(3))
    value = metrics.reduce()["mismatch_abs"]
    assert type(value) is float
    assert math.isclose(value, 0.5)
