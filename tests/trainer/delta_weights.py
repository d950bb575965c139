"""Weights that change a little at each step, and how a delta of them is read and damaged."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from trainer.model.weight_files import checkpoint_files
from trainer.weight_sync.delta import DeltaPublisher
from trainer.weight_sync.vllm_routes import PublishStats
from trainer.weight_sync.weight_delta import (
    INFO,
    laid_over,
    read_deltas,
)


def same_bits(ours: Tensor, expected: Tensor) -> bool:
    return ours.shape == expected.shape and torch.equal(ours.view(torch.int16), expected.view(torch.int16))


def changed(tensor: Tensor, places: list[int]) -> Tensor:
    """Another number at each place, some of which only bits tell apart: -0.0 of 0.0, one NaN of another."""
    found = tensor.clone()
    bits = found.view(-1).view(torch.int16 if tensor.element_size() == 2 else torch.int32)
    for place in places:
        bits[place] ^= -(2**15) if tensor.element_size() == 2 else 1
    return found


class Weights:
    """Tensors that change by a share at each step."""

    def __init__(self, share: float = 0.05) -> None:
        self.share = share
        self.now = {name: torch.randn(size).bfloat16() for name, size in (("a", 4000), ("b", 60), ("c", 3))}
        self.step = 0

    def next(self) -> dict[str, Tensor]:
        self.step += 1
        draw = torch.Generator().manual_seed(self.step)
        for name, tensor in self.now.items():
            places = (torch.rand(tensor.numel(), generator=draw) < self.share).nonzero().view(-1).tolist()
            self.now[name] = changed(tensor, places)
        return self.now


def published(publisher: DeltaPublisher, weights: dict[str, Tensor], version: int) -> PublishStats:
    stats = publisher.publish(weights, version)
    assert stats is not None
    return stats


def loaded(folder: Path) -> dict[str, Tensor]:
    """As vLLM's worker reads it."""
    chain, deltas = read_deltas(folder)
    return dict(laid_over(checkpoint_files(chain.base), deltas))


def newest(folder: Path) -> Path:
    return max(folder.glob("version-*"), key=lambda path: int(path.name.rpartition("-")[2]))


def is_delta(folder: Path) -> bool:
    return (folder / INFO).is_file()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def remove(path: Path) -> None:
    path.unlink()
