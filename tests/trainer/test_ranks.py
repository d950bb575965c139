"""What two real processes over gloo agree on: the batch, an error of its pull, and the metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.forked import Ranks
from trainer.data.api_client import BatchTimeout, broadcast_groups, still_waiting
from trainer.data.scored_groups import Rollout, ScoredGroup
from trainer.metrics import Metrics

GROUPS = [ScoredGroup("g-1", "p-1", 0.7, 64, [1, 2], [Rollout([3, 4], [-0.5, 0.0], 1.0, False, "stop", [(0, 0, 2)])])]


def worker(folder: Path) -> None:
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    seen: dict[str, Any] = {"groups": broadcast_groups(GROUPS if rank == 0 else None)}
    try:
        broadcast_groups(BatchTimeout("no batch") if rank == 0 else None)
    except BatchTimeout as error:
        seen["error"] = str(error)
    if rank == 0:
        still_waiting()
        still_waiting()
    seen["groups after a wait"] = broadcast_groups(GROUPS if rank == 0 else None)
    metrics = Metrics()
    if rank == 0:  # unequal shares: a mean of means would be wrong
        metrics.add("entropy", torch.tensor(30.0), 10)
        metrics.add("ratio_max", 1.5)
    else:
        metrics.add("entropy", 1.0, 1)
        metrics.add("ratio_max", 2.5)
        metrics.add("groups_left_out", 4)
    metrics.add("loss", 0.25)
    metrics.add("sequences", 7)
    seen["metrics"] = metrics.reduce()
    torch.save(seen, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What rank 0 and rank 1 saw."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    Ranks(2, folder, worker, folder).wait()
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def test_every_rank_gets_rank_zeros_groups(ranks: list[dict[str, Any]]) -> None:
    assert [seen["groups"] for seen in ranks] == [GROUPS, GROUPS]
    assert [seen["groups after a wait"] for seen in ranks] == [GROUPS, GROUPS]


def test_a_failed_pull_is_raised_on_every_rank(ranks: list[dict[str, Any]]) -> None:
    assert [seen["error"] for seen in ranks] == ["no batch", "no batch"]


def test_every_rank_reduces_to_the_same_values(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["metrics"] == ranks[1]["metrics"]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("entropy", 31 / 11), ("ratio_max", 2.5), ("groups_left_out", 4), ("loss", 0.5), ("sequences", 7)],
)
def test_metrics_are_exact_over_ranks(ranks: list[dict[str, Any]], name: str, wanted: float) -> None:
    assert ranks[0]["metrics"][name] == pytest.approx(wanted)
