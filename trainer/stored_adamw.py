"""AdamW whose moments are kept in less memory: in bf16 or 8 bits, in the host's memory, or both.

An update goes through the weights by parts of a few million entries: a part's moments are brought to the device and
made fp32, torch's fused AdamW updates the part, and the moments are rounded and brought back. With the moments in the
host's memory, pinned, three parts are on their way at a time: one comes while another is computed and a third goes, on
streams of their own. The backward is not overlapped: the gradient is clipped by its norm over all weights, so no update
can begin before the last gradient is there.

With fp32 this is torch.optim.AdamW bit for bit. torchao 0.18 has the parts of it, but not for this trainer (tried with
torch 2.13): dcp.async_save of AdamW8bit's state raises NotImplementedError; it quantises only what the number of ranks
leaves divisible by 256, so a checkpoint depends on it; and it compiles an update for every shape of a weight.
CPUOffloadOptimizer keeps a second copy of the weights and moves gradients before they could be clipped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta
from torch.optim.adamw import adamw

from environments.common.errors import ConfigError
from trainer.moment_formats import Kept, Moments, kept_shapes, read, write

PART = 1 << 22
"""Entries of a weight that are updated together: few enough to cost little memory, enough for a GPU and its bus."""
SLOTS = 3
"""Parts whose moments are on the device at the same time."""
MOMENTS = {"exp_avg": True, "exp_avg_sq": False}
"""The moments' names in a checkpoint, as torch's own, and whether they have a sign."""


class Part(NamedTuple):
    """Some rows of a weight, and what their update needs."""

    weight: Tensor
    gradient: Tensor
    kept: dict[str, Kept]
    """By the moment's name, where they are kept."""
    options: dict[str, Any]


class StoredAdamW(torch.optim.AdamW):
    """torch.optim.AdamW with its `state` under the same names, beside them "_scale" of 8-bit moments."""

    def __init__(self, groups: Iterable[dict[str, Any]], *, lr: float, moments: Moments, host: bool) -> None:
        """host: the moments are kept in the host's memory, pinned where the weights are on a GPU.

        The moments are there, zero, from the start. Raises ConfigError for weights that it cannot update.
        """
        super().__init__(groups, lr=lr, fused=True)
        self.moments, self.host = moments, host
        self._weights: list[Tensor] = [weight for group in self.param_groups for weight in group["params"]]
        for weight in self._weights:
            _check(weight, moments, host)
        self._device = _local(self._weights[0]).device if self._weights else torch.device("cpu")
        self._updates = 0
        self._generator = torch.Generator(self._device)
        self._inward = self._outward = None
        if host and self._device.type == "cuda":
            self._inward, self._outward = torch.cuda.Stream(self._device), torch.cuda.Stream(self._device)
        try:
            for weight in self._weights:
                self.state[weight] = {"step": torch.zeros(()), **self._zeros(weight)}
        except RuntimeError as error:
            raise ConfigError(
                f"optimizer.state {'cpu' if host else 'device'}, optimizer.moments {moments}: no memory for them "
                f"({str(error).splitlines()[0]}); set optimizer.moments to int8, or use more GPUs"
            ) from error

    def _zeros(self, weight: Tensor) -> dict[str, Tensor]:
        device = torch.device("cpu") if self.host else self._device
        pinned = self.host and self._device.type == "cuda"
        found = {}
        for name in MOMENTS:
            own, whole = (kept_shapes(self.moments, tuple(shape)) for shape in (_local(weight).shape, weight.shape))
            for suffix, (shape, dtype) in own.items():
                local = torch.zeros(shape, dtype=dtype, device=device, pin_memory=pinned)
                found[name + suffix] = _as_sharded(local, whole[suffix][0], weight)
        return found

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Updates every weight; each has to have a gradient. Raises ValueError where one has none."""
        parts = [
            part for group in self.param_groups for weight in group["params"] for part in self._parts(weight, group)
        ]
        self._updates += 1
        self._generator.manual_seed(self._updates)  # not the process's: a resumed run rounds as it would have
        lanes = self._lanes(parts)
        for part, kept in zip(parts, lanes, strict=True):
            self._update(part, kept)
        for weight in self._weights:
            self.state[weight]["step"].fill_(self._updates)

    def _parts(self, weight: Tensor, group: dict[str, Any]) -> Iterator[Part]:
        if weight.grad is None:
            raise ValueError("a weight has no gradient: its moments would be of another number of updates")
        local, gradient = _local(weight), _local(weight.grad)
        rows = max(1, PART // max(1, prod(local.shape[1:])))
        state = self.state[weight]
        suffixes = kept_shapes(self.moments, tuple(local.shape))
        for start in range(0, local.shape[0], rows):
            rest = slice(start, start + rows)
            kept = {name: {suffix: _local(state[name + suffix])[rest] for suffix in suffixes} for name in MOMENTS}
            yield Part(local[rest], gradient[rest], kept, group)

    def _update(self, part: Part, kept: dict[str, Kept]) -> None:
        found = {name: read(kept[name], signed=signed) for name, signed in MOMENTS.items()}
        first, second = part.options["betas"]
        adamw(
            [part.weight],
            [part.gradient],
            [found["exp_avg"]],
            [found["exp_avg_sq"]],
            [],
            [torch.full((), float(self._updates - 1), device=self._device)],
            fused=True,
            amsgrad=False,
            beta1=first,
            beta2=second,
            lr=part.options["lr"],
            weight_decay=part.options["weight_decay"],
            eps=part.options["eps"],
            maximize=False,
        )
        for name, signed in MOMENTS.items():
            write(found[name], kept[name], signed=signed, generator=self._generator)

    def _lanes(self, parts: list[Part]) -> Iterator[dict[str, Kept]]:
        """Each part's kept moments on the device; what is written into them is kept when the next one is asked for."""
        if not self.host:
            yield from (part.kept for part in parts)
            return
        slots = [_Slot(parts, self._device) for _ in range(min(SLOTS, len(parts)))]
        here = torch.cuda.current_stream(self._device) if self._inward is not None else None
        if self._inward is not None and here is not None:
            self._inward.wait_stream(here)  # the slots' memory may be in use until then, and the last update's results
        for number in range(-len(slots) + 1, len(parts)):
            ahead = number + len(slots) - 1
            if ahead < len(parts):
                slots[ahead % len(slots)].fetch(parts[ahead].kept, self._inward)
            if number < 0:
                continue
            slot = slots[number % len(slots)]
            yield slot.arrived(here)
            slot.bring_back(parts[number].kept, here, self._outward)
        if here is not None and self._outward is not None:
            here.wait_stream(self._outward)

    def wait(self) -> None:
        """Returns when the moments in the host's memory are those of the last update."""
        if self._outward is not None:
            self._outward.synchronize()

    def state_dict(self) -> dict[str, Any]:
        """As torch's, when the last update's moments have arrived."""
        self.wait()
        return super().state_dict()

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the moments into the tensors that are there; options stay as they are.

        torch's own would make every moment fp32 and put it beside its weight.
        """
        self.wait()
        saved = [number for group in state_dict["param_groups"] for number in group["params"]]
        for weight, number in zip(self._weights, saved, strict=True):
            for name, value in state_dict["state"][number].items():
                _local(self.state[weight][name]).copy_(_local(value))
            self._updates = int(self.state[weight]["step"])


class _Slot:
    """Memory on the device for the kept moments of one part at a time."""

    def __init__(self, parts: list[Part], device: torch.device) -> None:
        sizes: dict[tuple[str, str, torch.dtype], int] = {}
        for part in parts:
            for name, kept in part.kept.items():
                for suffix, value in kept.items():
                    key = (name, suffix, value.dtype)
                    sizes[key] = max(sizes.get(key, 0), value.numel())
        self._memory = {key: torch.empty(size, dtype=key[2], device=device) for key, size in sizes.items()}
        self._current: dict[str, Kept] = {}
        self._ready, self._free = (torch.cuda.Event() if device.type == "cuda" else None for _ in range(2))

    def fetch(self, kept: dict[str, Kept], stream: torch.cuda.Stream | None) -> None:
        """Begins to bring a part's moments, once the part before it has left."""
        self._current = {
            name: {
                suffix: self._memory[name, suffix, value.dtype][: value.numel()].view(value.shape)
                for suffix, value in values.items()
            }
            for name, values in kept.items()
        }
        with _on(stream):
            if stream is not None and self._free is not None:
                stream.wait_event(self._free)
            _copy(kept, self._current)
            if self._ready is not None:
                self._ready.record(stream)

    def arrived(self, here: torch.cuda.Stream | None) -> dict[str, Kept]:
        """The moments, for what `here` computes from now on."""
        if here is not None and self._ready is not None:
            here.wait_event(self._ready)
        return self._current

    def bring_back(
        self, kept: dict[str, Kept], here: torch.cuda.Stream | None, stream: torch.cuda.Stream | None
    ) -> None:
        """Begins to bring back what `here` has made of them."""
        with _on(stream):
            if stream is not None and here is not None:
                stream.wait_stream(here)
            _copy(self._current, kept)
            if self._free is not None:
                self._free.record(stream)


