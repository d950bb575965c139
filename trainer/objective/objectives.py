"""The policy objectives as data: one table of choices and one pure function on packed tokens.

Notation, for one optimizer step over all ranks and micro-batches: N sequences, |y_i| trained tokens of sequence i,
S = sum_i |y_i|, d_it = log-probability minus old log-probability, r_it = exp(d_it),
s_i = exp((1/|y_i|) sum_t d_it), and l(w, A) = -min(w A, clamp(w, 1 - low, 1 + high) A).

    grpo     (1/N) sum_i (1/|y_i|) sum_t l(r_it, A_i)    arXiv 2402.03300, eq. 3
    dapo     (1/S) sum_i sum_t l(r_it, A_i)              arXiv 2503.14476, eq. 8
    gspo     (1/N) sum_i l(s_i, A_i)                     arXiv 2507.18071, eq. 5
    gspo+    (1/S) sum_i |y_i| l(s_i, A_i)               GSPO's ratio, DAPO's weight of a token; derived
    dr_grpo  (1/(N L_max)) sum_i sum_t l(r_it, A_i)      arXiv 2503.20783, advantages not divided by the std;
                                                         L_max is batch.context, the longest prompt + completion

The divisor is counted once per optimizer step over all ranks, so a micro-batch's loss is its local sum / D and the
losses of all micro-batches and ranks add up. FSDP averages gradients: the caller multiplies by the world size.

Log-probabilities are fp32; everything after them is float64. A sequence's ratio is a sum over its tokens forward
and backward, and 40,959 terms added up in fp32 are off by 3.8e-4, which is as wide as GSPO's clip range.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from environments.common.errors import LivecodeError
from environments.common.rewards import check_baseline
from trainer.metrics import Stats
from trainer.objective.off_policy import MAX_LOG_RATIO, OffPolicy, kept_sequences, off_policy_weight, sequence_mean
from trainer.objective.table import OBJECTIVES, Objective, objective

__all__ = [
    "OBJECTIVES",
    "ClippedBeforeUpdate",
    "Denominators",
    "Objective",
    "check_before_update",
    "denominators",
    "objective",
    "policy_loss",
]


class ClippedBeforeUpdate(LivecodeError, RuntimeError):
    """Most sequences lay outside the clip range before any update: the old log-probabilities do not fit."""


class Denominators(NamedTuple):
    """N and S of one optimizer step: first a rank's own counts, then their sums over all ranks."""

    sequences: int
    tokens: int


def denominators(lengths: Sequence[int], overlong: Sequence[bool], baseline: str) -> Denominators:
    """This rank's own N and S; the caller adds them up over the ranks, once per optimizer step.

    lengths, overlong: one entry per sequence of the step. baseline `include`: overlong sequences count, with
    advantage zero; `exclude`: they are outside. A sequence without a trained token never counts.
    """
    check_baseline(baseline)
    counted = [
        length
        for length, over in zip(lengths, overlong, strict=True)
        if length > 0 and not (over and baseline == "exclude")
    ]
    return Denominators(len(counted), sum(counted))


def divisor(chosen: Objective, counts: Denominators, max_length: int | None = None) -> int:
    """D of the step from the all-reduced counts, at least 1. max_length: L_max, dr_grpo's constant, in tokens."""
    if chosen.denominator == "tokens":
        return max(int(counts.tokens), 1)
    if chosen.denominator == "sequences":
        return max(int(counts.sequences), 1)
    if max_length is None or max_length < 1:
        raise ValueError(f"max_length {max_length} with {chosen.name}: give L_max, the context in tokens")
    return max(int(counts.sequences), 1) * max_length


def clipped_surrogate(chosen: Objective, ratio: Tensor, advantage: Tensor) -> Tensor:
    """l(w, A) = -min(w A, clamp(w, 1 - low, 1 + high) A), for A < 0 at most -c A with the dual clip; elementwise."""
    clipped = ratio.clamp(1 - chosen.clip_low, 1 + chosen.clip_high)
    loss = -torch.minimum(ratio * advantage, clipped * advantage)
    if chosen.dual_clip is None:
        return loss
    return torch.where(advantage < 0, torch.minimum(loss, -chosen.dual_clip * advantage), loss)


