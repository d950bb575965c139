"""What a step counts before its first loss."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from environments.common.settings import load
from tests.trainer.conftest import make_groups
from trainer.config import TrainerConfig
from trainer.model.packing import MicroBatch, pack
from trainer.objective.objectives import Denominators
from trainer.parallel import Parallel
from trainer.step import Batch, OptimizerBatch, set_old_logprobs

SHAPES = [(5, [4, 2, 6]), (3, [8, 9])]
AWAY = {(0, 1): math.log(2.0), (1, 0): math.log(0.4)}
"""Distance of the trainer's log-probabilities from the sampler's: of every token of these two rollouts."""


class Shifted:
    """A policy whose log-probabilities are the sampler's, but for AWAY."""

    def logprobs(self, micro: MicroBatch, *, entropy: bool = True) -> tuple[torch.Tensor, None]:
        away = torch.tensor([AWAY.get(origin, 0.0) for origin in micro.origin])
        return micro.sampler_logprob + away[micro.sequence], None


def counts(parallel: Parallel, max_tokens: int, *flags: str) -> Denominators:
    """N and S of the step with these options."""
    groups = make_groups(SHAPES)
    config = load(TrainerConfig, ["--model", "m", "--run_dir", "r", *flags])
    micros = pack(groups, [[1.0] * len(group.rollouts) for group in groups], max_tokens, rank=0, world_size=1)
    part = OptimizerBatch(micros, Denominators(5, 29))
    policy: Any = Shifted()
    set_old_logprobs(Batch(groups, [part], {}, 29), policy, config, parallel)
    return part.counts


@pytest.mark.parametrize("max_tokens", [14, 60])
def test_sequences_that_the_mask_leaves_out_leave_the_divisor(alone: Parallel, max_tokens: int) -> None:
    low, high = ("--objective.sequence_mask_low", "0.5"), ("--objective.sequence_mask_high", "1.5")
    assert counts(alone, max_tokens) == (5, 29)
    assert counts(alone, max_tokens, *high) == (4, 27)
    assert counts(alone, max_tokens, *low) == (4, 21)
    assert counts(alone, max_tokens, *low, *high) == (3, 19)
