"""Packs: what is in them, what they may weigh, and that all ranks agree."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.trainer.conftest import beginning_alike, make_groups
from trainer.data.scored_groups import ScoredGroup
from trainer.model.packing import LEAST_SHARED, DoesNotFit, MicroBatch, pack

SHAPES = [(5, [3, 1, 4]), (9, [2, 7]), (4, [6, 6, 6, 6]), (12, [1, 1])]


def signs(groups: list[ScoredGroup]) -> list[list[float]]:
    """Advantages +1, -1, +1, ... for every group."""
    return [[1.0 - 2 * (place % 2) for place in range(len(group.rollouts))] for group in groups]


def trained(micro: MicroBatch) -> list[tuple[tuple[int, int], list[int]]]:
    """Each sequence's origin and its trained tokens."""
    parts = micro.target.split(micro.length.tolist())
    return [(origin, part.tolist()) for origin, part in zip(micro.origin, parts, strict=True)]


def test_a_group_is_its_prompt_once_then_its_completions_without_their_last_token() -> None:
    groups = make_groups([(3, [2, 1, 3])])
    [micro] = pack(groups, [[0.5, 0.0, -0.5]], 100)
    a, b, c = (rollout.completion for rollout in groups[0].rollouts)
    assert micro.input_ids.tolist() == [*groups[0].prompt, a[0], c[0], c[1]]
    assert micro.position_ids.tolist() == [0, 1, 2, 3, 3, 4]
    assert micro.source.tolist() == [2, 3, 2, 2, 4, 5]
    assert micro.target.tolist() == [*a, *b, *c]
    assert micro.sequence.tolist() == [0, 0, 1, 2, 2, 2]
    assert micro.length.tolist() == [2, 1, 3]
    assert micro.advantage.tolist() == [0.5, 0.0, -0.5]
    assert micro.sampler_logprob.tolist() == [-1.0, -1.0, -1.125, -1.25, -1.25, -1.25]
    assert [tuple(span) for span in micro.layout.spans] == [(0, 3, (1, 2), 0, 0)]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("max_tokens", [17, 24, 40, 1000])
def test_every_rollout_is_trained_exactly_once_over_all_ranks(max_tokens: int, world_size: int) -> None:
    groups = make_groups(SHAPES)
    found = []
    for rank in range(world_size):
        for micro in pack(groups, signs(groups), max_tokens, rank=rank, world_size=world_size):
            found += trained(micro)
            for (group, _), temperature in zip(micro.origin, micro.temperature.tolist(), strict=True):
                assert temperature == pytest.approx(groups[group].temperature)
    expected = [
        ((number, place), rollout.completion)
        for number, group in enumerate(groups)
        for place, rollout in enumerate(group.rollouts)
    ]
    assert sorted(found) == expected


@pytest.mark.parametrize("max_tokens", [17, 24, 1000])
def test_no_pack_is_longer_than_allowed(max_tokens: int) -> None:
    groups = make_groups(SHAPES)
    for rank in range(2):
        for micro in pack(groups, signs(groups), max_tokens, rank=rank, world_size=2):
            assert len(micro.input_ids) == micro.layout.total <= max_tokens


def test_what_prompts_begin_with_is_in_a_micro_batch_once() -> None:
    groups = make_groups(SHAPES)
    alike = beginning_alike(groups, LEAST_SHARED)
    [apart], [together] = (pack(some, signs(some), 1000) for some in (groups, alike))
    assert together.layout.total == apart.layout.total + LEAST_SHARED
    assert [(span.shared, span.root) for span in together.layout.spans] == [(0, 0)] + 3 * [(LEAST_SHARED, 0)]
    assert trained(together) == trained(apart)
    # each position predicts from its own whole sequence
    for target, source, number in zip(together.target, together.source, together.sequence, strict=True):
        group, rollout = together.origin[number]
        sequence = alike[group].prompt + alike[group].rollouts[rollout].completion
        place = int(together.position_ids[source])
        assert (sequence[place], sequence[place + 1]) == (int(together.input_ids[source]), int(target))


@pytest.mark.parametrize("length", [LEAST_SHARED - 1, 0])
def test_prompts_that_begin_alike_for_a_few_tokens_only_are_apart(length: int) -> None:
    [micro] = pack(groups := beginning_alike(make_groups(SHAPES), length), signs(groups), 1000)
    assert micro.layout.total == sum(
        len(group.prompt) + sum(len(rollout.completion) - 1 for rollout in group.rollouts) for group in groups
    )


