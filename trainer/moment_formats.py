"""How AdamW's two moments are kept between updates: fp32, bf16 with stochastic rounding, or 8 bits with block scales.

An update reads them as fp32, computes in fp32, and rounds what it keeps. A format works on a weight's rows, so that its
numbers depend neither on how many ranks share the weight nor on the parts that an update is cut into, and a checkpoint
loads on any number of ranks.

bf16: m' = 0.9 m + ..., v' = 0.95 v + ... change less than bf16's spacing (2^-7 of the value at most) where beta is near
1, and rounding to nearest would then keep v where it is for good. Stochastic rounding is right on average: the error of
one update is less than one spacing, and has the mean zero.

int8: blocks of up to 256 entries of a row, each divided by its largest magnitude and rounded to the nearest of the 256
values of the dynamic map (arXiv 1511.04561), as 8-bit AdamW does (arXiv 2110.02861). A positive second moment is never
rounded to zero: m / sqrt(0) would make a step of |m| / eps.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil, prod
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

Moments = Literal["fp32", "bf16", "int8"]
Shape = tuple[int, ...]
Kept = dict[str, Tensor]
"""One moment of some rows of a weight: "" is the values, "_scale" the blocks' scales, fp32 [rows, blocks]."""

BLOCK = 256
"""Entries of a row that share a scale."""


def kept_shapes(moments: Moments, shape: Shape) -> dict[str, tuple[Shape, torch.dtype]]:
    """The tensors that keep one moment of a weight of this shape. Vectors, few and sensitive, stay fp32 with int8."""
    if moments == "bf16":
        return {"": (shape, torch.bfloat16)}
    if moments == "fp32" or len(shape) < 2:
        return {"": (shape, torch.float32)}
    return {"": (shape, torch.uint8), "_scale": ((shape[0], ceil(prod(shape[1:]) / BLOCK)), torch.float32)}


def kept_bytes(moments: Moments, shape: Shape) -> int:
    """Bytes of both moments of a weight of this shape."""
    return 2 * sum(prod(part) * dtype.itemsize for part, dtype in kept_shapes(moments, shape).values())


def read(kept: Kept, *, signed: bool) -> Tensor:
    """The moment in fp32; where it is kept in fp32 it is that tensor itself. signed: the first moment."""
    values = kept[""]
    if values.dtype == torch.float32:
        return values
    if values.dtype == torch.bfloat16:
        return values.float()
    found = dynamic_map(signed, values.device)[values.int()]
    rows, blocks = kept["_scale"].shape
    whole = _blocks(found, rows, blocks).mul_(kept["_scale"][:, :, None])
    return whole.view(rows, -1)[:, : found.numel() // max(rows, 1)].reshape(values.shape)


def write(value: Tensor, kept: Kept, *, signed: bool, generator: torch.Generator) -> None:
    """Keeps an fp32 moment. generator: of the rounding, on the moment's device."""
    values = kept[""]
    if values.dtype == torch.float32:
        if value is not values:
            values.copy_(value)
    elif values.dtype == torch.bfloat16:
        values.copy_(rounded_stochastically(value, generator))
    else:
        codes, scale = quantised(value, signed=signed)
        values.copy_(codes)
        kept["_scale"].copy_(scale)


def rounded_stochastically(value: Tensor, generator: torch.Generator) -> Tensor:
    """fp32 to one of the two neighbours in bf16, the nearer one more often: the mean is the value itself."""
    bits = torch.randint(0, 1 << 16, value.shape, dtype=torch.int32, device=value.device, generator=generator)
    # Of a float's bits the upper half is a bf16. A random number below 2^16 carries into it as often as the lower half
    # says, towards a larger magnitude, since sign and magnitude are apart.
    bits.add_(value.view(torch.int32)).bitwise_and_(-(1 << 16))
    return bits.view(torch.float32).to(torch.bfloat16)


def quantised(value: Tensor, *, signed: bool) -> tuple[Tensor, Tensor]:
    """uint8 codes of the value's shape, and the blocks' scales, fp32 [rows, blocks]."""
    rows, entries = value.shape[0], prod(value.shape[1:])
    blocks = ceil(entries / BLOCK)
    parts = _blocks(value, rows, blocks)
    scale = parts.abs().amax(-1) if signed else parts.amax(-1)
    # A block of zeros has the scale 0, and may be divided by anything.
    shares = parts / scale.clamp(min=torch.finfo(torch.float32).tiny)[:, :, None]
    table = dynamic_map(signed, value.device)
    codes = torch.bucketize(shares, (table[1:] + table[:-1]) / 2, out_int32=True)
    if not signed:
        codes.add_((shares > 0) & (codes == 0))
    return codes.view(rows, -1)[:, :entries].to(torch.uint8).view(value.shape), scale


def _blocks(value: Tensor, rows: int, blocks: int) -> Tensor:
    """[rows, blocks, entries of a block]: as even as can be, the last one filled up with zeros."""
    flat = value.reshape(rows, -1)
    block = ceil(flat.shape[1] / blocks)
    missing = blocks * block - flat.shape[1]
    return (pad(flat, (0, missing)) if missing else flat).view(rows, blocks, block)


def dynamic_map(signed: bool, device: torch.device) -> Tensor:
    """The 256 values that a code means, ascending, fp32 on the device."""
    return torch.tensor(_dynamic_map(signed), dtype=torch.float32, device=device)


@lru_cache(maxsize=2)
def _dynamic_map(signed: bool) -> tuple[float, ...]:
    """Seven decades down from 1, each with twice the values of the one below: middles of even steps from 0.1 to 1."""
    values = [0.0, 1.0]
    for decade in range(7):
        count = 2**decade if signed else 2 ** (decade + 1)
        middles = [10.0 ** (decade - 6) * (0.1 + 0.9 * (place + 0.5) / count) for place in range(count)]
        values += [*middles, *(-value for value in middles)] if signed else middles
    return tuple(sorted(values))
