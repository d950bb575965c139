"""The alignment gate: what it measures, what it refuses."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.trainer.conftest import make_groups
from trainer.model.packing import MicroBatch, pack
from trainer.objective.alignment import ENOUGH_TOKENS, Alignment, Misaligned, enough, measure
from trainer.parallel import Parallel

GROUPS = [replace(group, temperature=0.7) for group in make_groups([(5, [14, 12, 16]), (3, [18, 19])])]


class Sampler:
    """A policy that draws log-probabilities by position, and other ones at another temperature, unless it is raw."""

    def __init__(self, noise: float = 0.0, raw: bool = False) -> None:
        self.noise, self.raw = noise, raw

    def logprobs_at(self, micro: MicroBatch, temperatures: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        drawn = torch.rand(micro.sequence.shape, generator=torch.Generator().manual_seed(5)) * -3
        return [(drawn if self.raw else drawn / one[micro.sequence]) + self.noise for one in temperatures]


def aligned(parallel: Parallel, sampled: Any, trained: Any, shift: int = 0, version: int = 0) -> Alignment | None:
    """The alignment of a trainer `trained` with rollouts of `sampled`, their tokens shifted."""
    micro = pack(GROUPS, [[1.0] * len(group.rollouts) for group in GROUPS], 200, rank=0, world_size=1)[0]
    reported = sampled.logprobs_at(micro, [micro.temperature])[0].roll(shift)
    return measure(replace(micro, sampler_logprob=reported), GROUPS, version, trained, parallel)


def test_equal_log_probabilities_pass(alone: Parallel) -> None:
    found = aligned(alone, Sampler(), Sampler())
    assert found is not None
    assert (found.tokens, found.distance) == (79, 0)
    assert found.token_earlier > 0.1
    found.check()


def test_a_difference_is_warned_of_and_then_refused(alone: Parallel, caplog: pytest.LogCaptureFixture) -> None:
    small, large = aligned(alone, Sampler(), Sampler(0.1)), aligned(alone, Sampler(), Sampler(0.2))
    assert small is not None
    assert large is not None
    with caplog.at_level(logging.WARNING):
        small.check()
    assert "0.100 nats" in caplog.text
    with pytest.raises(Misaligned, match=r"differ by 0\.200 nats"):
        large.check()


@pytest.mark.parametrize(("shift", "words"), [(1, "the token before"), (-1, "the token after")])
def test_shifted_tokens_are_named(alone: Parallel, shift: int, words: str) -> None:
    found = aligned(alone, Sampler(), Sampler(), shift)
    assert found is not None
    with pytest.raises(Misaligned, match=words):
        found.check()


def test_log_probabilities_before_the_temperature_are_named(alone: Parallel) -> None:
    found = aligned(alone, Sampler(raw=True), Sampler())
    assert found is not None
    with pytest.raises(Misaligned, match="another temperature"):
        found.check()


def test_tokens_of_older_weights_do_not_count(alone: Parallel) -> None:
    assert aligned(alone, Sampler(), Sampler(), version=1) is None


def test_as_few_groups_are_compared_as_have_enough_tokens_of_the_weights() -> None:
    older, fresh = make_groups([(5, [ENOUGH_TOKENS]), (5, [ENOUGH_TOKENS // 2] * 2)])
    older = replace(older, rollouts=[replace(older.rollouts[0], versions=[(0, 0, ENOUGH_TOKENS)])])
    fresh = replace(fresh, rollouts=[replace(rollout, versions=[(1, 0, 9)]) for rollout in fresh.rollouts])
    assert enough([older, fresh, fresh], 1) == [older, fresh]
    assert enough([fresh, older], 1) == [fresh]
    assert enough([older, older], 1) == [older, older]


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_a_number_is_refused(place: int, value: float) -> None:
    distances = [0.001, 2.0, 2.0, 0.5]
    Alignment(64, *distances).check()
    distances[place] = value
    with pytest.raises(Misaligned, match="not finite"):
        Alignment(64, *distances).check()
