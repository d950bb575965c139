"""The gradient of every objective on a world of any size: run as a program by each rank."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from environments.common.settings import load
from tests.trainer.conftest import make_groups
from tests.trainer.two_ranks import whole
from trainer.config import TrainerConfig
from trainer.data.scored_groups import ScoredGroup
from trainer.metrics import Metrics
from trainer.model.policy import Policy
from trainer.parallel import Parallel, distributed
from trainer.step import accumulate_gradient, prepare, set_old_logprobs

NAMES = ("grpo", "dapo", "gspo", "gspo+", "dr_grpo")
MAX_TOKENS = (40, 1000)


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


def all_gradients(path: Path, parallel: Parallel) -> dict[Any, dict[str, Tensor]]:
    """(objective, baseline, max_tokens) -> gradient."""
    return {
        (name, baseline, tokens): gradient(path, parallel, name, tokens, baseline)
        for name in NAMES
        for baseline in ("include", "exclude")
        for tokens in MAX_TOKENS
    }


def main(path: Path, result: Path) -> None:
    """Rank 0 leaves the gradients in `result`."""
    torch.set_num_threads(1)
    with distributed(deadline_s=120, device="cpu") as parallel:
        found = all_gradients(path, parallel)
        if parallel.is_main:
            torch.save(found, result)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
