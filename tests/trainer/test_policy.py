"""The policy's log-probabilities, entropies and gradients equal those of each sequence alone; weights go out whole."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from tests.trainer.conftest import beginning_alike, make_groups, make_model
from trainer.config import Recompute
from trainer.data.scored_groups import ScoredGroup
from trainer.model.loading import UnsupportedModel
from trainer.model.logprobs import token_logprobs
from trainer.model.packing import LEAST_SHARED, pack
from trainer.model.policy import Policy
from trainer.parallel import Parallel

SHAPES = [(11, [4, 2, 6]), (3, [8, 9]), (6, [1, 5])]


def gradients(policy: Policy) -> dict[str, Tensor]:
    """Whole gradients by name."""
    found = {}
    for name, weight in policy.model.named_parameters():
        assert weight.grad is not None, f"{name} has no gradient"
        found[name] = weight.grad.full_tensor() if isinstance(weight.grad, DTensor) else weight.grad
    return found


def alone_by_transformers(
    path: Path, groups: list[ScoredGroup]
) -> tuple[list[Tensor], list[Tensor], dict[str, Tensor]]:
    """Per sequence log-probabilities and entropies, and the gradient of sum of squares, one sequence at a time."""
    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager", dtype=torch.float32)
    logprobs, entropies = [], []
    for group in groups:
        for rollout in group.rollouts:
            ids = torch.tensor([group.prompt + rollout.completion])
            logits = model(input_ids=ids, use_cache=False).logits[0, len(group.prompt) - 1 : -1]
            table = torch.log_softmax(logits / group.temperature, dim=-1)
            chosen = table.gather(1, torch.tensor(rollout.completion)[:, None])[:, 0]
            chosen.square().sum().backward()
            logprobs.append(chosen.detach())
            entropies.append(-(table.exp() * table).sum(-1).detach())
    return logprobs, entropies, {n: weight.grad for n, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("activation_checkpointing", ["full", "selective", "none"])
@pytest.mark.parametrize("max_tokens", [18, 1000])
def test_packing_changes_neither_values_nor_gradients(
    alone: Parallel, model_path: Path, activation_checkpointing: Recompute, max_tokens: int
) -> None:
    equal_by_transformers(make_groups(SHAPES), alone, model_path, activation_checkpointing, max_tokens)


@pytest.mark.parametrize("max_tokens", [115, 1000])  # several micro-batches, and one
def test_prompts_that_begin_alike_are_computed_together_without_a_change(
    alone: Parallel, model_path: Path, max_tokens: int
) -> None:
    groups = beginning_alike(make_groups(SHAPES), LEAST_SHARED + 1)
    micros = pack(groups, [[1.0] * len(group.rollouts) for group in groups], max_tokens)
    assert any(span.shared for micro in micros for span in micro.layout.spans)
    equal_by_transformers(groups, alone, model_path, "none", max_tokens)


def test_several_temperatures_by_one_pass_are_those_by_one_each(alone: Parallel, model_path: Path) -> None:
    policy = Policy(model_path, alone, logprob_chunk=5)
    [micro] = pack(groups := make_groups(SHAPES), [[1.0] * len(group.rollouts) for group in groups], 1000)
    hotter = micro.temperature + 0.5
    with torch.no_grad():
        found = policy.logprobs_at(micro, [micro.temperature, hotter])
        for one, temperature in zip(found, (micro.temperature, hotter), strict=True):
            assert torch.equal(one, policy.logprobs(replace(micro, temperature=temperature))[0])


def equal_by_transformers(
    groups: list[ScoredGroup], alone: Parallel, path: Path, mode: Recompute, max_tokens: int
) -> None:
    """Each sequence's values, and all of their gradient, as if it were computed by itself."""
    policy = Policy(path, alone, activation_checkpointing=mode, logprob_chunk=5)
    expected_logprobs, expected_entropies, expected_gradients = alone_by_transformers(path, groups)
    order = [(g, r) for g, group in enumerate(groups) for r in range(len(group.rollouts))]
    for micro in pack(groups, [[1.0] * len(group.rollouts) for group in groups], max_tokens):
        logprob, entropy = policy.logprobs(micro)
        logprob.square().sum().backward()
        assert not entropy.requires_grad
        for number, origin in enumerate(micro.origin):
            place = order.index(origin)
            mine = micro.sequence == number
            torch.testing.assert_close(logprob[mine], expected_logprobs[place], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(entropy[mine], expected_entropies[place], rtol=1e-5, atol=1e-5)
    for name, gradient in gradients(policy).items():
        relative = (gradient - expected_gradients[name]).norm() / expected_gradients[name].norm()
        assert relative <= 1e-5, f"{name}: {relative}"


@pytest.mark.filterwarnings("ignore")  # torch.compile warns about its own parts
@pytest.mark.parametrize(
    ("activation_checkpointing", "backend"),
    [
        ("full", "eager"),
        ("selective", "eager"),
        pytest.param("full", "aot_eager", marks=pytest.mark.slow),  # traces the gradients too, 20 s and more each
        pytest.param("selective", "aot_eager", marks=pytest.mark.slow),
        pytest.param("full", "inductor", marks=pytest.mark.slow),  # compiles C++ for half a minute
    ],
)
def test_blocks_are_compiled_under_recomputation_too_with_the_same_gradients(
    alone: Parallel,
    models: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    activation_checkpointing: Recompute,
    backend: str,
) -> None:
    [micro] = pack(make_groups(SHAPES), [[1.0] * len(lengths) for _, lengths in SHAPES], 1000)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    results = []
    for compile_blocks in (True, False):
        policy = Policy(
            models["llama"],
            alone,
            activation_checkpointing=activation_checkpointing,
            compile_blocks=compile_blocks,
        )
        logprob, _ = policy.logprobs(micro)
        logprob.square().sum().backward()
        results.append((logprob.detach(), gradients(policy)))
    assert torch._dynamo.utils.counters["stats"]["calls_captured"] > 20
    (compiled, ours), (plain, expected) = results
    torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-4)
    for name in expected:
        assert (ours[name] - expected[name]).norm() <= 1e-4 * expected[name].norm(), name


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_chunked_logprobs_equal_whole_logits(chunk: int) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(7, 5, dtype=torch.float32, requires_grad=True)
    weight = torch.randn(11, 5, dtype=torch.float32, requires_grad=True)
    target = torch.randint(11, (7,))
    temperature = torch.tensor([1.0, 0.5, 0.7, 2.0, 1.0, 1.0, 0.9])
    upstream = torch.randn(7)
    logprob, entropy = token_logprobs(hidden, weight, target, temperature, chunk)
    table = torch.log_softmax(hidden @ weight.T / temperature[:, None], dim=-1)
    plain = table.gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(logprob, plain)
    torch.testing.assert_close(entropy, -(table.exp() * table).sum(-1))
    for ours, theirs in zip(
        torch.autograd.grad(logprob, (hidden, weight), upstream),
        torch.autograd.grad(plain, (hidden, weight), upstream),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_uniform_distribution_has_the_entropy_log_v() -> None:
    _, entropy = token_logprobs(
        torch.zeros(2, 4), torch.randn(16, 4), torch.tensor([0, 5]), torch.tensor([1.0, 0.3]), 8
    )
    torch.testing.assert_close(entropy, torch.full((2,), 16.0).log())


def test_an_empty_micro_batch_gives_every_weight_a_zero_gradient(alone: Parallel, model_path: Path) -> None:
    policy = Policy(model_path, alone)
    [micro] = pack([], [], 100)
    logprob, entropy = policy.logprobs(micro)
    assert len(logprob) == len(entropy) == 0
    logprob.sum().backward()
    assert all(not gradient.any() for gradient in gradients(policy).values())


def test_the_full_state_dict_is_what_transformers_saved(alone: Parallel, model_path: Path) -> None:
    saved = load_file(model_path / "model.safetensors")
    whole = Policy(model_path, alone).state_dict_full()
    assert sorted(whole) == sorted(saved)
    assert all(torch.equal(whole[name], saved[name]) for name in saved)


def test_the_full_state_dict_is_a_copy_in_the_asked_type(alone: Parallel, models: dict[str, Path]) -> None:
    policy = Policy(models["llama"], alone)
    before = policy.state_dict_full()
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(1.0)
    name = "model.norm.weight"
    assert torch.equal(policy.state_dict_full()[name], before[name] + 1.0)
    assert {value.dtype for value in policy.state_dict_full(torch.bfloat16).values()} == {torch.bfloat16}


def test_masters_are_fp32_also_when_the_folder_is_bf16(alone: Parallel, tmp_path: Path) -> None:
    half = make_model("llama")
    torch.nn.Module.to(half, torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    assert {weight.dtype for weight in Policy(tmp_path / "half", alone).parameters()} == {torch.float32}


def test_a_folder_without_a_model_is_refused(alone: Parallel, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"no config.json there; give the folder"):
        Policy(tmp_path, alone)


def test_a_missing_tensor_is_refused_not_made_up(alone: Parallel, tmp_path: Path) -> None:
    model = make_model("qwen3")
    weights = model.state_dict()
    del weights["model.layers.1.mlp.up_proj.weight"]
    model.save_pretrained(tmp_path / "broken", state_dict=weights)
    with pytest.raises(UnsupportedModel, match=r"missing_keys \['model.layers.1.mlp.up_proj.weight'\]"):
        Policy(tmp_path / "broken", alone)


def test_a_model_that_changes_its_logits_is_refused(alone: Parallel, tmp_path: Path) -> None:
    make_model("llama").save_pretrained(tmp_path / "capped")
    config = json.loads((tmp_path / "capped" / "config.json").read_text())
    (tmp_path / "capped" / "config.json").write_text(json.dumps({**config, "final_logit_softcapping": 30.0}))
    with pytest.raises(UnsupportedModel, match="final_logit_softcapping"):
        Policy(tmp_path / "capped", alone)


def test_temperatures_reach_half_precision_unrounded(alone: Parallel, models: dict[str, Path]) -> None:
    """FSDP casts what goes into a forward unless it is asked not to, and 0.7 in bf16 is 0.6992."""
    micro = pack(make_groups([(5, [4, 2]), (3, [8, 9])]), [[1.0, 1.0]] * 2, 1000)[0]
    policy = Policy(models["qwen3"], alone, compute_dtype=torch.bfloat16)
    seen: list[torch.Tensor] = []

    def record(*given: Any, **options: Any) -> Any:
        seen.extend([given[0], given[3]])
        return token_logprobs(*given, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.model.policy.token_logprobs", record)
        with torch.no_grad():
            policy.logprobs(micro)
    hidden, temperature = seen
    assert hidden.dtype == torch.bfloat16
    assert torch.equal(temperature, micro.temperature[micro.sequence])
