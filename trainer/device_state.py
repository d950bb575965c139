"""The trainer's state off its device and back: weights, AdamW's moments, a reference that is kept there.

For a trainer that shares one GPU with vLLM in turns. A tensor stays the object that it is, with FSDP's and the
optimizer's references to it: its storage alone is emptied, and filled again from host memory, pinned beside a GPU.
Gradients do not travel: between steps there are none. On a CPU the same calls copy from host memory to host memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from trainer.training_state import TrainingState


class DeviceState:
    """What `tensors` gives, on the device or off it. Nothing may be computed with it, or saved, while it is off.

    Args:
        tensors: what there is at the moment; those on other devices, such as offloaded moments, are left alone.
        device: where the state is computed with.
    """

    def __init__(self, tensors: Callable[[], Iterable[Tensor]], device: torch.device) -> None:
        self._tensors, self._device = tensors, device
        self._held: list[tuple[torch.UntypedStorage, Tensor]] = []
        self._spare: dict[int, list[Tensor]] = {}  # pinning memory takes as long as copying it, so it is kept

    @property
    def is_off(self) -> bool:
        """Whether it is in the host's memory alone."""
        return bool(self._held)

    @property
    def bytes(self) -> int:
        """Size of what is off the device."""
        return sum(host.numel() for _, host in self._held)

    @torch.no_grad()
    def off(self) -> None:
        """Copies every storage to the host and gives its memory back; nothing where it is off already."""
        if self.is_off:
            return
        held = []
        for storage in self._storages():
            host = self._host(storage.nbytes())
            host.copy_(self._bytes_of(storage), non_blocking=True)
            held.append((storage, host))
        self._settle()
        for storage, _ in held:
            storage.resize_(0)
        self._held = held
        if self._device.type == "cuda":
            torch.cuda.empty_cache()  # what the allocator keeps is not vLLM's to use

    @torch.no_grad()
    def on(self) -> None:
        """Brings it back, bit for bit; nothing where it is on the device."""
        for storage, host in self._held:
            storage.resize_(host.numel())
            self._bytes_of(storage).copy_(host, non_blocking=True)
        self._settle()
        for _, host in self._held:
            self._spare.setdefault(host.numel(), []).append(host)
        self._held = []

    def _storages(self) -> Iterator[torch.UntypedStorage]:
        """Each once, whatever views there are of it."""
        seen: set[int] = set()
        for tensor in self._tensors():
            local = (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()
            storage = local.untyped_storage()
            if local.device.type == self._device.type and storage.nbytes() and storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                yield storage

    def _host(self, size: int) -> Tensor:
        spare = self._spare.get(size)
        if spare:
            return spare.pop()
        return torch.empty(size, dtype=torch.uint8, pin_memory=self._device.type == "cuda")

    def _bytes_of(self, storage: torch.UntypedStorage) -> Tensor:
        return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)

    def _settle(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def device_state(state: TrainingState) -> DeviceState:
    """Of a run's policy, moments and reference, as they are when it is called."""

    def tensors() -> Iterator[Tensor]:
        for model in (state.policy, state.reference.own if state.reference is not None else None):
            if model is None:
                continue
            if isinstance(model, FSDPModule):
                model.reshard()  # the root stays whole after a forward; the shards have all of it
            yield from model.parameters()
        for moments in state.optimizer.adamw.state.values():
            yield from (value for value in moments.values() if isinstance(value, Tensor))

    return DeviceState(tensors, state.policy.device)
