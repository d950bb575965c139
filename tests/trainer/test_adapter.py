"""A LoRA adapter by value: transformers with peft computes the same, in one pack or many, on one rank or two."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.distributed.checkpoint import FileSystemReader
from transformers import AutoModelForCausalLM

from environments.common.settings import ConfigError, load
from tests.trainer.conftest import make_groups
from tests.trainer.two_ranks import ADAPTER, SHAPES, accumulate, start, train, weights, whole
from trainer.adapter_config import AdapterConfig
from trainer.checkpoints import CheckpointError, Checkpoints
from trainer.config import TrainerConfig
from trainer.model.export import save_adapter, save_hf
from trainer.model.loading import UnsupportedModel
from trainer.model.logprobs import token_logprobs
from trainer.model.packing import pack
from trainer.model.policy import Policy
from trainer.parallel import Parallel

PLACES = [(g, r) for g, (_, lengths) in enumerate(SHAPES) for r in range(len(lengths))]


def trained(path: Path, parallel: Parallel, updates: int = 2) -> Policy:
    """A policy whose adapter is no longer zero."""
    policy, optimizer = start(path, parallel, ADAPTER)
    train(policy, optimizer, parallel, updates)
    return policy


def with_tokenizer(path: Path, folder: Path) -> Path:
    copied: Path = shutil.copytree(path, folder)
    (copied / "tokenizer.json").write_text("{}")
    return copied


def peft_logprobs(model: Any) -> list[torch.Tensor]:
    """The log-probabilities of every completion of SHAPES' groups, one sequence at a time."""
    found = []
    for group in make_groups(SHAPES):
        for rollout in group.rollouts:
            ids = torch.tensor([[*group.prompt, *rollout.completion]])
            logits = model(ids).logits[0, len(group.prompt) - 1 : -1] / group.temperature
            picked = logits.log_softmax(-1).gather(1, torch.tensor(rollout.completion)[:, None])
            found.append(picked[:, 0])
    return found


def own_logprobs(policy: Policy, max_tokens: int = 1000) -> list[torch.Tensor]:
    groups = make_groups(SHAPES)
    found: dict[tuple[int, int], torch.Tensor] = {}
    for micro in pack(groups, [[1.0] * len(group.rollouts) for group in groups], max_tokens):
        logprob, _ = policy.logprobs(micro)
        found |= {origin: logprob[micro.sequence == number] for number, origin in enumerate(micro.origin)}
    return [found[place] for place in PLACES]


def adapter_gradients(policy: Policy) -> dict[str, torch.Tensor]:
    return whole({name: weight.grad for name, weight in policy.model.named_parameters() if weight.requires_grad})


def test_an_adapter_begins_as_the_model_and_alone_trains(alone: Parallel, model_path: Path) -> None:
    policy = Policy(model_path, alone, adapter=ADAPTER)
    for ours, base in zip(own_logprobs(policy), own_logprobs(Policy(model_path, alone)), strict=True):
        torch.testing.assert_close(ours, base)
    before = weights(policy)
    policy, optimizer = start(model_path, alone, ADAPTER)
    train(policy, optimizer, alone, 2)
    changed = {name for name, value in weights(policy).items() if not value.equal(before[name])}
    assert changed == {name for name, weight in policy.model.named_parameters() if weight.requires_grad}
    assert all(".lora_" in name for name in changed)
    assert len(changed) == 2 * 7 * 2  # A and B of seven layers in each of two blocks


def test_forward_and_gradients_are_those_of_peft(alone: Parallel, model_path: Path, tmp_path: Path) -> None:
    policy = trained(model_path, alone)
    folder = save_adapter(policy, tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, folder, is_trainable=True)
    expected = peft_logprobs(model)
    ours = own_logprobs(policy)
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    torch.stack([part.square().sum() for part in expected]).sum().backward()
    torch.stack([part.square().sum() for part in ours]).sum().backward()
    wanted = {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}
    found = adapter_gradients(policy)
    assert {f"base_model.model.{name}" for name in found} == wanted.keys()
    for name, gradient in found.items():
        theirs = wanted[f"base_model.model.{name}"]
        assert theirs is not None
        assert (gradient - theirs).norm() <= 1e-5 * theirs.norm(), name


def test_the_start_has_the_spread_of_pefts(alone: Parallel, models: dict[str, Path]) -> None:
    policy = Policy(models["llama"], alone, adapter=ADAPTER)
    base = AutoModelForCausalLM.from_pretrained(models["llama"], dtype=torch.float32)
    options = LoraConfig(r=ADAPTER.rank, lora_alpha=8, target_modules=ADAPTER.targets)
    theirs = dict(get_peft_model(base, options).named_parameters())
    for name, value in weights(policy).items():
        if ".lora_" in name:
            other = theirs[f"base_model.model.{name}"]
            assert value.shape == other.shape
            assert value.abs().max() <= 1 / value.shape[1] ** 0.5
            assert abs(value.std() - other.std()) <= 0.15 * other.std()


@pytest.mark.parametrize("max_tokens", [20, 40])
def test_gradients_do_not_depend_on_the_packing(alone: Parallel, model_path: Path, max_tokens: int) -> None:
    policy = trained(model_path, alone)
    found = []
    for size in (max_tokens, 1000):
        accumulate(policy, alone, SHAPES, size)
        found.append(adapter_gradients(policy))
        policy.zero_grad()
    for name, gradient in found[0].items():
        assert (gradient - found[1][name]).norm() <= 1e-4 * found[1][name].norm(), name


