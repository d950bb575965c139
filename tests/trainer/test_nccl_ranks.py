"""The `nccl` publisher under FSDP: two ranks gather, rank 0 sends, and nobody waits forever for one that fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from environments.launch.processes import free_port
from tests.support.forked import forked
from tests.support.weight_receivers import Receiver, digest
from tests.trainer import nccl_ranks


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver(2)
    yield server
    server.kill()


def run(case: str, model: Path, receiver: Receiver, folder: Path) -> tuple[list[int | None], list[str]]:
    """Exit codes and what was said on stderr, of both ranks of tests/trainer/nccl_ranks.py."""
    port = free_port()
    ranks = [forked(nccl_ranks.main, case, model, receiver.url, folder, rank, port) for rank in range(2)]
    for rank in ranks:
        rank.join(120)
        rank.kill()
        rank.join()
    return [rank.returncode for rank in ranks], [(folder / f"stderr-{rank}.txt").read_text() for rank in range(2)]


def test_what_two_ranks_hold_is_sent_whole(receiver: Receiver, models: dict[str, Path], tmp_path: Path) -> None:
    codes, errors = run("well", models["qwen3"], receiver, tmp_path)
    assert codes == [0, 0], "\n".join(errors)
    whole = {name: digest(tensor) for name, tensor in torch.load(tmp_path / "weights-0.pt").items()}
    assert "lm_head.weight" in whole  # this model's head is its own
    assert receiver.received() == [whole, whole]


def test_a_failure_of_rank_0_in_the_middle_is_raised_on_both(
    receiver: Receiver, models: dict[str, Path], tmp_path: Path
) -> None:
    codes, errors = run("breaks", models["qwen3"], receiver, tmp_path)
    assert codes == [0, 0], "\n".join(errors)  # the gather went on to its end, so both could leave
    first, second = ((tmp_path / f"error-{rank}.txt").read_text() for rank in range(2))
    assert first == second
    assert first.startswith(f"weights to {receiver.url}, phase update: ")
    assert "restart it" in first


def test_a_transfer_that_hangs_ends_both_processes_with_the_reason(
    receiver: Receiver, models: dict[str, Path], tmp_path: Path
) -> None:
    codes, errors = run("hangs", models["qwen3"], receiver, tmp_path)
    assert codes == [1, 1], "\n".join(errors)
    for said in errors:
        assert f"error weights to {receiver.url}, phase update: not ended by its deadline" in said
    assert not (tmp_path / "weights-0.pt").exists()


def test_a_rank_that_does_not_come_to_the_gather_ends_the_others(
    receiver: Receiver, models: dict[str, Path], tmp_path: Path
) -> None:
    codes, errors = run("does not come", models["qwen3"], receiver, tmp_path)
    assert codes == [1, 1], "\n".join(errors)
    for rank, said in enumerate(errors):
        assert f"error weights, phase update: rank {rank} waited 4 s for the others in the gather" in said
