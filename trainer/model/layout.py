"""Where the groups of a pack are, who attends to whom, and the index tensors that attention needs for that."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

MAX_MASK = 1 << 24
"""Largest number of (query, key) pairs of one group for which a mask is built."""


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
    """C completions of one group as a batch padded on the right to L, for `grouped_attention`."""

    gather: Tensor
    """[C * L] packed position of each row; padding repeats the completion's last position."""
    scatter: Tensor
    """[sum of lengths] row of each packed completion position, in packed order."""
    mask: Tensor
    """bool [L, prompt + L], shared by the C completions: a padded key lies after every real query."""
    shape: tuple[int, int]
    """(C, L)."""


class CompletionBatches(NamedTuple):
    """All completions of one group, those of like length together."""

    parts: tuple[CompletionBatch, ...]
    order: Tensor
    """[sum of lengths] the row of each packed completion position in the parts' results after one another."""


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

    Index tensors are made once per layout and device and shared by all layers. Raises ValueError for gaps, overlaps,
    empty prompts or completions, and shared positions that are not an earlier prompt's first.
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

    def batches(self, span: Span, device: torch.device) -> CompletionBatches | None:
        """The padded batches of a span's completions, or None where one causal sdpa for each is cheaper."""
        key = ("batches", (span.start, device))
        if key not in self._plans:
            self._plans[key] = _completion_batches(span, device)
        return cast("CompletionBatches | None", self._plans[key])

    def varlen(self, device: torch.device) -> VarlenPlan:
        """Cumulative lengths and key positions of every segment."""
        key = ("varlen", device)
        if key not in self._plans:
            self._plans[key] = _varlen_plan(self.spans, device)
        return cast(VarlenPlan, self._plans[key])


def _completion_batches(span: Span, device: torch.device) -> CompletionBatches | None:
    lengths, prompt, alike = torch.tensor(span.completions), span.whole_prompt, _alike(span.completions)
    widest = [max(span.completions[number] for number in chosen) for chosen in alike]
    pairs = sum(len(chosen) * wide * (prompt + wide) for chosen, wide in zip(alike, widest, strict=True))
    alone = int(((prompt + lengths) ** 2).sum()) // 2
    if pairs > alone or max(widest) * (prompt + max(widest)) > MAX_MASK:
        return None
    starts = lengths.cumsum(0) - lengths
    parts, rows = [], []
    for chosen, wide in zip(alike, widest, strict=True):
        first, length, column = starts[chosen], lengths[chosen], torch.arange(wide)
        real = (column < length[:, None]).flatten().nonzero().flatten()
        places = (first[:, None] + torch.minimum(column, length[:, None] - 1)).flatten()
        mask = torch.ones(wide, prompt + wide, dtype=torch.bool).tril(diagonal=prompt)
        gather = places + span.start + span.prompt
        parts.append(CompletionBatch(gather.to(device), real.to(device), mask.to(device), (len(chosen), wide)))
        rows.append(places[real])
    return CompletionBatches(tuple(parts), torch.cat(rows).argsort().to(device))


def _alike(lengths: tuple[int, ...]) -> list[list[int]]:
    """The completions that are padded together: to less than twice the length of each, the longest first."""
    found: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        if not found or 2 * lengths[number] <= lengths[found[-1][0]]:
            found.append([])
        found[-1].append(number)
    return [sorted(chosen) for chosen in found]


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
