"""Attention over packs equals attention over each sequence alone: nothing leaks, forward or backward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.trainer.conftest import make_groups, make_model
from trainer.config import Recompute
from trainer.model import attention
from trainer.model import layout as layouts
from trainer.model.activation_checkpointing import recompute
from trainer.model.attention import UnsupportedAttention, grouped_attention, varlen_attention
from trainer.model.layout import AttentionLayout, Span
from trainer.model.packing import MicroBatch, pack

# The first span's completions are batched; the long ones of the second take a causal call each.
LAYOUT = AttentionLayout((Span(0, 10, (3, 1, 4)), Span(18, 2, (9, 3)), Span(32, 1, ())))
# The second and the third prompt begin with the first one's 8 tokens; the third is the rest of it alone.
ALIKE = AttentionLayout(
    (
        Span(0, 9, (2, 3)),
        Span(14, 4, (3, 1, 2), 8),
        Span(24, 1, (), 8),
        Span(25, 2, (9,)),
    )
)
LAYOUTS = pytest.mark.parametrize("layout", [LAYOUT, ALIKE], ids=["prompts apart", "prompts that begin alike"])


def by_hand(query: Tensor, key: Tensor, value: Tensor, layout: AttentionLayout, scale: float) -> Tensor:
    """One softmax over a dense mask that is written down position by position."""
    total = layout.total
    visible = torch.zeros(total, total, dtype=torch.bool)
    for span in layout.spans:
        visible[span.start : span.end, span.root : span.root + span.shared] = True
        for place in range(span.prompt):
            visible[span.start + place, span.start : span.start + place + 1] = True
        start = span.start + span.prompt
        for length in span.completions:
            for place in range(length):
                visible[start + place, span.start : span.start + span.prompt] = True
                visible[start + place, start : start + place + 1] = True
            start += length
    key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], dim=1) for part in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query, key) * scale
    weights = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1)
    return torch.einsum("hqk,khd->qhd", weights, value)


def heads(seed: int, layout: AttentionLayout = LAYOUT) -> tuple[Tensor, Tensor, Tensor]:
    """float64 query with 6 heads, key and value with 2, for a layout."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(  # type: ignore[return-value]
        torch.randn(layout.total, count, 8, dtype=torch.float64, generator=generator, requires_grad=True)
        for count in (6, 2, 2)
    )


def test_the_layout_exercises_both_forms() -> None:
    device = torch.device("cpu")
    batches = LAYOUT.batches(LAYOUT.spans[0], device)
    assert batches is not None
    assert [part.shape for part in batches.parts] == [(2, 4), (1, 1)]  # 4 and 3 together, 1 by itself
    assert LAYOUT.batches(LAYOUT.spans[1], device) is None


@LAYOUTS
@pytest.mark.parametrize("largest", [layouts.MAX_MASK, 0], ids=["with masks", "too large for masks"])
def test_grouped_attention_equals_a_dense_mask_forward_and_backward(
    layout: AttentionLayout, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layouts, "MAX_MASK", largest)
    layout = AttentionLayout(layout.spans)  # without the plans of other tests
    inputs = heads(1, layout)
    upstream = torch.randn(layout.total, 6, 8, dtype=torch.float64)
    results = []
    for function in (grouped_attention, by_hand):
        out = function(*inputs, layout, 0.3)
        results.append((out, *torch.autograd.grad(out, inputs, upstream)))
    for ours, dense in zip(*results, strict=True):
        torch.testing.assert_close(ours, dense, rtol=1e-10, atol=1e-12)


@LAYOUTS
def test_the_varlen_plan_is_the_same_attention(layout: AttentionLayout) -> None:
    """The GPU kernel does not run here; its inputs do: a bottom-right causal softmax over each of its segments."""
    query, key, value = heads(2, layout)
    plan = layout.varlen(torch.device("cpu"))
    assert (plan.cu_q.dtype, plan.cu_k.dtype) == (torch.int32, torch.int32)
    assert (plan.max_q, plan.max_k) == (int(plan.cu_q.diff().max()), int(plan.cu_k.diff().max()))
    gathered = [part[plan.key_index].repeat_interleave(3, dim=1) for part in (key, value)]
    pieces = []
    for segment in range(len(plan.cu_q) - 1):
        q = query[plan.cu_q[segment] : plan.cu_q[segment + 1]]
        k, v = (part[plan.cu_k[segment] : plan.cu_k[segment + 1]] for part in gathered)
        hidden = torch.ones(len(q), len(k), dtype=torch.bool).triu(len(k) - len(q) + 1)
        scores = (torch.einsum("qhd,khd->hqk", q, k) * 0.3).masked_fill(hidden, float("-inf"))
        pieces.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v))
    torch.testing.assert_close(torch.cat(pieces), by_hand(query, key, value, layout, 0.3), rtol=1e-10, atol=1e-12)


