"""The gradient does not depend on how many ranks or packs compute it; sums, broadcasts and barriers across ranks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainer.two_ranks import ONE_GROUP, SHAPES, gradients
from trainer.config import OptimizerConfig
from trainer.optimizer import NonFiniteGradient, PolicyOptimizer
from trainer.parallel import Parallel, ParallelError, all_reduce_sums, clip_grad_norm, distributed


def assert_equal_gradients(ours: dict[str, Tensor], reference: dict[str, Tensor]) -> None:
    """Relative error of every tensor <= 1e-5."""
    assert ours.keys() == reference.keys()
    for name, expected in reference.items():
        relative = (ours[name] - expected).norm() / expected.norm()
        assert relative <= 1e-5, f"{name}: {relative}"


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_the_gradient_is_the_same_for_every_world_size_and_packing(
    alone: Parallel, models: dict[str, Path], two_ranks: dict[Any, Any], kind: str
) -> None:
    reference = gradients(models[kind], alone, SHAPES, 1000, checkpointing="none")
    assert_equal_gradients(gradients(models[kind], alone, SHAPES, 20), reference)
    assert_equal_gradients(two_ranks["gradient", kind, 20], reference)
    assert_equal_gradients(two_ranks["gradient", kind, 1000], reference)


def test_a_rank_with_nothing_to_do_does_not_change_the_gradient(
    alone: Parallel, models: dict[str, Path], two_ranks: dict[Any, Any]
) -> None:
    assert_equal_gradients(two_ranks["gradient", "one group"], gradients(models["llama"], alone, ONE_GROUP, 1000))


def test_sums_are_exact_for_integers_and_added_for_floats(two_ranks: dict[Any, Any]) -> None:
    assert two_ranks["sums"]["tokens"] == 2**61 + 1
    assert two_ranks["sums"]["loss"] == pytest.approx(0.3, abs=1e-15)


def test_sums_with_other_keys_on_another_rank_are_an_error_on_both(two_ranks: dict[Any, Any]) -> None:
    assert two_ranks["sums error"].startswith("sums of rank 1 differ from rank 0 in ['only on 0', 'only on 1']")


def test_every_rank_gets_what_rank_0_has(two_ranks: dict[Any, Any]) -> None:
    assert two_ranks["broadcast of rank 1"] == {"groups": [1, 2]}


def test_an_error_of_one_rank_is_raised_on_every_rank(two_ranks: dict[Any, Any]) -> None:
    assert two_ranks["together"] == two_ranks["together of rank 1"] == "field = 3: choose 4"


def test_full_weights_of_two_ranks_are_whole(two_ranks: dict[Any, Any]) -> None:
    full, trained = two_ranks["full"], two_ranks["after three"]
    assert full.keys() == trained.keys()
    assert all(torch.equal(full[name], trained[name]) for name in trained)
    assert two_ranks["full of rank 1"] == {}


def test_a_rank_that_does_not_come_is_an_error_with_a_name_not_a_hang(two_ranks: dict[Any, Any]) -> None:
    assert two_ranks["barrier"].startswith("the test's meeting: not all ranks arrived within 0.3 s:")
    assert "rank 1" in two_ranks["barrier"].lower() or "ranks 1" in two_ranks["barrier"].lower()


def test_sums_of_one_rank_are_its_own(alone: Parallel) -> None:
    assert all_reduce_sums({"b": 2, "a": 0.5}, alone) == {"b": 2, "a": 0.5}


def test_half_of_torchruns_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ParallelError, match="RANK, WORLD_SIZE set but not LOCAL_RANK, MASTER_ADDR, MASTER_PORT"):
        with distributed():
            pass


def test_clipping_scales_to_the_norm_and_reports_the_one_before() -> None:
    weights = [
        torch.nn.Parameter(torch.zeros(2)),
        torch.nn.Parameter(torch.zeros(1)),
        torch.nn.Parameter(torch.ones(1)),
    ]
    weights[0].grad, weights[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert clip_grad_norm(weights, 10.0) == pytest.approx(5.0)
    torch.testing.assert_close(weights[0].grad, torch.tensor([3.0, 0.0]))
    assert clip_grad_norm(weights, 1.0) == pytest.approx(5.0)
    torch.testing.assert_close(weights[1].grad, torch.tensor([0.8]), rtol=1e-4, atol=0)


def test_the_learning_rate_rises_linearly_then_stays() -> None:
    optimizer = PolicyOptimizer(torch.nn.Linear(2, 1), OptimizerConfig(lr=8.0, warmup_steps=4))
    assert [optimizer.lr_at(update) for update in range(6)] == [2.0, 4.0, 6.0, 8.0, 8.0, 8.0]


def test_the_learning_rate_falls_linearly_over_the_last_share_and_never_to_zero() -> None:
    options = OptimizerConfig(lr=8.0, warmup_steps=2, decay="linear", decay_share=0.4)
    optimizer = PolicyOptimizer(torch.nn.Linear(2, 1), options, total=10)
    assert [optimizer.lr_at(update) for update in range(10)] == [4.0, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0, 6.0, 4.0, 2.0]
    assert optimizer.lr_at(11) == 2.0  # a run that takes more updates than it was to


def test_the_learning_rate_falls_on_a_cosine() -> None:
    options = OptimizerConfig(lr=8.0, decay="cosine", decay_share=1.0)
    optimizer = PolicyOptimizer(torch.nn.Linear(2, 1), options, total=4)
    wanted = [8.0, 4 * (1 + math.cos(math.pi / 4)), 4.0, 4 * (1 - math.cos(math.pi / 4))]
    assert [optimizer.lr_at(update) for update in range(4)] == pytest.approx(wanted)


def test_a_decay_that_reaches_into_the_warm_up_begins_after_it() -> None:
    options = OptimizerConfig(lr=8.0, warmup_steps=2, decay="linear", decay_share=1.0)
    optimizer = PolicyOptimizer(torch.nn.Linear(2, 1), options, total=4)
    assert [optimizer.lr_at(update) for update in range(4)] == [4.0, 8.0, 8.0, 4.0]


def test_a_decay_needs_the_number_of_updates() -> None:
    with pytest.raises(ValueError, match="decay linear: give the run's number of updates"):
        PolicyOptimizer(torch.nn.Linear(2, 1), OptimizerConfig(decay="linear"))


def test_the_first_update_of_adam_moves_by_the_learning_rate_and_decays_matrices_only() -> None:
    module = torch.nn.Linear(1, 1)
    with torch.no_grad():
        module.weight.fill_(2.0)
        module.bias.fill_(2.0)
    optimizer = PolicyOptimizer(module, OptimizerConfig(lr=0.1, weight_decay=0.5, eps=1e-12))
    (3.0 * module.weight + 4.0 * module.bias).sum().backward()
    done = optimizer.step()
    assert done.grad_norm == pytest.approx(5.0)
    assert module.weight.item() == pytest.approx(2.0 - 0.1 * 0.5 * 2.0 - 0.1)
    assert module.bias.item() == pytest.approx(2.0 - 0.1)
    assert module.weight.grad is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(value: float) -> None:
    module = torch.nn.Linear(1, 1)
    before = module.weight.item()
    optimizer = PolicyOptimizer(module, OptimizerConfig(lr=0.1))
    (module.weight * value).sum().backward()
    with pytest.raises(NonFiniteGradient, match="at update 0: the weights are unchanged"):
        optimizer.step()
    assert (module.weight.item(), optimizer.updates) == (before, 0)
