"""The reference of the KL term by value: frozen, a running mean, an adapter's base; in the loss and resumed."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader
from transformers import AutoModelForCausalLM

from environments.common.settings import load
from tests.trainer import reference as oracle
from tests.trainer.objective_ranks import groups_to_train
from tests.trainer.test_checkpoints import assert_same
from tests.trainer.two_ranks import ADAPTER, OPTIMIZER, SHAPES, accumulate, whole
from trainer.checkpoints import CheckpointError, Checkpoints
from trainer.config import TrainerConfig
from trainer.data.scored_groups import ScoredGroup
from trainer.metrics import Metrics
from trainer.model.policy import Policy
from trainer.objective.objectives import Denominators, objective, policy_loss
from trainer.objective.table import OBJECTIVES
from trainer.parallel import Parallel
from trainer.planning.disk_use import disk_use
from trainer.step import accumulate_gradient, prepare, set_old_logprobs, set_reference_logprobs
from trainer.training_state import TrainingState

KL = 0.3
NEW = [[-0.3, -1.2, -0.7], [-2.0], [-0.1, -0.9]]
OLD = [[-0.5, -1.0, -0.7], [-1.9], [-0.4, -0.8]]
HELD_TO = [[-0.9, -0.2, -0.8], [-2.5], [-0.1, -3.0]]
ADVANTAGES = [1.0, -1.5, 0.5]


def flat(rows: list[list[float]]) -> Tensor:
    return torch.tensor([value for row in rows for value in row], dtype=torch.float64)


def options(*flags: str, reference: str = "frozen", adapter: bool = False) -> TrainerConfig:
    words = ["--model", "m", "--run_dir", "r", "--batch.context", "32", "--logprob_chunk", "16"]
    words += ["--objective.reference", reference, "--objective.kl_coefficient", str(KL)]
    words += ["--adapter.rank", "4", "--adapter.alpha", "8"] if adapter else []
    config = load(TrainerConfig, [*words, *flags])
    return config.model_copy(update={"optimizer": OPTIMIZER})


def updated(state: TrainingState, parallel: Parallel, updates: int = 2) -> TrainingState:
    """After some updates that the reference followed."""
    for _ in range(updates):
        accumulate(state.policy, parallel, SHAPES[state.optimizer.updates % 3 :], 40)
        state.optimizer.step()
        assert state.reference is not None
        state.reference.follow()
    return state


def exact_logprobs(model: Any, groups: list[ScoredGroup]) -> list[Tensor]:
    """transformers' own, in its weights' type, one sequence at a time."""
    found = []
    for group in groups:
        for rollout in group.rollouts:
            logits = model(torch.tensor([[*group.prompt, *rollout.completion]])).logits[0, len(group.prompt) - 1 : -1]
            table = (logits / group.temperature).log_softmax(-1)
            found.append(table.gather(1, torch.tensor(rollout.completion)[:, None])[:, 0])
    return found


def exact_model(path: Path, weights: dict[str, Tensor] | None = None) -> Any:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    if weights is not None:
        model.load_state_dict(weights, strict=False)
    return model.double().requires_grad_(weights is not None)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_kl_term_holds_to_the_reference_and_not_to_the_old_policy(name: str) -> None:
    new = flat(NEW).requires_grad_()
    sequence = torch.tensor([0, 0, 0, 1, 2, 2])
    length = torch.tensor([3, 1, 2])
    loss, stats = policy_loss(
        objective(name), new, flat(OLD), sequence, torch.tensor(ADVANTAGES, dtype=torch.float64), length,
        Denominators(3, 6), max_length=8, kl_coefficient=KL, reference_logprob=flat(HELD_TO),
    )  # fmt: skip
    loss.backward()
    value, gradient = oracle.loss_and_gradient(
        name, NEW, OLD, ADVANTAGES, kl=KL, reference=HELD_TO, max_length=8
    )  # fmt: skip
    assert loss.item() == pytest.approx(value, rel=1e-6)
    assert new.grad is not None
    torch.testing.assert_close(new.grad, flat(gradient), rtol=1e-12, atol=1e-14)
    k3 = [math.exp(q) - q - 1 for q in (flat(HELD_TO) - flat(NEW)).tolist()]
    assert [float(part) for part in stats["kl_reference"]] == pytest.approx([sum(k3), 6], rel=1e-12)


def test_without_a_coefficient_the_reference_is_measured_and_moves_nothing() -> None:
    gradients = []
    for held_to in (flat(HELD_TO), None):
        new = flat(NEW).requires_grad_()
        loss, stats = policy_loss(
            objective("dapo"), new, flat(OLD), torch.tensor([0, 0, 0, 1, 2, 2]), torch.tensor(ADVANTAGES),
            torch.tensor([3, 1, 2]), Denominators(3, 6), reference_logprob=held_to,
        )  # fmt: skip
        loss.backward()
        assert new.grad is not None
        gradients.append(new.grad)
        assert ("kl_reference" in stats) == (held_to is not None)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("max_tokens", [32, 1000])
@pytest.mark.parametrize(("reference", "adapter"), [("frozen", False), ("ema", False), ("frozen", True)])
def test_a_step_has_the_gradient_of_exact_models(
    alone: Parallel, models: dict[str, Path], reference: str, adapter: bool, max_tokens: int
) -> None:
    flags = ["--batch.max_tokens", str(max_tokens), "--objective.importance_weight", "none"]
    flags += ["--objective.reference_decay", "0.6"] if reference == "ema" else []
    config = options(*flags, reference=reference, adapter=adapter)
    state = updated(TrainingState(config, models["qwen3"], alone), alone)
    assert state.reference is not None
    groups = [replace(group, prompt=group.prompt * 2) for group in groups_to_train()]  # shared prompts, with a span
    batch = prepare(groups, config, alone)
    set_reference_logprobs(batch, state.reference)
    set_old_logprobs(batch, state.policy, config, alone)
    accumulate_gradient(batch.parts[0], state.policy, config, alone, Metrics())
    ours = whole({name: one.grad for name, one in state.policy.model.named_parameters() if one.requires_grad})

    model = exact_model(models["qwen3"], state.policy.state_dict_full())
    held_to = exact_model(models["qwen3"], whole(state.reference.state()) or None)
    with torch.no_grad():
        references = [row.tolist() for row in exact_logprobs(held_to, batch.groups)]
    logprobs = exact_logprobs(model, batch.groups)
    new = [row.tolist() for row in logprobs]
    advantages = []
    for group in batch.groups:
        scores = [rollout.score for rollout in group.rollouts]
        mean = sum(scores) / len(scores)
        deviation = math.sqrt(sum((score - mean) ** 2 for score in scores) / len(scores))
        advantages += [0.0 if one.overlong else (one.score - mean) / deviation for one in group.rollouts]
    _, by_token = oracle.loss_and_gradient("dapo", new, new, advantages, kl=KL, reference=references)
    torch.autograd.backward(logprobs, [torch.tensor(row, dtype=torch.float64) for row in by_token])
    wanted = {name: weight.grad for name, weight in model.named_parameters()}
    if adapter:
        # Of W + s B A: dB = s dW A^T, dA = s B^T dW, with the weights as they are.
        weights = whole(dict(state.policy.model.named_parameters()))
        scale = ADAPTER.scaling
        for name in list(ours):
            layer = name.partition(".lora_")[0]
            down, up = (weights[f"{layer}.lora_{part}.default.weight"].double() for part in "AB")
            whole_gradient = wanted[f"{layer}.weight"]
            wanted[name] = scale * (whole_gradient @ down.T if ".lora_B." in name else up.T @ whole_gradient)
    for name, gradient in ours.items():
        assert (gradient - wanted[name]).norm() <= 2e-5 * wanted[name].norm(), name
    assert any(abs(a - b) > 0.01 for x, y in zip(new, references, strict=True) for a, b in zip(x, y, strict=True))


def test_an_unmoved_policy_is_no_distance_from_its_reference(alone: Parallel, models: dict[str, Path]) -> None:
    for kind in ("frozen", "ema"):
        state = TrainingState(options(reference=kind), models["llama"], alone)
        batch = prepare(groups_to_train(), options(reference=kind), alone)
        assert state.reference is not None
        set_reference_logprobs(batch, state.reference)
        set_old_logprobs(batch, state.policy, options(reference=kind), alone)
        [part] = batch.parts
        assert all(torch.equal(*pair) for pair in zip(part.old_logprobs, part.reference_logprobs, strict=True))


def test_a_running_mean_is_that_of_the_weights_after_each_update(alone: Parallel, models: dict[str, Path]) -> None:
    config = options("--objective.reference_decay", "0.9", reference="ema")
    state = TrainingState(config, models["llama"], alone)
    assert state.reference is not None
    mean = {name: value.double() for name, value in whole(state.reference.state()).items()}
    for _ in range(3):
        updated(state, alone, 1)
        now = whole(dict(state.policy.model.named_parameters()))
        mean = {name: 0.9 * value + 0.1 * now[name].double() for name, value in mean.items()}
    for name, value in whole(state.reference.state()).items():
        assert (value - mean[name]).norm() <= 1e-6 * mean[name].norm(), name


def test_a_resumed_mean_goes_on_bit_for_bit_and_a_frozen_one_is_the_models(
    alone: Parallel, models: dict[str, Path], tmp_path: Path
) -> None:
    config = options("--objective.reference_decay", "0.9", reference="ema")
    checkpoints = Checkpoints(tmp_path, alone)
    state = updated(TrainingState(config, models["llama"], alone), alone)
    checkpoints.save(state.policy, state.optimizer, 2, reference=state.reference)
    updated(state, alone)  # while the files are being written
    checkpoints.wait()
    again = TrainingState(config, models["llama"], alone)
    again.resume(checkpoints, "latest")
    updated(again, alone)
    assert state.reference is not None
    assert again.reference is not None
    assert_same(whole(again.reference.state()), whole(state.reference.state()))

    frozen = TrainingState(options(), models["llama"], alone)
    start = whole(dict(frozen.reference.own.model.named_parameters()))  # type: ignore[union-attr]
    frozen.resume(checkpoints, "latest")
    assert_same(whole(dict(frozen.reference.own.model.named_parameters())), start)  # type: ignore[union-attr]
    assert not torch.equal(
        whole(dict(frozen.policy.model.named_parameters()))["model.norm.weight"], start["model.norm.weight"]
    )
    checkpoints.save(frozen.policy, frozen.optimizer, 3, reference=frozen.reference)
    checkpoints.wait()
    saved = FileSystemReader(tmp_path / "step-00000003").read_metadata().state_dict_metadata
    assert not any(name.startswith("reference") for name in saved)
    with pytest.raises(CheckpointError, match="has no running mean of the policy"):
        TrainingState(config, models["llama"], alone).resume(checkpoints, "step-00000003")
    # A stage begins with the mean at the weights that it begins with.
    stage = TrainingState(config, models["llama"], alone)
    stage.begin_with(checkpoints, "step-00000003", "reset")
    weights = whole(dict(stage.policy.model.named_parameters()))
    assert stage.reference is not None
    assert_same(whole(stage.reference.state()), {name: weights[name] for name in stage.reference.state()})
    checkpoints.close()


def test_an_adapters_base_costs_no_model_and_leaves_the_adapter_on(alone: Parallel, models: dict[str, Path]) -> None:
    config = options(adapter=True)
    state = updated(TrainingState(config, models["llama"], alone), alone)
    batch = prepare(groups_to_train(), config, alone)
    assert state.reference is not None
    assert state.reference.own is None
    set_old_logprobs(batch, state.policy, config, alone)
    before = [old.clone() for old in batch.parts[0].old_logprobs]
    set_reference_logprobs(batch, state.reference)
    set_old_logprobs(batch, state.policy, config, alone)
    assert all(torch.equal(*pair) for pair in zip(before, batch.parts[0].old_logprobs, strict=True))
    base = Policy(models["llama"], alone)
    with torch.no_grad():
        expected = [base.logprobs(micro)[0] for micro in batch.parts[0].micro_batches]
    for ours, theirs in zip(batch.parts[0].reference_logprobs, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_a_running_mean_is_saved_once_and_the_disks_budget_has_it() -> None:
    shapes = {"model.embed_tokens.weight": (10, 4), "model.norm.weight": (4,)}
    plain, held = (disk_use(options(reference=kind), shapes) for kind in ("frozen", "ema"))
    assert held.checkpoint - plain.checkpoint == 44 * 4
