"""The GPU check's section on AdamW's moments in less memory: in pinned CPU memory, in bf16, in 8 bits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu_harness import Check, Failed
from trainer.moment_formats import Moments, kept_bytes
from trainer.stored_adamw import StoredAdamW

UPDATES = 4
LEVERS: tuple[tuple[Moments, bool], ...] = (
    *(("fp32", True), ("bf16", False), ("bf16", True)),
    *(("int8", False), ("int8", True)),
)
"""How moments are kept, and whether in CPU memory."""


def moments(check: Check) -> dict[str, Any]:
    """fp32 moments in CPU memory give torch's AdamW bit for bit; the others the same bits in either memory."""
    shapes = ((16_384, 4096), (4096, 4096), (4096,)) if check.cuda else ((70, 300), (40, 300), (300,))
    plain = _weights(check, shapes)
    reference, seconds = _updated(check, plain, torch.optim.AdamW(plain, lr=1e-3, fused=True))
    result: dict[str, Any] = {"plain": {"seconds": seconds}}
    kept: dict[Moments, list[Tensor]] = {"fp32": reference}
    for moments, host in LEVERS:
        weights = _weights(check, shapes)
        optimizer = StoredAdamW([{"params": weights}], lr=1e-3, moments=moments, host=host)
        tensors = [value for state in optimizer.state.values() for value in state.values() if value.ndim]
        where = {"cpu" if host else check.device.type}
        if {value.device.type for value in tensors} != where or any(
            value.is_pinned() != (host and check.cuda) for value in tensors
        ):
            raise Failed(f"moments in {moments} are not where they should be: {where}, pinned")
        found, seconds = _updated(check, weights, optimizer)
        expected = kept.setdefault(moments, found)
        if any(not torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True)):
            raise Failed(f"weights differ with moments in {moments} in {where}")
        size = sum(kept_bytes(moments, shape) for shape in shapes) / sum(weight.numel() for weight in weights)
        result[f"{moments}, {'cpu' if host else 'device'}"] = {"seconds": seconds, "bytes_per_parameter": size}
    return result


def _weights(check: Check, shapes: tuple[tuple[int, ...], ...]) -> list[nn.Parameter]:
    return [nn.Parameter(check.random(*shape, seed=number)) for number, shape in enumerate(shapes)]


def _updated(check: Check, weights: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> tuple[list[Tensor], float]:
    """The weights after some updates, and the seconds of the fastest."""
    fastest = float("inf")
    for step in range(UPDATES):
        for number, weight in enumerate(weights):
            weight.grad = check.random(*weight.shape, seed=100 + 10 * step + number, scale=0.01)
        with check.measured() as found:
            optimizer.step()
        fastest = min(fastest, found["seconds"])
    return [weight.detach() for weight in weights], fastest