@contextmanager
def kernel_by_hand() -> Iterator[list[int]]:
    """torch's varlen operator with a softmax by hand in the kernel's place, bottom-right causal as its source says.

    Only the CUDA kernel is replaced: the operator's schema, checks and autograd are torch's. Yields the calls' count.
    """
    from torch.nn.attention import varlen

    calls = [0]

    def segments(query: Tensor, key: Tensor, cu_q: Tensor, cu_k: Tensor, scale: float) -> Iterator[tuple[Any, ...]]:
        for segment in range(len(cu_q) - 1):
            mine, theirs = (slice(int(cu[segment]), int(cu[segment + 1])) for cu in (cu_q, cu_k))
            q, k = query[mine], key[theirs].repeat_interleave(query.shape[1] // key.shape[1], dim=1)
            hidden = torch.ones(len(q), len(k), dtype=torch.bool).triu(len(k) - len(q) + 1)
            scores = (torch.einsum("qhd,khd->hqk", q, k) * scale).masked_fill(hidden, float("-inf"))
            yield mine, theirs, k, scores.softmax(-1)

    def forward(  # type: ignore[no-untyped-def]
        query, key, value, cu_q, cu_k, max_q, max_k, is_causal=False, scale=None, window_size=None, *_
    ):
        calls[0] += 1
        assert (is_causal, window_size, cu_q.dtype, query.is_contiguous()) == (True, [-1, 0], torch.int32, True)
        out = torch.empty_like(query)
        for mine, theirs, _, weights in segments(query, key, cu_q, cu_k, scale):
            v = value[theirs].repeat_interleave(query.shape[1] // value.shape[1], dim=1)
            out[mine] = torch.einsum("hqk,khd->qhd", weights, v)
        return out, query.new_zeros(query.shape[1], len(query)), query.new_zeros(2, dtype=torch.uint64)

    def backward(  # type: ignore[no-untyped-def]
        grad, query, key, value, out, lse, cu_q, cu_k, max_q, max_k, is_causal, rng, scale=None, window_size=None
    ):
        times = query.shape[1] // key.shape[1]
        found = [torch.zeros_like(part) for part in (query, key, value)]
        for mine, theirs, k, weights in segments(query, key, cu_q, cu_k, scale):
            v = value[theirs].repeat_interleave(times, dim=1)
            of_weights = torch.einsum("qhd,khd->hqk", grad[mine], v)
            of_scores = scale * weights * (of_weights - (of_weights * weights).sum(-1, keepdim=True))
            found[0][mine] = torch.einsum("hqk,khd->qhd", of_scores, k)
            of_key = torch.einsum("hqk,qhd->khd", of_scores, query[mine])
            of_value = torch.einsum("hqk,qhd->khd", weights, grad[mine])
            for place, part in ((1, of_key), (2, of_value)):
                found[place][theirs] = part.unflatten(1, (-1, times)).sum(2)
        return tuple(found)

    with ExitStack() as stack:
        for operator, function in ((varlen._varlen_attn, forward), (varlen._varlen_attn_backward, backward)):
            operator.register_kernel("cpu")(function)
            stack.callback(operator._disabled_kernel.add, "cpu")
            operator._disabled_kernel.discard("cpu")
        yield calls


@pytest.mark.parametrize("grouped", [True, False], ids=["GQA by the argument", "keys repeated, as with torch 2.11"])
def test_varlen_attention_by_torchs_operator_equals_the_grouped_form_forward_and_backward(
    grouped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not grouped:
        monkeypatch.setattr(attention, "_varlen_takes", lambda option: False)
    inputs = heads(4)
    upstream = torch.randn(LAYOUT.total, 6, 8, dtype=torch.float64)
    results = []
    with kernel_by_hand() as calls:
        for function in (varlen_attention, grouped_attention):
            out = function(*inputs, LAYOUT, 0.3)
            results.append((out, *torch.autograd.grad(out, inputs, upstream)))
    assert calls == [1]
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


def test_selective_recomputation_keeps_varlen_attention_and_full_repeats_it(model_path: Path) -> None:
    """As often as the kernel is called for two blocks' forward and backward, and the same gradient."""
    found: dict[str, tuple[int, Tensor]] = {}
    modes: tuple[Recompute, ...] = ("none", "selective", "full")
    for mode in modes:
        micro, model = _packed(model_path)
        for block in model.model.layers:
            recompute(block, mode)
        with kernel_by_hand() as calls:
            model.base_model(
                input_ids=micro.input_ids[None],
                position_ids=micro.position_ids[None],
                use_cache=False,
                layout=micro.layout,
                varlen=True,
            ).last_hidden_state.square().sum().backward()
        weight = model.get_input_embeddings().weight
        assert isinstance(weight, Tensor)
        assert weight.grad is not None
        found[mode] = calls[0], weight.grad
    assert {mode: calls for mode, (calls, _) in found.items()} == {"none": 2, "selective": 2, "full": 4}
    torch.testing.assert_close(found["full"][1], found["none"][1])
    torch.testing.assert_close(found["selective"][1], found["none"][1])


def test_keys_repeated_for_every_query_head_are_the_same_attention() -> None:
    """What an fp32 GPU's kernel is given."""
    query, key, value = (part.transpose(0, 1)[None] for part in heads(5))
    grouped = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    keys, values = attention._every_head(query, key, value)
    repeated = scaled_dot_product_attention(query, keys, values, is_causal=True)
    torch.testing.assert_close(repeated, grouped, rtol=1e-10, atol=1e-12)


def _packed(path: Path) -> tuple[MicroBatch, PreTrainedModel]:
    groups = make_groups([(7, [4, 2, 6]), (3, [8, 9])])
    [micro] = pack(groups, [[1.0] * 3, [1.0] * 2], 200)
    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation=attention.NAME, dtype=torch.float32)
    return micro, model


@pytest.mark.parametrize("position", [3, 7, 9, 11])
def test_a_changed_token_changes_only_what_may_see_it(model_path: Path, position: int) -> None:
    micro, model = _packed(model_path)
    changed = micro.input_ids.clone()
    changed[position] = (changed[position] + 1) % 61

    def run(ids: Tensor) -> Tensor:
        with torch.no_grad():
            hidden: Tensor = model.base_model(
                input_ids=ids[None], position_ids=micro.position_ids[None], use_cache=False, layout=micro.layout
            ).last_hidden_state[0]
        return hidden

    differs = (run(micro.input_ids) != run(changed)).any(dim=-1)
    first = micro.layout.spans[0]
    bounds = torch.tensor([first.start + first.prompt, *first.completions]).cumsum(0).tolist()
    if position < first.prompt:
        expected = set(range(position, first.end))
    else:
        expected = set(range(position, next(bound for bound in bounds if bound > position)))
    assert set(differs.nonzero().flatten().tolist()) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "without a layout"),
        ({"layout": LAYOUT, "sliding_window": 5}, "sliding_window 5 < context 14"),
        ({"layout": LAYOUT, "softcap": 30.0}, "softcap"),
        ({"layout": AttentionLayout((Span(0, 3, ()),))}, "layout of 3 positions"),
    ],
)
def test_what_it_cannot_compute_is_refused(options: dict[str, Any], message: str) -> None:
    query, key, value = (part.transpose(0, 1)[None] for part in heads(3))
    with pytest.raises(UnsupportedAttention, match=message):
        attention.attention(torch.nn.Identity(), query, key, value, None, **options)