def test_two_kinds_of_prompts_have_a_beginning_each_whatever_their_order() -> None:
    first, second = (beginning_alike(make_groups(SHAPES, seed), 100, seed) for seed in (1, 2))
    groups = [group for pair in zip(first, second, strict=True) for group in pair]
    [micro] = pack(groups, signs(groups), 2000)
    assert [span.shared for span in micro.layout.spans] == [0, 0] + 6 * [100]
    assert {(span.shared, span.root) for span in micro.layout.spans[2:]} == {
        (100, 0),
        (100, micro.layout.spans[1].start),
    }


def test_the_same_prompt_twice_keeps_a_token_to_predict_from() -> None:
    [group] = beginning_alike(make_groups([(5, [3, 2])]), LEAST_SHARED)
    [micro] = pack([group, group], signs([group, group]), 1000)
    assert [(span.prompt, span.shared) for span in micro.layout.spans] == [
        (LEAST_SHARED + 5, 0),
        (1, LEAST_SHARED + 4),
    ]


@pytest.mark.parametrize("world_size", [1, 2])
def test_packs_of_prompts_that_begin_alike_hold_all_rollouts_and_no_more_than_is_allowed(world_size: int) -> None:
    groups = beginning_alike(make_groups(SHAPES), LEAST_SHARED)
    loads = [pack(groups, signs(groups), 110, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert all(micro.layout.total <= 110 for load in loads for micro in load)
    assert sorted(micro_group for load in loads for micro in load for micro_group in micro.origin) == [
        (number, place) for number, group in enumerate(groups) for place in range(len(group.rollouts))
    ]


@pytest.mark.parametrize("world_size", [2, 5, 9])
def test_every_rank_gets_the_same_number_of_micro_batches(world_size: int) -> None:
    groups = make_groups(SHAPES)
    counts = {len(pack(groups, signs(groups), 20, rank=rank, world_size=world_size)) for rank in range(world_size)}
    assert len(counts) == 1


def test_a_rank_without_work_gets_an_empty_micro_batch() -> None:
    groups = make_groups([(4, [2])])
    loads = [pack(groups, [[1.0]], 100, rank=rank, world_size=2) for rank in range(2)]
    [empty] = [micro for [micro] in loads if not micro.origin]
    assert empty.input_ids.tolist() == [0]
    assert len(empty.target) == len(empty.source) == len(empty.advantage) == len(empty.length) == 0


def test_ranks_carry_like_costs() -> None:
    groups = make_groups([(20, [length] * 4) for length in (4, 9, 14, 19, 24, 29, 34, 39)])
    loads = [
        sum(micro.layout.total for micro in pack(groups, signs(groups), 400, rank=rank, world_size=2))
        for rank in range(2)
    ]
    assert abs(loads[0] - loads[1]) <= 0.05 * sum(loads)


def test_silent_rollouts_are_left_out_only_when_asked_for() -> None:
    [group] = make_groups([(4, [3, 3, 3])])
    late = dataclasses.replace(group.rollouts[1], overlong=True, finish_reason="length")
    group = dataclasses.replace(group, rollouts=[group.rollouts[0], late, group.rollouts[2]])
    advantages = [[1.0, 0.0, 0.0]]
    assert pack([group], advantages, 100)[0].origin == [(0, 0), (0, 1), (0, 2)]
    assert pack([group], advantages, 100, skip_silent=True)[0].origin == [(0, 0), (0, 2)]


def test_a_sequence_that_cannot_fit_names_the_setting() -> None:
    groups = make_groups([(10, [3, 12])])
    with pytest.raises(DoesNotFit, match=r"group g0, rollout 1: 10 \+ 12 tokens > max_tokens 20; raise max_tokens"):
        pack(groups, signs(groups), 20)
    assert pack(groups, signs(groups), 21)[0].layout.total <= 21


@pytest.mark.parametrize(
    ("prompt", "lengths", "advantages", "message"),
    [
        (0, [2], [1.0], "prompt is empty"),
        (3, [0], [1.0], "at least one"),
        (3, [2, 2], [1.0], "1 advantages for 2 rollouts"),
    ],
)
def test_bad_groups_are_refused(prompt: int, lengths: list[int], advantages: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack(make_groups([(prompt, lengths)]), [advantages], 100)


def test_an_empty_batch_is_one_empty_micro_batch() -> None:
    [micro] = pack([], [], 100)
    assert micro.target.dtype == torch.int64
    assert micro.origin == []
