"""The policy's weights tensor by tensor: never the whole model in one place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from trainer.model.loading import tied_names
from trainer.parallel import Parallel, all_reduce_sums


@dataclass(frozen=True)
class TensorSpec:
    """What comes: the Hugging Face name and the whole shape."""

    name: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Numbers in it."""
        return torch.Size(self.shape).numel()


class WeightStream:
    """The weights of `model` in `dtype` under Hugging Face names, a tied head left out.

    Iterating gives (name, whole tensor on the model's device) and is a collective: every rank has to go through it to
    the end, in step. One tensor exists at a time.
    """

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype) -> None:
        aliases = tied_names(model)
        # The state_dict, not the parameters: FSDP gives the shards back to it that it keeps gathered.
        self._state = {name: value.detach() for name, value in model.state_dict().items() if name not in aliases}
        self.dtype = dtype
        self.specs = [TensorSpec(name, tuple(value.shape)) for name, value in self._state.items()]

    @property
    def bytes(self) -> int:
        """Size of all that comes."""
        return sum(spec.numel for spec in self.specs) * self.dtype.itemsize

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, value in self._state.items():
            served = value.to(self.dtype)  # before the gather: in bf16 half of it travels
            whole = served.full_tensor() if isinstance(served, DTensor) else served
            yield name, whole.contiguous()

    def shards(self, main: bool) -> Iterator[tuple[str, Tensor]]:
        """This rank's own part of every tensor, in `dtype`; what is not sharded belongs to the main rank."""
        for name, value in self._state.items():
            if isinstance(value, DTensor):
                yield name, value.to_local().to(self.dtype)
            elif main:
                yield name, value.to(self.dtype)


def update_info(specs: Sequence[TensorSpec], dtype: torch.dtype) -> dict[str, list[Any]]:
    """What vLLM's nccl and ipc engines want to know of the tensors that come, in their order."""
    return {
        "names": [spec.name for spec in specs],
        "dtype_names": [str(dtype).removeprefix("torch.")] * len(specs),
        "shapes": [list(spec.shape) for spec in specs],
    }


class ServedCopy:
    """What was published last, each rank's shards of it in host memory: to count what a publication changes."""

    def __init__(self) -> None:
        self._shards: dict[str, Tensor] | None = None

    def changed_share(self, stream: WeightStream, parallel: Parallel) -> float | None:
        """Share of the served numbers that differ from those of the last call, None at the first; a collective."""
        before, self._shards = self._shards, {}
        changed = total = 0
        for name, shard in stream.shards(parallel.is_main):
            if before is not None:
                # Let go of one by one: both copies never exist whole.
                changed += int(torch.count_nonzero(before.pop(name).to(shard.device) != shard))
                total += shard.numel()
            self._shards[name] = shard.to("cpu", copy=True)
        sums = all_reduce_sums({"changed": changed, "total": total}, parallel)
        return sums["changed"] / sums["total"] if sums["total"] else None
