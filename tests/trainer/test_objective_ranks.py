"""Every objective's gradient on real FSDP2 over gloo: worlds of 1, 2 and 3, cut into few or many micro-batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.forked import Ranks
from tests.trainer import objective_ranks
from tests.trainer.objective_ranks import HELD, MAX_TOKENS, NAMES

Gradients = dict[Any, dict[str, Tensor]]


@pytest.fixture(scope="module")
def worlds(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[int, Gradients]:
    """World size -> all gradients, the worlds side by side."""
    folder = tmp_path_factory.mktemp("worlds")
    results = {world: folder / f"{world}.pt" for world in (1, 2, 3)}
    started = [Ranks(world, folder, objective_ranks.main, models["llama"], result) for world, result in results.items()]
    try:
        for world in started:
            world.wait()
    finally:
        for world in started:
            world.kill()
    return {world: torch.load(result) for world, result in results.items()}


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("name", "baseline"),
    [(name, baseline) for name in NAMES for baseline in ("include", "exclude")] + [("held", kind) for kind in HELD],
)
def test_the_gradient_does_not_depend_on_how_the_batch_was_cut(
    worlds: dict[int, Gradients], name: str, baseline: str
) -> None:
    reference = worlds[1][name, baseline, MAX_TOKENS[-1]]
    assert sum(float(value.norm()) for value in reference.values()) > 0
    for world, gradients in worlds.items():
        for tokens in MAX_TOKENS:
            ours = gradients[name, baseline, tokens]
            assert ours.keys() == reference.keys()
            for key, expected in reference.items():
                relative = float((ours[key] - expected).norm() / expected.norm())
                # Two updates before it, "held" begins at weights that already differ by rounding.
                limit = 5e-5 if name == "held" else 1e-5
                assert relative <= limit, f"world {world}, {tokens} tokens, {key}: {relative}"


def test_where_a_reference_is_kept_changes_nothing(worlds: dict[int, Gradients]) -> None:
    here, there = (worlds[2]["held", kind, MAX_TOKENS[0]] for kind in ("frozen", "frozen, offloaded"))
    assert all(torch.equal(here[key], there[key]) for key in here)


def test_no_two_objectives_have_the_same_gradient(worlds: dict[int, Gradients]) -> None:
    flat = {
        name: torch.cat([value.flatten() for value in worlds[1][name, "include", MAX_TOKENS[-1]].values()])
        for name in NAMES
    }
    directions = {name: value / value.norm() for name, value in flat.items()}
    for place, first in enumerate(NAMES):
        for second in NAMES[place + 1 :]:
            assert float((directions[first] - directions[second]).norm()) > 1e-3, (first, second)