def _on(stream: torch.cuda.Stream | None) -> AbstractContextManager[Any]:
    return torch.cuda.stream(stream) if stream is not None else nullcontext()


def _copy(source: dict[str, Kept], target: dict[str, Kept]) -> None:
    for name, values in source.items():
        for suffix, value in values.items():
            target[name][suffix].copy_(value, non_blocking=True)


def _local(tensor: Tensor) -> Tensor:
    """This rank's part, without gradient history."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def _as_sharded(local: Tensor, shape: tuple[int, ...], weight: Tensor) -> Tensor:
    """This rank's part of a tensor whose rows are shared as the weight's are; `local` stays where it is."""
    if not isinstance(weight, DTensor):
        return local
    # Not DTensor.from_local, which moves it to the mesh's device.
    meta = TensorMeta(torch.Size(shape), torch.empty(shape, device="meta").stride(), local.dtype)
    return DTensor(local, DTensorSpec(weight.device_mesh, weight.placements, tensor_meta=meta), requires_grad=False)


def _check(weight: Tensor, moments: Moments, host: bool) -> None:
    chosen = f"optimizer.state {'cpu' if host else 'device'} with optimizer.moments {moments}"
    default = "set optimizer.state: device and optimizer.moments: fp32"
    if weight.dtype != torch.float32:
        raise ConfigError(f"{chosen}: weights in {weight.dtype}, it updates fp32 masters alone; {default}")
    if not isinstance(weight, DTensor):
        return
    if any(not (isinstance(place, Shard) and place.dim == 0) for place in weight.placements):
        raise ConfigError(f"{chosen}: weights shared as {weight.placements}, not by rows; {default}")
    if weight.device_mesh.device_type != _local(weight).device.type:
        raise ConfigError(
            f"{chosen}: FSDP's CPU offload keeps the weights in CPU memory already, and updates them there; {default}"
        )
