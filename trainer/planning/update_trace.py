"""What an update holds beside weights, gradients and moments: the optimizer's own code, run without memory."""

from __future__ import annotations

from functools import lru_cache
from math import prod

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from trainer.moment_formats import Moments
from trainer.planning.live_bytes import LiveBytes
from trainer.planning.trace import Shape
from trainer.stored_adamw import PART, SLOTS, StoredAdamW


@lru_cache(maxsize=256)
def update_bytes(shapes: tuple[Shape, ...], moments: Moments, *, host: bool) -> float:
    """Bytes on the device at the most. shapes: of this rank's parts of the weights."""
    if moments == "fp32" and not host:
        return 0.0  # torch's fused update of all weights at once, in place
    # Parts are of a bounded size, so as many of the largest weight's as are in flight show the most.
    shape = max(shapes, key=prod)
    rows = min(shape[0], max(1, PART // prod(shape[1:])))
    with FakeTensorMode():
        weights = [torch.nn.Parameter(torch.empty(rows, *shape[1:])) for _ in range(SLOTS + 1)]
        for weight in weights:
            weight.grad = torch.empty_like(weight)
        optimizer = StoredAdamW([{"params": weights}], lr=1e-6, moments=moments, host=host)
        with LiveBytes() as live:
            live.count(value for weight in weights for value in (weight, weight.grad) if value is not None)
            live.count(value for state in optimizer.state.values() for value in state.values())
            base = live.now
            optimizer.step()
            return float(live.peak - base)
