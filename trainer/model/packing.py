"""From scored groups to packed micro-batches: the shared prompt once, then its completions.

What the prompts of several groups begin with, such as worked examples, is in a micro-batch once as well.

`pack` is a pure function of the whole batch, so every rank calls it with the same arguments and takes its share
without talking to the others. All ranks get the same number of micro-batches, as FSDP's collectives need.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from environments.common.errors import LivecodeError
from trainer.model.layout import AttentionLayout, Span

if TYPE_CHECKING:
    from trainer.data.scored_groups import ScoredGroup

ATTENTION_COST = 3e-5
"""Cost of one (query, key) pair relative to one token's matrix products: 4 x layers x heads x head size over
2 x parameters. Qwen3-14B has 2.9e-5; where contexts are short enough for it to be wrong, it does not matter."""

LEAST_SHARED = 64
"""Tokens that prompts of several groups begin with before they are computed together: below, the copies of keys and
values cost about as much."""


class DoesNotFit(LivecodeError, ValueError):
    """A sequence is longer than a micro-batch may be."""


@dataclass
class MicroBatch:
    """T packed positions, K trained tokens, B sequences; every tensor on one device. K = B = 0 in an empty one."""

    input_ids: Tensor
    """int64 [T]. A completion's last token is not in it: it predicts nothing."""
    position_ids: Tensor
    """int64 [T], 0 at each prompt's start; a completion continues after its prompt."""
    layout: AttentionLayout
    source: Tensor
    """int64 [K]: the packed position whose hidden state predicts the trained token."""
    target: Tensor
    """int64 [K]: the trained token."""
    sequence: Tensor
    """int64 [K]: its sequence, 0..B-1, ascending."""
    temperature: Tensor
    """fp32 [B]: the sampler's temperature."""
    advantage: Tensor
    """fp32 [B]."""
    length: Tensor
    """int64 [B]: trained tokens of each sequence."""
    sampler_logprob: Tensor
    """fp32 [K]."""
    origin: list[tuple[int, int]]
    """B pairs: index of the group and of the rollout in what was given to `pack`."""

    def to(self, device: torch.device | str) -> MicroBatch:
        """A copy with every tensor on `device`."""
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return MicroBatch(**{**vars(self), **moved})


class PackItem(NamedTuple):
    """Rollouts of one group that are computed together; a group that does not fit is cut into several."""

    group: int
    rollouts: tuple[int, ...]
    tokens: int
    cost: float
    family: int = -1
    """Of the groups whose prompts begin with the same `shared` tokens; -1: none."""
    shared: int = 0


def pack(
    groups: Sequence[ScoredGroup],
    advantages: Sequence[Sequence[float]],
    max_tokens: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str = "cpu",
    skip_silent: bool = False,
    attention_cost: float = ATTENTION_COST,
) -> list[MicroBatch]:
    """This rank's micro-batches, at least one, as many as on every other rank, each of <= max_tokens positions.

    groups, advantages: the *whole* batch, one advantage per rollout, equal on all ranks. skip_silent leaves out
    overlong rollouts of advantage zero: they have no gradient, and count only in the denominators, which the caller
    takes from `groups`; keep them where entropy or the sampler's mismatch is reported over every token.
    attention_cost: see ATTENTION_COST.

    Raises:
        DoesNotFit: one prompt + completion is longer than max_tokens.
        ValueError: an empty prompt or completion, or counts that do not match.
    """
    families = _families([group.prompt for group in groups])
    pieces = [
        piece._replace(family=family, shared=shared)
        for index, (group, (family, shared)) in enumerate(zip(groups, families, strict=True))
        for piece in _pieces(index, group, _spoken(group, advantages[index], skip_silent), max_tokens, attention_cost)
    ]
    bins = _bins(pieces, max_tokens, world_size)
    # Heavy bins first, dealt out as a snake: the ranks compute bins of like cost at the same time.
    rows = [bins[start : start + world_size] for start in range(0, len(bins), world_size)]
    mine = [row[rank if number % 2 == 0 else world_size - 1 - rank] for number, row in enumerate(rows)]
    return [_micro_batch(groups, advantages, chosen, device) for chosen in mine]


def _families(prompts: Sequence[list[int]]) -> list[tuple[int, int]]:
    """(family, tokens that its prompts begin with) of each prompt; (-1, 0) for one that is computed by itself."""
    found = [(-1, 0)] * len(prompts)
    members: list[int] = []
    common = 0

    def close() -> None:
        shared = min([common, *(len(prompts[member]) - 1 for member in members)])
        if len(members) > 1 and shared >= LEAST_SHARED:
            for member in members:
                found[member] = (members[0], shared)

    for index in sorted(range(len(prompts)), key=lambda index: prompts[index]):
        # Neighbours in this order begin alike. One joins where it saves more than what the others lose by it.
        reach = min(common, _alike(prompts[members[-1]], prompts[index])) if members else 0
        if members and reach >= LEAST_SHARED and len(members) * reach >= (len(members) - 1) * common:
            members.append(index)
            common = reach
        else:
            close()
            members, common = [index], len(prompts[index])
    close()
    return found