def test_two_ranks_train_the_adapter_that_one_trains(two_ranks: dict[Any, Any], models: dict[str, Path]) -> None:
    expected = two_ranks["adapter", "alone"]
    assert two_ranks["adapter"].keys() == expected.keys()
    for name, value in two_ranks["adapter"].items():
        torch.testing.assert_close(value, expected[name], rtol=2e-3, atol=2e-5, msg=name)


def test_a_resumed_adapter_is_bit_for_bit_the_uninterrupted_one(
    alone: Parallel, models: dict[str, Path], tmp_path: Path
) -> None:
    policy, optimizer = start(models["qwen3"], alone, ADAPTER)
    train(policy, optimizer, alone, 2)
    checkpoints = Checkpoints(tmp_path, alone)
    saved = checkpoints.save(policy, optimizer, 2)
    checkpoints.wait()
    train(policy, optimizer, alone, 2)
    expected = weights(policy)
    kept = FileSystemReader(saved).read_metadata().state_dict_metadata
    assert sum(name.startswith("model.") for name in kept) == sum(".lora_" in name for name in expected)
    assert all(".lora_" in name for name in kept if name.startswith("model."))

    policy, optimizer = start(models["qwen3"], alone, ADAPTER)
    checkpoints.load("latest", policy, optimizer)
    train(policy, optimizer, alone, 2)
    assert optimizer.updates == 4
    for name, value in weights(policy).items():
        assert value.equal(expected[name]), name
    checkpoints.close()


def test_a_checkpoint_of_another_adapter_or_base_is_refused(
    alone: Parallel, models: dict[str, Path], tmp_path: Path
) -> None:
    policy, optimizer = start(models["llama"], alone, ADAPTER)
    checkpoints = Checkpoints(tmp_path, alone)
    checkpoints.save(policy, optimizer, 0)
    checkpoints.wait()
    others = {
        "holds an adapter alone, and .* set adapter.rank to 4": (models["llama"], None),
        "an adapter with alpha 8, adapter.alpha is 32; set adapter.alpha to 8": (
            models["llama"],
            AdapterConfig(rank=4, alpha=32),
        ),
        "is an adapter of another base": (models["qwen3"], ADAPTER),
    }
    for message, (path, adapter) in others.items():
        with pytest.raises(CheckpointError, match=message):
            checkpoints.load("latest", Policy(path, alone, adapter=adapter), None)
    checkpoints.close()


def test_the_merged_export_is_pefts_merge_and_computes_as_the_adapter(
    alone: Parallel, model_path: Path, tmp_path: Path
) -> None:
    policy = trained(model_path, alone)
    adapter = save_adapter(policy, tmp_path / "adapter")
    merged = save_hf(policy, tmp_path / "merged", with_tokenizer(model_path, tmp_path / "base"))
    model = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    by_peft = PeftModel.from_pretrained(base, adapter).merge_and_unload()
    for (name, ours), theirs in zip(model.named_parameters(), by_peft.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6, msg=name)
    for one, other in zip(own_logprobs(policy), peft_logprobs(model), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_base_in_bfloat16_has_an_adapter_in_float32(alone: Parallel, models: dict[str, Path]) -> None:
    policy = Policy(models["llama"], alone, adapter=ADAPTER, compute_dtype=torch.bfloat16)
    accumulate(policy, alone, SHAPES, 1000)
    for name, weight in policy.model.named_parameters():
        assert weight.dtype == (torch.float32 if ".lora_" in name else torch.bfloat16)
        assert weight.grad is None or weight.grad.dtype == torch.float32
    assert all(gradient.isfinite().all() for gradient in adapter_gradients(policy).values())


def test_a_target_that_the_model_lacks_is_named(alone: Parallel, models: dict[str, Path]) -> None:
    with pytest.raises(UnsupportedModel, match=r"adapter.targets 'lm_head'.*choose from down_proj, gate_proj"):
        Policy(models["llama"], alone, adapter=AdapterConfig(rank=4, targets=["q_proj", "lm_head"]))


def test_a_frozen_heads_gradient_is_not_formed() -> None:
    hidden, weight = torch.randn(7, 5, requires_grad=True), torch.randn(11, 5)
    target, one = torch.randint(11, (7,)), torch.ones(7)
    logprob, _ = token_logprobs(hidden, weight, target, one, 3)
    allocated = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = operator(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                allocated.append(tuple(result.shape))
            return result

    with Watch():  # type: ignore[no-untyped-call]
        logprob.sum().backward()
    plain = torch.log_softmax(hidden @ weight.T, dim=-1).gather(1, target[:, None]).sum()
    torch.testing.assert_close(hidden.grad, torch.autograd.grad(plain, hidden)[0], rtol=1e-5, atol=1e-6)
    assert (11, 5) not in allocated


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--adapter.alpha", "8"], r"adapter: alpha 8.* has no effect without an adapter: set rank"),
        (["--adapter.rank", "8", "--adapter.dropout", "0.1"], r"dropout 0.1: .*set dropout to 0"),
        (
            ["--adapter.rank", "8", "--weights.backend", "nccl"],
            r"weights.backend nccl with adapter.rank 8: .*set weights.backend: disk",
        ),
    ],
)
def test_options_that_an_adapter_cannot_have_are_refused(flags: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(TrainerConfig, ["--model", "m", "--run_dir", "r", *flags])
