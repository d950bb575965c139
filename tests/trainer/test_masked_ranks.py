"""A part of a batch without a gradient takes no optimizer step, on any rank; counted, and its mismatch still shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.forked import Ranks
from tests.trainer import masked_ranks

Case = tuple[int, bool, dict[str, Any]]


@pytest.fixture(scope="module")
def ranks(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Case]]:
    """What each of two ranks saw of tests/trainer/masked_ranks.py."""
    folder = tmp_path_factory.mktemp("masked")
    Ranks(2, folder, masked_ranks.main, models["llama"], folder).wait()
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize(
    ("case", "steps", "tokens", "masked"),
    [
        ("both", 2, 30, 0),
        ("first masked", 1, 18, 3),
        ("second masked", 1, 12, 3),
        ("all masked", 0, 0, 6),
        ("no advantage", 0, 30, 0),
    ],
)
def test_only_parts_with_a_gradient_take_a_step(
    ranks: list[dict[str, Case]], case: str, steps: int, tokens: int, masked: int
) -> None:
    for rank in ranks:
        taken, moved, found = rank[case]
        assert (taken, moved) == (steps, steps > 0)
        assert (found["optimizer_steps"], found["skipped_optimizer_steps"]) == (steps, 2 - steps)
        assert found["skipped_batches"] == int(steps == 0)
        assert (found["trained"], found["masked_sequences"]) == (tokens, masked)


def test_the_schedule_counts_only_steps_that_were_taken(ranks: list[dict[str, Case]]) -> None:
    assert [case[2]["updates"] for case in ranks[0].values()] == [2, 3, 4, 4, 4]


def test_a_mask_that_leaves_everything_out_does_not_hide_the_mismatch(ranks: list[dict[str, Case]]) -> None:
    found = ranks[0]["all masked"][2]
    assert found["mismatch_abs"] == pytest.approx(3.0, rel=1e-4)
    assert found["loss"] is None


def test_both_ranks_saw_the_same(ranks: list[dict[str, Case]]) -> None:
    assert ranks[0] == ranks[1]
