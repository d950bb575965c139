"""Deltas of weights: bit for bit the full update, found out when torn, and never without what they stand on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.delta_weights import (
    Weights,
    changed,
    cut,
    flip,
    is_delta,
    loaded,
    newest,
    published,
    remove,
    same_bits,
)
from trainer.config import TrainerConfig
from trainer.model.weight_files import checkpoint_files
from trainer.planning.disk_use import disk_use
from trainer.weight_sync.delta import DeltaPublisher
from trainer.weight_sync.weight_delta import (
    FILE,
    INFO,
    Change,
    DeltaError,
    applied,
    chain_of,
    check_fit,
    difference,
)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    "places",
    [
        [],
        [0],
        [29_999],
        [0, 254, 509, 764, 1020],
        [0, 255, 510, 765, 9999],
        list(range(0, 30_000, 2)),
        list(range(30_000)),
    ],
    ids=["none", "first", "last", "254 and 255 apart", "255 apart", "half", "all"],
)
def test_a_change_makes_the_later_tensor_of_the_earlier_bit_for_bit(dtype: torch.dtype, places: list[int]) -> None:
    before = torch.randn(100, 300).to(dtype)
    before[0, :4] = torch.tensor([0.0, float("nan"), float("inf"), -0.0]).to(dtype)
    now = changed(before, places)
    change = difference(before, now)
    if change is None:
        assert not places
        return
    assert change.changed == len(places)
    made = applied(change, before.clone())
    assert torch.equal(made.view(torch.uint8), now.view(torch.uint8))
    size = sum(part.nbytes for part in (change.values, change.gaps) if part is not None)
    assert size <= now.nbytes
    assert (change.gaps is None) == (len(places) == 30_000)


def test_random_changes_take_one_byte_beside_the_value() -> None:
    before = torch.randn(1000, 1000).bfloat16()
    places = (torch.rand(1_000_000) < 0.02).nonzero().view(-1).tolist()
    change = difference(before, changed(before, places))
    assert change is not None
    assert change.gaps is not None
    # A distance of more than 254 is one of (1 - 0.02)^254 = 0.6 %.
    assert change.gaps.numel() / len(places) == pytest.approx(1.006, abs=0.005)


def test_every_nth_publication_is_whole_and_each_one_is_the_weights_bit_for_bit(tmp_path: Path) -> None:
    publisher = DeltaPublisher([], tmp_path, dtype="bfloat16", full_every=3)
    weights, kinds = Weights(), []
    whole = sum(tensor.nbytes for tensor in weights.now.values())
    for version in range(7):
        expected = {name: tensor.clone() for name, tensor in weights.next().items()}
        stats = published(publisher, weights.now, version)
        folder = newest(tmp_path)
        [file] = checkpoint_files(chain_of(folder).base)
        before = file.read_bytes()
        found = loaded(folder)
        assert file.read_bytes() == before
        assert all(same_bits(found[name], tensor) for name, tensor in expected.items())
        assert set(tmp_path.iterdir()) == set(chain_of(folder).folders)
        kinds.append("delta" if is_delta(folder) else "whole")
        assert (stats.bytes < 0.5 * whole) == (kinds[-1] == "delta")
        if version:
            assert stats.changed_share == pytest.approx(0.05, abs=0.02)
    assert kinds == ["whole", "delta", "delta", "whole", "delta", "delta", "whole"]


def test_deltas_that_would_be_as_large_as_the_weights_are_a_whole_one(tmp_path: Path) -> None:
    publisher = DeltaPublisher([], tmp_path, dtype="bfloat16", full_every=100)
    weights, kinds = Weights(share=0.2), []
    for version in range(6):
        publisher.publish(weights.next(), version)
        kinds.append(is_delta(newest(tmp_path)))
    # 0.2 x 3 of 2 bytes: three deltas are 0.9 of the weights, and a fourth would pass them.
    assert kinds == [False, True, True, True, False, True]


def test_weights_that_change_in_place_are_compared_with_what_was_published(tmp_path: Path) -> None:
    publisher = DeltaPublisher([], tmp_path, dtype="float32", full_every=9)
    layer = torch.nn.Linear(40, 40)
    publisher.publish(layer, 0)
    with torch.no_grad():
        layer.weight[3, 3] += 1
    assert published(publisher, layer, 1).changed_share == 1 / 1640  # type: ignore[arg-type]
    assert torch.equal(loaded(newest(tmp_path))["weight"], layer.weight.detach())


@pytest.mark.parametrize("damage", [flip, cut, remove])
@pytest.mark.parametrize("which", ["newest", "older", "info", "older info", "base"])
def test_a_damaged_or_missing_file_of_the_chain_is_found(
    tmp_path: Path, damage: Callable[[Path], None], which: str
) -> None:
    publisher = DeltaPublisher([], tmp_path, dtype="bfloat16", full_every=9)
    weights = Weights()
    for version in range(3):
        publisher.publish(weights.next(), version)
    base, older, last = chain_of(newest(tmp_path)).folders
    files = {"newest": last / FILE, "older": older / FILE, "info": last / INFO, "older info": older / INFO}
    damage(files.get(which, base / "model.safetensors"))
    if (which, damage) in (("base", flip), ("older info", flip), ("older info", cut), ("older info", remove)):
        return  # the checkpoint is what a full update loads as well; the newest delta.json names all checksums itself
    if (which, damage) == ("info", remove):
        assert not checkpoint_files(last)  # the engine refuses a folder without weights
        return
    with pytest.raises(DeltaError):
        loaded(last)


def test_a_delta_that_does_not_fit_its_checkpoint_is_refused() -> None:
    change = difference(torch.zeros(30), torch.cat([torch.zeros(29), torch.ones(1)]))
    assert change is not None
    check_fit([{"a": change}], {"a": [5, 6]})
    for name, shape in (("a", [29]), ("b", [30])):
        with pytest.raises(DeltaError):
            check_fit([{name: change}], {"a": shape})
    with pytest.raises(DeltaError):
        check_fit([{"a": Change(torch.ones(2, 3), None, 6)}], {"a": [3, 2]})


def test_a_trainer_that_was_killed_before_it_published_begins_with_a_whole_one(tmp_path: Path) -> None:
    publisher, weights = DeltaPublisher([], tmp_path, dtype="bfloat16", full_every=9), Weights()
    for version in range(2):
        publisher.publish(weights.next(), version)
    publisher._changed_share(weights.next())
    publisher._write(weights.now, 2)  # dies here, or in the middle of writing:
    (tmp_path / ".version-3-1.partial").mkdir()
    again = DeltaPublisher([], tmp_path, dtype="bfloat16", full_every=9)
    published(again, weights.next(), 2)
    [left] = tmp_path.iterdir()
    assert not is_delta(left)
    assert all(same_bits(loaded(left)[name], tensor) for name, tensor in weights.now.items())


@pytest.mark.parametrize("lost", [FILE, INFO, "model.safetensors"])
def test_weights_whose_earlier_files_are_gone_are_written_whole_or_refused(tmp_path: Path, lost: str) -> None:
    publisher, weights = DeltaPublisher([], tmp_path, dtype="bfloat16", full_every=9), Weights()
    for version in range(2):
        publisher.publish(weights.next(), version)
    next(tmp_path.glob(f"*/{lost}")).unlink()
    publisher.publish(weights.next(), 2)
    if lost == FILE:  # found by whoever reads it
        with pytest.raises(DeltaError):
            loaded(newest(tmp_path))
    else:
        assert not is_delta(newest(tmp_path))
        assert all(same_bits(loaded(newest(tmp_path))[name], tensor) for name, tensor in weights.now.items())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weights": {"full_every": 5, "backend": "nccl"}}, "weights.full_every 5 with weights.backend nccl"),
        ({"weights": {"full_every": 5}, "adapter": {"rank": 8}}, "weights.full_every 5 with adapter.rank 8"),
        ({"weights": {"full_every": 0}}, "greater than or equal to 1"),
    ],
)
def test_deltas_where_there_are_none_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TrainerConfig.model_validate({"model": "m", "run_dir": "r", **changes})


def test_the_disk_holds_a_third_version_at_the_most(tmp_path: Path) -> None:
    sizes = []
    for every in (1, 5):
        weights = {"full_every": every, "servers": ["http://127.0.0.1:1"]}
        config = TrainerConfig.model_validate({"model": "m", "run_dir": "r", "weights": weights})
        sizes.append(disk_use(config, {"lm_head.weight": (100, 10)}).total)
    assert sizes[1] - sizes[0] == 100 * 10 * 2
