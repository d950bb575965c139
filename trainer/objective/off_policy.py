"""The difference between the sampler's and the trainer's log-probabilities: off-policy weights and one mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to +-20 before exp: e^20 is large but finite in fp32, also after a product."""


@dataclass(frozen=True)
class OffPolicy:
    """What is done about the difference between the sampler and the trainer, with rho = exp(old - sampler).

    `tis`: weight min(rho, cap) per token. `sequence_tis`: min(product of a sequence's rho, cap) for all its tokens;
    over thousands of tokens rounding alone moves the product far from 1. `icepop`: weight rho within
    [icepop_low, icepop_high], else 0; such tokens stay in the divisor. The sequence mask leaves out sequences whose
    geometric mean of rho is outside [sequence_low, sequence_high], from the divisor as well; it is a mean because a
    product over thousands of tokens is 0 or infinity. Both bounds None: no mask.
    """

    weight: Literal["tis", "sequence_tis", "icepop", "none"] = "tis"
    cap: float = 2.0
    icepop_low: float = 0.5
    icepop_high: float = 5.0
    sequence_low: float | None = None
    sequence_high: float | None = None

    def __post_init__(self) -> None:
        if self.weight not in ("tis", "sequence_tis", "icepop", "none"):
            raise ValueError(f"mismatch weight {self.weight!r} is unknown: choose tis, sequence_tis, icepop or none")
        if self.cap < 1:
            raise ValueError(f"mismatch cap {self.cap} < 1 would shrink matching tokens: set 1 or more, usually 2")
        if not 0 <= self.icepop_low <= 1 <= self.icepop_high:
            raise ValueError(f"icepop range {self.icepop_low}..{self.icepop_high}: it must contain 1")
        low, high = self.sequence_bounds
        if not low <= 1 <= high:
            raise ValueError(f"sequence mask {low}..{high}: it must contain 1, or every matching sequence is left out")

    @property
    def sequence_bounds(self) -> tuple[float, float]:
        """Bounds of the sequence mask, 0 and infinity where none is set."""
        low = 0.0 if self.sequence_low is None else self.sequence_low
        return low, float("inf") if self.sequence_high is None else self.sequence_high


def sequence_mean(values: Tensor, sequence: Tensor, length: Tensor) -> Tensor:
    """Mean over each sequence's tokens: values [K], sequence [K] in 0..B-1, length [B] -> float64 [B]; 0 if empty."""
    total = values.new_zeros(length.shape[0], dtype=torch.float64).index_add(0, sequence, values.double())
    return total / length.clamp(min=1)


def kept_sequences(
    old_logprob: Tensor, sampler_logprob: Tensor, sequence: Tensor, length: Tensor, mismatch: OffPolicy
) -> Tensor:
    """Which sequences the mismatch mask keeps: [K], [K], [K], [B] -> bool [B]. Known before the step's first loss."""
    # In float64 whoever calls: the divisor's count and the loss must not differ on a sequence at the bound.
    mean = sequence_mean(old_logprob.detach().double() - sampler_logprob.double(), sequence, length)
    geometric = mean.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    low, high = mismatch.sequence_bounds
    return (geometric >= low) & (geometric <= high)


def off_policy_weight(
    old_logprob: Tensor, sampler_logprob: Tensor, sequence: Tensor, length: Tensor, mismatch: OffPolicy
) -> Tensor:
    """Weight of each token for the sampler's mismatch, without gradient: [K], [K], [K] in 0..B-1, [B] -> [K]."""
    if mismatch.weight == "sequence_tis":
        difference = old_logprob.detach().double() - sampler_logprob.double()
        total = sequence_mean(difference, sequence, length) * length
        weight = total.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp().clamp(max=mismatch.cap)
        return weight[sequence].to(old_logprob.dtype)
    rho = (old_logprob - sampler_logprob).detach().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    if mismatch.weight == "tis":
        return rho.clamp(max=mismatch.cap)
    if mismatch.weight == "icepop":
        inside = (rho >= mismatch.icepop_low) & (rho <= mismatch.icepop_high)
        return torch.where(inside, rho, 0.0)
    return torch.ones_like(rho)
