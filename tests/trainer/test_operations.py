"""A step's operations: torch's own count, with attention causal and a shared prompt once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.trainer.conftest import make_groups
from tests.trainer.test_budget import qwen3
from trainer.model.layout import AttentionLayout, Span
from trainer.model.packing import pack
from trainer.model.policy import Policy
from trainer.parallel import Parallel
from trainer.planning.fit import tokens_per_second
from trainer.planning.flops import attended_pairs, flops, step_flops


@pytest.mark.parametrize("backward", [False, True])
def test_operations_are_what_torch_counts(alone: Parallel, models: dict[str, Path], backward: bool) -> None:
    shapes = [(11, [7]), (5, [30]), (9, [1])]
    [micro] = pack(make_groups(shapes), [[1.0]] * 3, 1000)
    trained = Policy(models["qwen3"], alone, activation_checkpointing="full", logprob_chunk=16)
    config = trained.model.config
    # torch counts no product in place; the head's gradient is one.
    in_place = {torch.ops.aten.addmm_: lambda total, a, b, **_: 2 * a[0] * a[1] * b[1]}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter, sdpa_kernel(SDPBackend.MATH):
        logprob = trained.logprobs(micro)[0]
        if backward:
            logprob.sum().backward()
    # torch counts the whole rectangle of a call, masked or causal.
    pairs = 0
    for span in micro.layout.spans:
        pairs += span.prompt**2
        batched = micro.layout.batches(span, micro.input_ids.device) if span.completions else None
        if batched is not None:
            pairs += sum(
                count * longest * (span.prompt + longest) for count, longest in (p.shape for p in batched.parts)
            )
        else:
            pairs += sum((span.prompt + length) ** 2 for length in span.completions)
    trained_tokens = len(micro.target)
    ours = flops(config, micro.layout.total, pairs, trained_tokens, backward=backward, recompute=True)
    assert ours == counter.get_total_flops()


def test_attention_is_counted_causally_and_a_shared_prompt_once() -> None:
    layout = AttentionLayout((Span(0, 3, (2, 1)), Span(6, 1, ())))
    seen = [1, 2, 3] + [4, 5] + [4] + [1]
    assert attended_pairs(layout) == sum(seen)
    alike = AttentionLayout((Span(0, 3, (2, 1)), Span(6, 1, (2,), 2, 0)))
    assert attended_pairs(alike) == sum([1, 2, 3] + [4, 5] + [4] + [3] + [4, 5])


def test_published_operations_of_a_14b() -> None:
    config = qwen3("Qwen3-14B")
    layout = AttentionLayout((Span(0, 1, (32_767,)),))
    # 6 x 13.99 B entries of matrices without the embedding, and 12 x layers x width x half the context.
    expected = 6 * 13.99e9 + 12 * 40 * 5120 * 32_768 / 2
    found = step_flops(config, layout, 32_768, backward=True, recompute=False) / 32_768
    assert found == pytest.approx(expected, rel=1e-3)


def test_tokens_per_second_are_the_peak_over_the_operations() -> None:
    assert tokens_per_second(token=100e9, gpus=8, peak=1000e12, mfu=0.25) == 20_000
