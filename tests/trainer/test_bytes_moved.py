"""Bytes that operators move, by hand; and that log-probabilities take no more passes over their logits than counted."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import silu
from transformers import AutoConfig, PretrainedConfig

from benchmarks.bytes_moved import MovedBytes, block, bound, moved, parts, tail
from trainer.model.layout import AttentionLayout
from trainer.model.logprobs import token_logprobs
from trainer.planning.flops import attended_pairs, flops
from trainer.planning.timeline import full_layout


@pytest.fixture(scope="module")
def small() -> PretrainedConfig:
    sizes = {"vocab_size": 4096, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "head_dim": 16}
    return AutoConfig.for_model("qwen3", **sizes, num_attention_heads=4, num_key_value_heads=2)


@pytest.fixture(scope="module")
def layout() -> AttentionLayout:
    found = full_layout(128, 128)
    found.varlen(torch.device("cpu"))
    return found


def test_reads_and_writes_by_hand() -> None:
    half, wide = torch.zeros(10, 4, dtype=torch.bfloat16), torch.zeros(10, 4)
    with MovedBytes() as found:
        half.view(4, 10).t()[1:]  # a view moves nothing
        torch.empty(100)
        half + half[:, :1].expand(10, 4)  # two bytes of each of 40, an expanded one for as many as it has, 80 out
        wide.add_(1)
        wide.copy_(half)
        half @ half.t()
    assert found.moved["elementwise and reductions"] == (80 + 80 + 80) + 2 * 160
    assert found.moved["indexing and copies"] == 80 + 160
    assert found.moved["products"] == 80 + 80 + 200
    assert found.beside == sum(found.moved.values()) - 360


@pytest.mark.parametrize("fake", [False, True])
def test_a_gate_moves_more_than_one_kernel_would(fake: bool) -> None:
    with FakeTensorMode() if fake else nullcontext():
        found = moved(lambda gate, up: silu(gate) * up, (10, 4), (10, 4))
    # silu 2 + 2 and product 2 + 2 + 2 bytes an entry; backward two products and one of silu, of 6 each
    assert found == {"forward": 40 * 10, "backward": 40 * 18, "fused_forward": 40 * 6, "fused_backward": 40 * 10}


def test_the_parts_are_no_more_than_the_block(small: PretrainedConfig, layout: AttentionLayout) -> None:
    whole = {
        phase: sum(size for kind, size in found.items() if kind not in ("products", "attention"))
        for phase, found in block(small, layout, "none").items()
    }
    found = parts(small, layout)
    for phase, size in whole.items():
        known = sum(one["times"] * one[phase] for one in found.values())
        assert 0.7 * size < known < size, phase
    assert all(one["fused_forward"] < one["forward"] for name, one in found.items() if name != "residual")
    again = block(small, layout, "full")["backward"]
    assert again["products"] > block(small, layout, "none")["backward"]["products"]


def test_log_probabilities_pass_over_their_logits_as_seldom_as_counted(small: PretrainedConfig) -> None:
    entries = 128 * small.vocab_size
    found = tail(small, 128, 64)
    # Scaled to fp32 (2 + 4) and normalised (4 + 4); then exp (4 + 4), times its logarithm (8 + 4), summed (4).
    assert found["old"] / entries == pytest.approx(14, rel=0.01)
    assert found["forward"] / entries == pytest.approx(38, rel=0.01)
    # Each of two chunks is added to the head's gradient, which begins at zero and ends in the head's type.
    head = small.vocab_size * small.hidden_size * (2 * (4 + 2 + 4) + 4 + 4 + 2)
    assert (found["backward"] - head) / entries == pytest.approx(20, rel=0.02)


def test_without_entropies_the_log_probabilities_are_the_same() -> None:
    torch.manual_seed(0)
    hidden, weight, target = torch.randn(9, 8), torch.randn(31, 8), torch.randint(31, (9,))
    whole = token_logprobs(hidden, weight, target, torch.full((9,), 0.7), 4)
    alone = token_logprobs(hidden, weight, target, torch.full((9,), 0.7), 4, entropy=False)
    assert torch.equal(whole[0], alone[0])
    assert (len(whole[1]), len(alone[1])) == (9, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sure_token_keeps_its_small_gradient(dtype: torch.dtype) -> None:
    weight = torch.zeros(5, 4, dtype=dtype)
    weight[0, 0] = 1.0
    hidden = torch.zeros(1, 4, dtype=dtype)
    hidden[0, 0] = 10.0
    hidden.requires_grad_()
    logprob, _ = token_logprobs(hidden, weight, torch.tensor([0]), torch.ones(1), 8)
    logprob.sum().backward()
    exact = 1 - 1 / (1 + 4 * torch.exp(torch.tensor(-10.0, dtype=torch.float64)))
    assert hidden.grad is not None
    assert hidden.grad[0, 0].double() == pytest.approx(float(exact), rel=1e-3 if dtype == torch.float32 else 4e-3)


def test_the_bound_without_other_bytes_is_one_and_falls_with_them(
    small: PretrainedConfig, layout: AttentionLayout
) -> None:
    assert bound(small, layout, 64, 0.0, again=False) == 1.0
    work = flops(small, layout.total, attended_pairs(layout), 64, backward=True)
    assert bound(small, layout, 64, 3.35e12 * work / 989e12, again=False) == pytest.approx(0.5)
    assert bound(small, layout, 64, 0.0, again=True) < 0.85
