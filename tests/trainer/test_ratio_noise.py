"""What two forwards of one policy differ by is measured before the first update, and said where it exceeds the clip."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from environments.common.settings import load
from tests.trainer.objective_ranks import groups_to_train
from trainer.config import OptimizerConfig, TrainerConfig
from trainer.metrics import Metrics
from trainer.model.policy import Policy
from trainer.optimizer import PolicyOptimizer
from trainer.parallel import Parallel
from trainer.step import prepare, set_old_logprobs, take_steps

FLAGS = ["--model", "m", "--run_dir", "r", "--batch.context", "32", "--batch.max_tokens", "60"]


def step(path: Path, parallel: Parallel, name: str, noise: float, old: str = "recompute") -> dict[str, Any]:
    """The metrics of a batch whose old log-probabilities are off by `noise` in every token."""
    steps = "2" if old == "recompute" else "1"
    flags = ["--objective.name", name, "--objective.old_logprobs", old, "--objective.optimizer_steps_per_batch", steps]
    config = load(TrainerConfig, [*FLAGS, *flags])
    policy = Policy(path, parallel, activation_checkpointing="none")
    optimizer = PolicyOptimizer(policy, OptimizerConfig(lr=1e-9, warmup_steps=0))
    batch = prepare(groups_to_train(), config, parallel)
    set_old_logprobs(batch, policy, config, parallel)
    for part in batch.parts:
        part.old_logprobs = [one - noise for one in part.old_logprobs]
    metrics = Metrics()
    take_steps(batch, policy, optimizer, config, parallel, metrics)
    return metrics.reduce()


@pytest.mark.parametrize(("name", "noise", "said"), [("dapo", 0.1, False), ("dapo", 0.21, True), ("gspo", 0.0, False)])
def test_the_noise_is_a_metric_and_a_warning_above_the_clip_range(
    models: dict[str, Path], alone: Parallel, caplog: pytest.LogCaptureFixture, name: str, noise: float, said: bool
) -> None:
    with caplog.at_level(logging.WARNING, logger="trainer.step"):
        found = step(models["llama"], alone, name, noise)
    assert found["ratio_noise"] == pytest.approx(noise, abs=1e-6)
    assert ("ratio_noise 0.21" in caplog.text) == said


def test_a_sequence_ratios_noise_is_that_of_the_sequence(models: dict[str, Path], alone: Parallel) -> None:
    found = step(models["llama"], alone, "gspo", 2e-4)
    assert found["ratio_noise"] == pytest.approx(2e-4, rel=1e-2)


def test_the_samplers_log_probabilities_say_nothing_of_it(models: dict[str, Path], alone: Parallel) -> None:
    assert step(models["llama"], alone, "dapo", 0.0, old="sampler")["ratio_noise"] is None