def ratio_of(chosen: Objective, difference: Tensor, sequence: Tensor, length: Tensor) -> Tensor:
    """The importance ratio of the differences d [K]: r [K], or with a sequence ratio s [B]."""
    log_ratio = sequence_mean(difference, sequence, length) if chosen.ratio == "sequence" else difference
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def clipped(chosen: Objective, token_ratio: Tensor, advantage: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where the clip stops a token's gradient: below its range, above it, by the dual clip; all [K]."""
    low = (token_ratio < 1 - chosen.clip_low) & (advantage < 0)
    high = (token_ratio > 1 + chosen.clip_high) & (advantage > 0)
    return low, high, (advantage < 0) & (token_ratio > (chosen.dual_clip or float("inf")))


class Compared(NamedTuple):
    """A micro-batch's old and new policy, and its trainer and sampler.

    kept [B], keep [K]: sequences, and their tokens, that the loss counts. weight [K]: of the sampler's mismatch.
    difference [K]: log-ratio of new to old, 0 where not kept. trainer, sampler [K]: both log-probabilities, fp64.
    """

    kept: Tensor
    keep: Tensor
    weight: Tensor
    difference: Tensor
    trainer: Tensor
    sampler: Tensor


def _compare(
    old: Tensor, new: Tensor, sampler_logprob: Tensor | None, sequence: Tensor, length: Tensor, mismatch: OffPolicy
) -> Compared:
    if sampler_logprob is None:
        kept = torch.ones_like(length, dtype=torch.bool)
        weight, trainer, sampler = torch.ones_like(old), new.detach(), old
    else:
        kept = kept_sequences(old, sampler_logprob, sequence, length, mismatch)
        weight = off_policy_weight(old, sampler_logprob, sequence, length, mismatch)
        trainer, sampler = old, sampler_logprob.double()
    keep = kept[sequence]
    # `where` before exp: inf times a zero mask would be NaN, in the loss and in its gradient
    return Compared(kept, keep, weight, torch.where(keep, new - old, 0.0), trainer, sampler)


def _surrogate_of_tokens(chosen: Objective, ratio: Tensor, advantage: Tensor, sequence: Tensor) -> Tensor:
    if chosen.ratio == "sequence":
        return clipped_surrogate(chosen, ratio, advantage)[sequence]
    return clipped_surrogate(chosen, ratio, advantage[sequence])


def policy_loss(
    chosen: Objective,
    logprob: Tensor,
    old_logprob: Tensor,
    sequence: Tensor,
    advantage: Tensor,
    length: Tensor,
    counts: Denominators,
    *,
    max_length: int | None = None,
    sampler_logprob: Tensor | None = None,
    mismatch: OffPolicy | None = None,
    kl_coefficient: float = 0.0,
    reference_logprob: Tensor | None = None,
) -> tuple[Tensor, Stats]:
    """Local sum of the objective over one packed micro-batch / D, and its statistics as local sums with counts.

    logprob [K] fp32 with gradient, old_logprob [K] fp32, sequence [K] in 0..B-1, advantage [B] (0 where overlong),
    length [B] trained tokens, counts all-reduced over the step. K = 0 gives a zero that still reaches the policy's
    parameters through `logprob`, so that every rank runs the same backward.

    sampler_logprob [K]: given when the old log-probabilities are the trainer's own; None, or the very tensor that
    is `old_logprob`, when they are the sampler's, whose weight is then 1. With a sequence ratio the loss of a token
    is s_i's, so a sequence is weighed by the mean of its tokens' weights.
    kl_coefficient: of k3 = exp(q) - q - 1, q = reference_logprob (None: the old one's) - logprob, [K], per token with
    the objective's own weights (overlong sequences included).

    Raises ValueError for half precision (1 + 3e-4 is 1.0 in bf16), for shapes that do not fit, and for a
    sequence that is cut where its ratio needs it whole.
    """
    _check(chosen, logprob, old_logprob, sequence, advantage, length, reference_logprob)
    own = None if sampler_logprob is old_logprob else sampler_logprob
    old, new = old_logprob.detach().double(), logprob.double()
    at = _compare(old, new, own, sequence, length, mismatch or OffPolicy())
    ratio = ratio_of(chosen, at.difference, sequence, length)
    per_token = _surrogate_of_tokens(chosen, ratio, advantage, sequence) * at.weight
    held_to = old if reference_logprob is None else reference_logprob.detach().double()
    if kl_coefficient:
        per_token = per_token + kl_coefficient * _k3(held_to, new, at.keep)
    if chosen.reduction == "sequence_mean":
        per_token = per_token / length.clamp(min=1)[sequence]
    loss = torch.where(at.keep, per_token, 0.0).sum() / divisor(chosen, counts, max_length)
    with torch.no_grad():
        stats = _clip_stats(chosen, ratio, advantage, sequence, length, at) | {"loss": (loss.detach(), 1)}
        if reference_logprob is not None:
            stats["kl_reference"] = (_sum(_k3(held_to, new, at.keep)), at.keep.sum())
    return loss.float(), stats


def _k3(anchor: Tensor, new: Tensor, keep: Tensor) -> Tensor:
    """exp(q) - q - 1 with q = anchor - new, 0 where not kept: at least 0, and KL(new, anchor) over tokens of `new`."""
    away = torch.where(keep, anchor - new, 0.0).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return away.expm1() - away


def check_before_update(chosen: Objective, outside: float, limit: float = 0.5) -> None:
    """Refuse to train when `outside`, the share of sequences outside the clip range before any update, is high.

    Raises ClippedBeforeUpdate. A policy that has not been updated has ratio 1 everywhere, so what lies outside is
    numerical noise in the old log-probabilities, and an objective clipped by noise learns from what is left over.
    """
    if not outside <= limit:  # also for NaN
        raise ClippedBeforeUpdate(
            f"{outside:.0%} of the sequences were outside {chosen.name}'s clip range -{chosen.clip_low:g}/"
            f"+{chosen.clip_high:g} before any update (limit {limit:.0%}): recompute the old "
            "log-probabilities with the "
            "trainer's own forward (objective.old_logprobs: recompute), in the same precision and packing"
        )


def _check(
    chosen: Objective,
    logprob: Tensor,
    old_logprob: Tensor,
    sequence: Tensor,
    advantage: Tensor,
    length: Tensor,
    reference_logprob: Tensor | None,
) -> None:
    for name, tensor in (("logprob", logprob), ("old_logprob", old_logprob), ("advantage", advantage)):
        if tensor.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{name} is {tensor.dtype}: ratios near 1 need float32, cast before the softmax")
    if not (logprob.ndim == advantage.ndim == 1 and logprob.shape == old_logprob.shape == sequence.shape):
        raise ValueError(
            f"logprob {tuple(logprob.shape)}, old_logprob {tuple(old_logprob.shape)}, sequence "
            f"{tuple(sequence.shape)}, "
            f"advantage {tuple(advantage.shape)}: pass packed [K], [K], [K] and [B]"
        )
    if reference_logprob is not None and reference_logprob.shape != logprob.shape:
        raise ValueError(
            f"reference_logprob {tuple(reference_logprob.shape)}, logprob {tuple(logprob.shape)}: pass packed [K] twice"
        )
    if advantage.shape != length.shape:
        raise ValueError(f"advantage {tuple(advantage.shape)} and length {tuple(length.shape)}: both must be [B]")
    held = torch.bincount(sequence, minlength=length.shape[0])
    if held.shape != length.shape or not torch.equal(held, length):
        raise ValueError(
            f"tokens per sequence {held.tolist()} and length {length.tolist()} differ: pack whole sequences, "
            f"{chosen.name} divides by the length"
        )


def _sum(values: Tensor) -> Tensor:
    return values.sum(dtype=torch.float64)


def _max(values: Tensor, keep: Tensor) -> Tensor:
    """Largest kept value, -inf when there is none."""
    return torch.where(keep, values, float("-inf")).max() if values.numel() else values.new_full((), float("-inf"))


def _clip_stats(
    chosen: Objective, ratio: Tensor, advantage: Tensor, sequence: Tensor, length: Tensor, at: Compared
) -> Stats:
    """How often the clip stopped a gradient, and where the ratios lie; a sequence counts if any of its tokens does.
    With them the distances."""
    of_sequence, keep, kept = chosen.ratio == "sequence", at.keep, at.kept
    token_ratio = ratio[sequence] if of_sequence else ratio
    below, above = token_ratio < 1 - chosen.clip_low, token_ratio > 1 + chosen.clip_high
    tokens, present = keep.sum(), kept & (length > 0)

    def any_of(mask: Tensor) -> Tensor:
        return (torch.zeros_like(length).index_add(0, sequence, mask.to(length.dtype)) > 0).sum()

    low, high, dual = (keep & stopped for stopped in clipped(chosen, token_ratio, advantage[sequence]))
    unit = present if of_sequence else keep
    stats: Stats = {
        "clip_low_tokens": (low.sum(), tokens),
        "clip_high_tokens": (high.sum(), tokens),
        "clip_low_sequences": (any_of(low), present.sum()),
        "clip_high_sequences": (any_of(high), present.sum()),
        "outside_clip_sequences": (any_of(keep & (below | above)), present.sum()),
        "dual_clip_tokens": (dual.sum(), tokens),
        "ratio_mean": (_sum(torch.where(unit, ratio, 0.0)), unit.sum()),
        "ratio_max": (_max(token_ratio, keep), tokens),
        "log_ratio_abs": (_sum(torch.where(unit, ratio, 1.0).log().abs()), unit.sum()),
        "masked_sequences": ((~kept).sum(), 1),
    }
    return stats | _distance_stats(at, token_ratio * at.weight)


def _distance_stats(at: Compared, weight: Tensor) -> Stats:
    """Distances to the old policy over kept tokens, and to the sampler over all tokens: a mask must not hide it."""
    keep, difference = at.keep, at.difference
    tokens = keep.sum()
    step = difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    delta = at.trainer - at.sampler
    bounded = delta.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    used = torch.where(keep, weight, 0.0).double()
    everything = torch.ones_like(keep)
    return {
        "kl_old_k1": (-_sum(difference), tokens),
        "kl_old_k3": (_sum(torch.where(keep, step.expm1() - step, 0.0)), tokens),
        "mismatch_kl": (_sum(bounded.expm1() - bounded), delta.numel()),
        "mismatch_abs": (_sum(delta.abs()), delta.numel()),
        "mismatch_abs_max": (_max(delta.abs(), everything), delta.numel()),
        "effective_sample_size": (used.sum(), tokens, (used * used).sum()),
    }
