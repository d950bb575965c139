"""Attention over a pack: each group's prompt once, then its completions, each seeing the prompt and itself. What
several prompts begin with is there once as well.

Registered with transformers under `NAME`, so that any model built on its attention interface uses it:
the model is called with `layout=AttentionLayout(...)` and no mask. Two forms of the same function:

- `grouped_attention` on any device, exact in the model's own precision: one causal sdpa for a group's prompt and one
  batched sdpa for its completions over [prompt + own], or a causal sdpa over [prompt + completion] each where
  that is cheaper (long completions after short prompts: no mask is built, and memory stays linear);
- `varlen_attention` on CUDA in half precision: one `torch.nn.attention.varlen.varlen_attn` over all segments, with
  the prompt's keys gathered before each completion's own. Written from its source; not yet run on a GPU.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from environments.common.errors import ConfigError

NAME = "prompt_shared"
"""Name of this attention in transformers' registry (`attn_implementation`)."""

MAX_MASK = 1 << 24
"""Largest number of (query, key) pairs of one group for which a mask is built."""


class UnsupportedAttention(ConfigError):
    """The model asks for attention that this one does not compute; nothing is approximated."""


class Span(NamedTuple):
    """One group within the pack: where its prompt starts, and the lengths that follow one another, in positions.

    Where groups begin with the same tokens, as few-shot prompts do, the first of them holds these for all: `shared`
    of the others' prompt positions are those from `root` on, and `prompt` counts the rest.
    """

    start: int
    prompt: int
    completions: tuple[int, ...]
    shared: int = 0
    root: int = 0

    @property
    def end(self) -> int:
        """The position after the last completion."""
        return self.start + self.prompt + sum(self.completions)

    @property
    def whole_prompt(self) -> int:
        """Prompt positions that a completion sees, those of another group included."""
        return self.shared + self.prompt

    def prompt_of(self, positions: Tensor) -> Tensor:
        """The whole prompt's entries of a tensor over packed positions."""
        own = positions[self.start : self.start + self.prompt]
        return torch.cat([positions[self.root : self.root + self.shared], own]) if self.shared else own


class CompletionBatch(NamedTuple):
    """One group's C completions as a batch padded on the right to L, for `grouped_attention`."""

    gather: Tensor
    """[C * L] packed position of each row; padding repeats the completion's last position."""
    scatter: Tensor
    """[sum of lengths] row of each packed completion position, in packed order."""
    mask: Tensor
    """bool [L, prompt + L], shared by the C completions: a padded key lies after every real query."""
    shape: tuple[int, int]
    """(C, L)."""


class VarlenPlan(NamedTuple):
    """All segments of a pack for `varlen_attention`; segment = a prompt, or a completion with its prompt before it."""

    key_index: Tensor
    """[sum of key lengths] packed position of each gathered key."""
    cu_q: Tensor
    """int32 [segments + 1] cumulative query lengths."""
    cu_k: Tensor
    """int32 [segments + 1] cumulative key lengths."""
    max_q: int
    max_k: int


@dataclass(frozen=True)
class AttentionLayout:
    """Who attends to whom in a pack: spans that follow one another without gaps, starting at position 0.

    Index tensors are made once per layout and device and shared by all layers. Raises ValueError for gaps,
    overlaps, an empty prompt or an empty completion, and shared positions that are not an earlier prompt's first.
    """

    spans: tuple[Span, ...]
    _plans: dict[tuple[str, Any], Any] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        position = 0
        whole: dict[int, int] = {}  # prompts that hold all their positions themselves
        for span in self.spans:
            if span.start != position or span.prompt < 1 or min(span.completions, default=1) < 1:
                raise ValueError(
                    f"span {tuple(span)} at packed position {position}: spans follow one another, lengths >= 1"
                )
            if span.shared and span.shared > whole.get(span.root, 0):
                raise ValueError(f"span {tuple(span)}: no earlier prompt has {span.shared} positions from {span.root}")
            if not span.shared:
                whole[span.start] = span.prompt
            position = span.end

    @property
    def total(self) -> int:
        """Packed positions T."""
        return self.spans[-1].end if self.spans else 0

    @cached_property
    def longest(self) -> int:
        """The longest context that a position sees, itself included."""
        return max((span.whole_prompt + max(span.completions, default=0) for span in self.spans), default=0)

    def rest_mask(self, span: Span, device: torch.device) -> Tensor | None:
        """bool [prompt, shared + prompt]: what the rest of a prompt sees that shares its beginning; None: too large."""
        if span.prompt * span.whole_prompt > MAX_MASK:
            return None
        key = ("rest", (span.start, device))
        if key not in self._plans:
            ones = torch.ones(span.prompt, span.whole_prompt, dtype=torch.bool, device=device)
            self._plans[key] = ones.tril(diagonal=span.shared)
        return cast(Tensor, self._plans[key])

    def batch(self, span: Span, device: torch.device) -> CompletionBatch | None:
        """The padded batch of a span's completions, or None where one causal sdpa for each is cheaper."""
        key = ("batch", (span.start, device))
        if key not in self._plans:
            self._plans[key] = _completion_batch(span, device)
        return cast("CompletionBatch | None", self._plans[key])

    def varlen(self, device: torch.device) -> VarlenPlan:
        """Cumulative lengths and key positions of every segment."""
        key = ("varlen", device)
        if key not in self._plans:
            self._plans[key] = _varlen_plan(self.spans, device)
        return cast(VarlenPlan, self._plans[key])


def _completion_batch(span: Span, device: torch.device) -> CompletionBatch | None:
    lengths = torch.tensor(span.completions)
    count, longest, prompt = len(span.completions), int(lengths.max()), span.whole_prompt
    pairs = count * longest * (prompt + longest)
    alone = int(((prompt + lengths) ** 2).sum()) // 2
    if pairs > alone or longest * (prompt + longest) > MAX_MASK:
        return None
    starts = span.start + span.prompt + lengths.cumsum(0) - lengths
    column = torch.arange(longest)
    real = column < lengths[:, None]
    gather = (starts[:, None] + torch.minimum(column, lengths[:, None] - 1)).flatten()
    mask = torch.ones(longest, prompt + longest, dtype=torch.bool).tril(diagonal=prompt)
    return CompletionBatch(
        gather.to(device), real.flatten().nonzero().flatten().to(device), mask.to(device), (count, longest)
    )


def _varlen_plan(spans: tuple[Span, ...], device: torch.device) -> VarlenPlan:
    keys: list[Tensor] = []
    queries: list[int] = []
    positions = torch.arange(spans[-1].end)
    for span in spans:
        prompt = span.prompt_of(positions)
        keys.append(prompt)
        queries.append(span.prompt)
        position = span.start + span.prompt
        for length in span.completions:
            keys.append(torch.cat([prompt, torch.arange(position, position + length)]))
            queries.append(length)
            position += length
    widths = [len(part) for part in keys]
    return VarlenPlan(
        torch.cat(keys).to(device), _cumulative(queries, device), _cumulative(widths, device), max(queries), max(widths)
    )


def _cumulative(lengths: list[int], device: torch.device) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(device=device, dtype=torch.int32)


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
        plan = layout.batch(span, query.device)
        if plan is not None:
            parts.append(_batched(query, key, value, (before[1], before[2]), plan, scale))
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