@pytest.mark.parametrize("spans", [((1, 3, ()),), ((0, 3, (2,)), (4, 2, ())), ((0, 0, (2,)),), ((0, 2, (0,)),)])
def test_layouts_with_gaps_overlaps_or_nothing_in_them_are_refused(
    spans: tuple[tuple[int, int, tuple[int, ...]], ...],
) -> None:
    with pytest.raises(ValueError, match="spans follow one another"):
        AttentionLayout(tuple(Span(*span) for span in spans))


@pytest.mark.parametrize("shared", [(4, 0), (3, 1)])
def test_a_beginning_that_no_earlier_prompt_has_is_refused(shared: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="no earlier prompt has"):
        AttentionLayout((Span(0, 3, (2,)), Span(5, 2, (), *shared)))


def test_plain_sdpa_on_the_same_pack_would_leak() -> None:
    """The danger is real: without this attention, the second completion sees the first."""
    groups = make_groups([(7, [4, 2, 6])])
    [micro] = pack(groups, [[1.0] * 3], 200)
    model = make_model("llama").eval()
    changed = micro.input_ids.clone()
    changed[7] = (changed[7] + 1) % 61
    with torch.no_grad():
        a, b = (
            model.base_model(input_ids=ids[None], position_ids=micro.position_ids[None]).last_hidden_state[0]
            for ids in (micro.input_ids, changed)
        )
    assert (a != b).any(dim=-1)[10:].any()
