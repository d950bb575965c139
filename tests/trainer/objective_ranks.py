"""The gradient of every objective on a world of any size, computed by each of its ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from environments.common.settings import load
from tests.trainer.conftest import make_groups
from tests.trainer.two_ranks import whole
from trainer.config import OptimizerConfig, TrainerConfig
from trainer.data.scored_groups import ScoredGroup
from trainer.metrics import Metrics
from trainer.model.policy import Policy
from trainer.model.reference import Reference
from trainer.optimizer import PolicyOptimizer
from trainer.parallel import Parallel, distributed
from trainer.step import accumulate_gradient, prepare, set_old_logprobs, set_reference_logprobs, take_steps

NAMES = ("grpo", "dapo", "gspo", "gspo+", "dr_grpo")
MAX_TOKENS = (40, 1000)
HELD = ("frozen", "ema", "frozen, offloaded")
"""KL terms: each towards another reference."""


def groups_to_train() -> list[ScoredGroup]:
    """Groups with mixed scores, one rollout cut off, and sampler's log-probabilities that differ from the policy's."""
    groups = make_groups([(11, [4, 2, 6]), (3, [8, 9, 1]), (6, [1, 5, 7, 2]), (5, [3, 3, 3])])
    return [
        replace(
            group,
            rollouts=[
                # the first group's last rollout is cut off; half of the third group passes, a third of the others
                replace(
                    rollout,
                    score=1.0 if place == 0 or (number == 2 and place == 1) else -1.0,
                    overlong=number == 0 and place == 2,
                )
                for place, rollout in enumerate(group.rollouts)
            ],
        )
        for number, group in enumerate(groups)
    ]


def gradient(path: Path, parallel: Parallel, name: str, max_tokens: int, baseline: str) -> dict[str, Tensor]:
    """The whole gradient of the first part of a step, after the old log-probabilities have been moved a little."""
    flags = ["--model", "m", "--run_dir", "r", "--objective.name", name, "--objective.overlong_baseline", baseline]
    flags += ["--objective.optimizer_steps_per_batch", "2", "--objective.clip_low", "0.2", "--objective.clip_high", "9"]
    flags += ["--batch.max_tokens", str(max_tokens), "--batch.context", "32"]
    config = load(TrainerConfig, flags)
    policy = Policy(path, parallel, activation_checkpointing="none", logprob_chunk=5)
    batch = prepare(groups_to_train(), config, parallel)
    set_old_logprobs(batch, policy, config, parallel)
    part = batch.parts[0]
    # ratios other than 1, the same for a token wherever it is computed
    part.old_logprobs = [old + 0.1 * torch.sin(old * 7) for old in part.old_logprobs]
    accumulate_gradient(part, policy, config, parallel, Metrics())
    return whole({key: weight.grad for key, weight in policy.model.named_parameters()})


def held(path: Path, parallel: Parallel, kind: str, max_tokens: int) -> dict[str, Tensor]:
    """The gradient of DAPO with a KL term, two updates away from the start; of a mean the mean as well."""
    reference, _, offload = kind.partition(", ")
    flags = ["--model", "m", "--run_dir", "r", "--batch.max_tokens", str(max_tokens), "--batch.context", "32"]
    flags += ["--objective.reference", reference, "--objective.kl_coefficient", "0.5"]
    flags += ["--objective.reference_decay", "0.75"] if reference == "ema" else []
    flags += ["--objective.reference_offload", "true"] if offload else []
    flags += ["--objective.optimizer_steps_per_batch", "2"]
    config = load(TrainerConfig, flags)
    policy = Policy(path, parallel, activation_checkpointing="none", logprob_chunk=5)
    # The gradient itself moves the weights: Adam would make of a rounding error in a small one a whole step.
    optimizer = PolicyOptimizer(policy, OptimizerConfig(lr=2e-3, eps=1.0, max_grad_norm=1e9))
    follower = Reference(config, policy)
    batch = prepare(groups_to_train(), config, parallel)
    for part in (0, 1):
        set_reference_logprobs(batch, follower)
        set_old_logprobs(batch, policy, config, parallel)
        if not part:
            take_steps(batch, policy, optimizer, config, parallel, Metrics(), follower)
    accumulate_gradient(batch.parts[0], policy, config, parallel, Metrics())
    found: dict[str, Tensor | None] = {key: weight.grad for key, weight in policy.model.named_parameters()}
    return whole({**found, **{f"mean of {key}": value for key, value in follower.state().items()}})


def all_gradients(path: Path, parallel: Parallel) -> dict[Any, dict[str, Tensor]]:
    """(objective, baseline, max_tokens) -> gradient."""
    found = {
        (name, baseline, tokens): gradient(path, parallel, name, tokens, baseline)
        for name in NAMES
        for baseline in ("include", "exclude")
        for tokens in MAX_TOKENS
    }
    for kind in HELD:
        found |= {("held", kind, tokens): held(path, parallel, kind, tokens) for tokens in MAX_TOKENS}
    return found


def main(path: Path, result: Path) -> None:
    """Rank 0 leaves the gradients in `result`."""
    with distributed(deadline_s=120, device="cpu") as parallel:
        found = all_gradients(path, parallel)
        if parallel.is_main:
            torch.save(found, result)
