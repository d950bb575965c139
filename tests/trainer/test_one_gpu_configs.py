"""The configurations for one GPU: what they say of memory and time is the budget's, and each takes a step."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from environments.launch.config import load_launch, parts
from tests.trainer.objective_ranks import groups_to_train
from trainer.config import TrainerConfig
from trainer.metrics import Metrics
from trainer.parallel import Parallel
from trainer.planning.fit import model_config, setup, token_flops, tokens_per_second
from trainer.planning.flops import GPUS
from trainer.planning.timeline import GIB, plan
from trainer.planning.turns import turns, turns_refusal
from trainer.step import prepare, set_old_logprobs, take_steps
from trainer.training_state import TrainingState

FILES = sorted((Path(__file__).parents[2] / "configs" / "one-gpu").glob("*.yaml"))
SAID = re.compile(r"training needs ([\d.]+) GiB of the card's ([\d.]+); vLLM has (\d+)% of it\..*?peak: (\d+) s", re.S)


def trainer_of(file: Path) -> tuple[TrainerConfig, float]:
    """The trainer's options and vLLM's share of the card."""
    config = load_launch(["--config", str(file)])
    found = parts(config, "http://127.0.0.1:1", ["http://127.0.0.1:2"])
    if found.trainer.weights.backend == "colocated":
        return found.trainer, found.trainer.weights.server_share
    return found.trainer, float(config.server["gpu_memory_utilization"])


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_numbers_in_the_file_are_the_budgets_and_fit_the_card(file: Path) -> None:
    config, share = trainer_of(file)
    said = SAID.search(file.read_text(encoding="utf-8"))
    assert said is not None
    needs, card, percent, seconds = (float(number) for number in said.groups())
    model = model_config(config.model)
    budget = plan(model, setup(config, 1))
    needed = budget.needed / GIB
    assert config.memory_gib is not None
    if config.weights.backend == "colocated":
        needed = turns(model, config, budget, card * GIB).training / GIB
        assert config.memory_gib == card
        assert turns_refusal(model, config, budget, card * GIB) is None
    else:
        assert needed <= config.memory_gib <= card * (1 - share)
    assert needs == pytest.approx(needed, abs=0.06)
    assert percent == pytest.approx(100 * share)
    tokens = config.batch.rollouts * config.batch.context
    estimate = tokens / tokens_per_second(sum(token_flops(model, config)), 1, GPUS["h100"].bf16_flops, 0.3)
    assert seconds == pytest.approx(estimate, abs=0.6)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_each_takes_a_step_with_a_tiny_model_of_its_architecture(
    file: Path, alone: Parallel, models: dict[str, Path]
) -> None:
    config, _ = trainer_of(file)
    batch = config.batch.model_copy(update={"context": 32, "max_tokens": 64})
    config = config.model_copy(update={"model": models["qwen3"], "batch": batch})
    state = TrainingState(config, config.model, alone)
    step = prepare(groups_to_train(), config, alone)
    set_old_logprobs(step, state.policy, config, alone)
    assert take_steps(step, state.policy, state.optimizer, config, alone, Metrics(), state.reference) == 1
