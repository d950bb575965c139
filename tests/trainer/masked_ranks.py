"""Parts of a batch without a gradient, on a world of two: run as a program by each rank."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from environments.common.settings import load
from tests.trainer.conftest import make_groups
from tests.trainer.two_ranks import start, weights
from trainer.config import TrainerConfig
from trainer.data.scored_groups import ScoredGroup
from trainer.metrics import Metrics
from trainer.model.packing import pack
from trainer.model.policy import Policy
from trainer.parallel import distributed
from trainer.step import Batch, prepare, set_old_logprobs, take_steps

SHAPES = [(11, [4, 2, 6]), (3, [8, 9, 1])]
FLAGS = ["--model", "m", "--run_dir", "r", "--batch.context", "32", "--batch.max_tokens", "40"]
FLAGS += ["--objective.optimizer_steps_per_batch", "2", "--objective.sequence_mask_high", "2.0"]
FAR = 3.0
"""Nats: a sampler that is this much lower is masked."""


def groups(policy: Policy, away: tuple[float, float]) -> list[ScoredGroup]:
    """Two groups with a signal, whose sampler reported the policy's own log-probabilities minus `away`."""
    found = []
    for number, group in enumerate(make_groups(SHAPES)):
        with torch.no_grad():
            [micro] = pack([group], [[0.0] * 3], 40)  # every rank computes all of it
            own = policy.logprobs(micro)[0].split(micro.length.tolist())
        rollouts = [
            replace(
                group.rollouts[place],
                logprobs=(own[row] - away[number]).tolist(),
                score=1.0 if place == 0 else -1.0,
            )
            for row, (_, place) in enumerate(micro.origin)
        ]
        found.append(replace(group, rollouts=rollouts))
    return found


def zeroed(batch: Batch) -> Batch:
    """The batch with advantages of zero: as where every sequence that is left was cut off."""
    for part in batch.parts:
        for micro in part.micro_batches:
            micro.advantage.zero_()
    return batch


def main(path: Path, folder: Path) -> None:
    """Each rank leaves (optimizer steps, whether a weight moved, metrics) of every case in `folder`."""
    results: dict[str, Any] = {}
    config = load(TrainerConfig, FLAGS)
    with distributed(deadline_s=120, device="cpu") as parallel:
        policy, optimizer = start(path, parallel)

        def step(away: tuple[float, float], *, silent: bool = False) -> tuple[int, bool, dict[str, Any]]:
            metrics = Metrics()
            before = weights(policy)
            batch = prepare(groups(policy, away), config, parallel)
            set_old_logprobs(zeroed(batch) if silent else batch, policy, config, parallel)
            taken = take_steps(batch, policy, optimizer, config, parallel, metrics)
            after = weights(policy)
            moved = any(not torch.equal(before[name], after[name]) for name in after)
            return taken, moved, metrics.reduce() | {"trained": batch.tokens, "updates": optimizer.updates}

        results["both"] = step((0.0, 0.0))  # AdamW has moments from here on
        results["first masked"] = step((FAR, 0.0))
        results["second masked"] = step((0.0, FAR))
        results["all masked"] = step((FAR, FAR))
        results["no advantage"] = step((0.0, 0.0), silent=True)
        torch.save(results, folder / f"{parallel.rank}.pt")