def _alike(first: list[int], second: list[int]) -> int:
    """How many tokens both begin with."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(first), len(second)))


def _spoken(group: ScoredGroup, advantages: Sequence[float], skip_silent: bool) -> list[int]:
    if len(advantages) != len(group.rollouts):
        raise ValueError(
            f"group {group.group_id}: {len(advantages)} advantages for {len(group.rollouts)} rollouts: give one each"
        )
    pairs = enumerate(zip(group.rollouts, advantages, strict=True))
    return [index for index, (rollout, value) in pairs if not (skip_silent and rollout.overlong and value == 0.0)]


def _pieces(
    index: int, group: ScoredGroup, rollouts: list[int], max_tokens: int, attention_cost: float
) -> list[PackItem]:
    """The group whole where it fits, else cut first-fit by falling length, its prompt repeated in each piece."""
    prompt = len(group.prompt)
    if prompt < 1:
        raise ValueError(f"group {group.group_id}: the prompt is empty; the first token has nothing to follow")
    lengths = {number: len(group.rollouts[number].completion) for number in rollouts}
    for number, length in lengths.items():
        if length < 1 or length != len(group.rollouts[number].logprobs):
            raise ValueError(
                f"group {group.group_id}, rollout {number}: {length} tokens and "
                f"{len(group.rollouts[number].logprobs)} log-probabilities; need one each, at least one"
            )
        if prompt + length - 1 > max_tokens:
            raise DoesNotFit(
                f"group {group.group_id}, rollout {number}: {prompt} + {length} tokens > max_tokens {max_tokens}; "
                "raise max_tokens or lower the context"
            )
    room: list[int] = []
    members: list[list[int]] = []
    for number in sorted(rollouts, key=lambda number: (-lengths[number], number)):
        need = lengths[number] - 1
        fits = next((place for place, free in enumerate(room) if need <= free), None)
        if fits is None:
            fits = len(room)
            room.append(max_tokens - prompt)
            members.append([])
        room[fits] -= need
        members[fits].append(number)
    pieces = []
    for chosen in members:
        spans = [lengths[number] - 1 for number in chosen]
        pairs = prompt * prompt / 2 + sum(prompt * span + span * span / 2 for span in spans)
        tokens = prompt + sum(spans)
        pieces.append(PackItem(index, tuple(sorted(chosen)), tokens, tokens + attention_cost * pairs))
    return pieces


def _bins(pieces: list[PackItem], max_tokens: int, world_size: int) -> list[list[PackItem]]:
    """The fewest bins, a multiple of world_size, that hold all pieces, balanced by cost, the heaviest bin first."""
    ordered = sorted(pieces, key=lambda piece: (-piece.cost, piece.group, piece.rollouts))
    beginnings = {piece.family: piece.shared for piece in pieces}
    least = sum(piece.tokens - piece.shared for piece in pieces) + sum(beginnings.values())
    rounds = max(1, -(-least // (max_tokens * world_size)))
    while True:
        bins: list[list[PackItem]] = [[] for _ in range(rounds * world_size)]
        cost, tokens = [0.0] * len(bins), [0] * len(bins)
        families: list[set[int]] = [{-1} for _ in bins]
        for piece in ordered:
            saved = [piece.shared if piece.family in held else 0 for held in families]
            new = [piece.tokens - one for one in saved]
            open_bins = [place for place in range(len(bins)) if tokens[place] + new[place] <= max_tokens]
            if not open_bins:
                break
            lightest = min(open_bins, key=lambda place: (cost[place] - saved[place], place))
            bins[lightest].append(piece)
            cost[lightest] += piece.cost - saved[lightest]
            tokens[lightest] += new[lightest]
            families[lightest].add(piece.family)
        else:
            order = sorted(range(len(bins)), key=lambda place: (-cost[place], place))
            return [sorted(bins[place]) for place in order]
        rounds += 1


def _micro_batch(
    groups: Sequence[ScoredGroup],
    advantages: Sequence[Sequence[float]],
    pieces: list[PackItem],
    device: torch.device | str,
) -> MicroBatch:
    # An empty micro-batch computes one token that nothing is trained on: its gradient is zero for every
    # parameter, and the rank takes part in the collectives.
    ids: list[int] = [] if pieces else [0]
    positions: list[int] = [] if pieces else [0]
    spans: list[Span] = [] if pieces else [Span(0, 1, ())]
    source: list[int] = []
    target: list[int] = []
    sampler: list[float] = []
    origin: list[tuple[int, int]] = []
    roots: dict[int, int] = {}  # where a family's shared tokens are
    for piece in pieces:
        group, start = groups[piece.group], len(ids)
        shared = piece.shared if piece.family in roots else 0
        ids += group.prompt[shared:]
        prompt, last, parts = len(group.prompt), len(ids) - 1, []
        positions += range(shared, prompt)
        for number in piece.rollouts:
            rollout = group.rollouts[number]
            inner = len(rollout.completion) - 1
            source += [last, *range(len(ids), len(ids) + inner)]
            target += rollout.completion
            sampler += rollout.logprobs
            origin.append((piece.group, number))
            ids += rollout.completion[:-1]
            positions += range(prompt, prompt + inner)
            parts.append(inner)
        root = roots.setdefault(piece.family, start) if piece.shared else 0
        spans.append(Span(start, prompt - shared, tuple(filter(None, parts)), shared, root if shared else 0))
    lengths = [len(groups[group].rollouts[number].completion) for group, number in origin]
    length = torch.tensor(lengths, dtype=torch.int64)
    return MicroBatch(
        input_ids=torch.tensor(ids, dtype=torch.int64),
        position_ids=torch.tensor(positions, dtype=torch.int64),
        layout=AttentionLayout(tuple(spans)),
        source=torch.tensor(source, dtype=torch.int64),
        target=torch.tensor(target, dtype=torch.int64),
        sequence=torch.repeat_interleave(torch.arange(len(origin)), length),
        temperature=torch.tensor([groups[group].temperature for group, _ in origin], dtype=torch.float32),
        advantage=torch.tensor([advantages[group][number] for group, number in origin], dtype=torch.float32),
        length=length,
        sampler_logprob=torch.tensor(sampler, dtype=torch.float32),
        origin=origin,
    ).to(device)
