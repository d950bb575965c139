"""Attention over a pack: each group's prompt once, then its completions, each seeing the prompt and itself.

Registered with transformers under `NAME`, so that any model built on its attention interface uses it:
the model is called with `layout=AttentionLayout(...)` and no mask. Two forms of the same function:

- `grouped_attention` on any device, exact in the model's own precision: one causal sdpa for a group's prompt and a
  batched sdpa for its completions of like length over [prompt + own], or a causal sdpa over [prompt + completion] each
  where that is cheaper (long completions after short prompts: no mask is built, and memory stays linear);
- `varlen_attention` on CUDA in half precision: one `torch.nn.attention.varlen.varlen_attn` over all segments, with
  the prompt's keys gathered before each completion's own. Written from its source; not yet run on a GPU.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from environments.common.errors import ConfigError
from trainer.model.layout import AttentionLayout, CompletionBatch

NAME = "prompt_shared"
"""Name of this attention in transformers' registry (`attn_implementation`)."""


class UnsupportedAttention(ConfigError):
    """The model asks for attention that this one does not compute; nothing is approximated."""


def grouped_attention(query: Tensor, key: Tensor, value: Tensor, layout: AttentionLayout, scale: float) -> Tensor:
    """query [T, H, D], key and value [T, KV, D] -> [T, H, D]; H is a multiple of KV. Differentiable."""
    parts: list[Tensor] = []
    for span in layout.spans:
        before = [span.prompt_of(part) for part in (query, key, value)]
        mask = layout.rest_mask(span, query.device) if span.shared else None
        # sdpa's causal mask is aligned to the top left, so queries of what comes before go along and are dropped.
        skipped = span.shared if mask is None else 0
        parts.append(_sdpa(before[0][span.shared - skipped :], before[1], before[2], scale, mask)[skipped:])
        if not span.completions:
            continue
        plan = layout.batches(span, query.device)
        if plan is not None:
            rows = [_batched(query, key, value, (before[1], before[2]), part, scale) for part in plan.parts]
            parts.append(rows[0] if len(rows) == 1 else torch.cat(rows)[plan.order])
            continue
        position = span.start + span.prompt
        for length in span.completions:
            own = slice(position, position + length)
            q, k, v = (torch.cat([first, part[own]]) for first, part in zip(before, (query, key, value), strict=True))
            parts.append(_sdpa(q, k, v, scale)[span.whole_prompt :])
            position += length
    return torch.cat(parts)


def _sdpa(query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """Causal without a mask."""
    q, k, v = (part.transpose(0, 1)[None] for part in (query, key, value))
    if q.is_cuda:
        k, v = _every_head(q, k, v)
    gqa = k.shape[1] != q.shape[1]
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=gqa)
    return out[0].transpose(0, 1)


def _every_head(query: Tensor, *parts: Tensor) -> list[Tensor]:
    """Keys and values [N, KV, S, D] repeated for all H query heads.

    For fp32 on a GPU: sdpa's only kernel without an S x S matrix there takes as many key heads as query heads.
    """
    return [part.repeat_interleave(query.shape[1] // part.shape[1], dim=1) for part in parts]


def _batched(
    query: Tensor, key: Tensor, value: Tensor, prompt: tuple[Tensor, Tensor], plan: CompletionBatch, scale: float
) -> Tensor:
    rows = [part[plan.gather].unflatten(0, plan.shape).transpose(1, 2) for part in (query, key, value)]
    shared = [part.transpose(0, 1).expand(plan.shape[0], -1, -1, -1) for part in prompt]
    keys, values = (torch.cat([first, own], dim=2) for first, own in zip(shared, rows[1:], strict=True))
    if query.is_cuda:
        keys, values = _every_head(rows[0], keys, values)
    gqa = keys.shape[1] != rows[0].shape[1]
    out = scaled_dot_product_attention(rows[0], keys, values, attn_mask=plan.mask, scale=scale, enable_gqa=gqa)
    return out.transpose(1, 2).flatten(0, 1)[plan.scatter]


def varlen_attention(query: Tensor, key: Tensor, value: Tensor, layout: AttentionLayout, scale: float) -> Tensor:
    """The same function by one flash-attention call: CUDA, bf16 or fp16; shapes as in `grouped_attention`.

    With more keys than queries the kernel aligns its causal mask to the bottom right: query j of a completion sees
    the whole prompt and its own first j + 1 tokens. Not yet run on a GPU.
    """
    from torch.nn.attention.varlen import varlen_attn

    plan = layout.varlen(query.device)
    keys, values = key[plan.key_index], value[plan.key_index]
    grouped: dict[str, Any] = {}
    if key.shape[1] != query.shape[1]:
        if _varlen_takes("enable_gqa"):
            grouped = {"enable_gqa": True}
        else:  # torch 2.11: one key head for each query head
            keys, values = (part.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for part in (keys, values))
    out = varlen_attn(
        query.contiguous(),
        keys,
        values,
        plan.cu_q,
        plan.cu_k,
        plan.max_q,
        plan.max_k,
        scale=scale,
        window_size=(-1, 0),
        **grouped,
    )
    assert isinstance(out, Tensor)  # a pair only where the log-sum-exp is asked for
    return out


@cache
def _varlen_takes(option: str) -> bool:
    """Whether this torch's varlen_attn has an argument of that name."""
    from torch.nn.attention.varlen import varlen_attn

    return option in inspect.signature(varlen_attn).parameters


@torch.compiler.disable  # type: ignore[untyped-decorator]  # a layout's lengths differ from pack to pack; blocks are compiled around this call
def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: AttentionLayout | None = None,
    scaling: float | None = None,
    varlen: bool | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: [1, H, T, D], [1, KV, T, D] twice -> ([1, T, H, D], no weights).

    varlen: which of the two forms; None: by the device. trainer/planning/trace.py plans a GPU's memory on shapes alone.
    Dropout is ignored: the ratio of two policies must not be random. Raises UnsupportedAttention without a layout,
    and for sliding windows that cut the context, soft caps and sinks.
    """
    if layout is None:
        raise UnsupportedAttention(f"attention {NAME!r} was called without a layout: pass layout=AttentionLayout(...)")
    if attention_mask is not None or query.shape[0] != 1 or query.shape[2] != layout.total:
        raise UnsupportedAttention(
            f"query {tuple(query.shape)} with a layout of {layout.total} positions: give one packed row and no mask"
        )
    window = options.get("sliding_window")
    if window is not None and window < layout.longest:
        raise UnsupportedAttention(
            f"sliding_window {window} < context {layout.longest}: this attention is full; shorten the context"
        )
    for name in ("softcap", "s_aux", "position_bias"):
        if options.get(name) is not None:
            raise UnsupportedAttention(f"{name} of {type(module).__name__} is not supported: use another model")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))
    if varlen is None:
        varlen = query.is_cuda and query.dtype in (torch.bfloat16, torch.float16)
    out = (varlen_attention if varlen else grouped_attention)(q, k, v, layout, scale)
    return out[None], None


def no_mask(*arguments: Any, **options: Any) -> None:
    """transformers' mask interface: the layout already says everything, so no S x S mask is ever built."""


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, no_mask)
