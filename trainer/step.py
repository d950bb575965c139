"""One training step on one batch of groups: advantages, micro-batches, old log-probabilities, gradient."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from environments.common.rewards import DropReason, group_advantages
from trainer.config import TrainerConfig
from trainer.data.advantages import cross_check
from trainer.data.scored_groups import ScoredGroup
from trainer.metrics import Metrics, group_stats
from trainer.model.packing import MicroBatch, pack
from trainer.model.policy import Policy
from trainer.model.reference import Reference
from trainer.objective.objectives import (
    Denominators,
    Objective,
    check_before_update,
    denominators,
    policy_loss,
)
from trainer.objective.off_policy import OffPolicy, kept_sequences
from trainer.optimizer import PolicyOptimizer
from trainer.parallel import Parallel, all_reduce_sums
from trainer.token_records import TokenRecords

log = logging.getLogger(__name__)

WITHOUT_A_STEP = ("masked_sequences", "mismatch_abs", "mismatch_abs_max", "mismatch_kl")
"""Statistics of `policy_loss` that say something where no loss is taken: the sampler against the trainer."""


RATIOS = ("outside_clip_sequences", "log_ratio_abs")


class Ratios(NamedTuple):
    """A rank's sums of what RATIOS name, in this order."""

    outside: float
    """Sequences outside the clip range on either side."""
    sequences: float
    log_abs: float
    """|log ratio|, of a sequence or of a token as the objective has it."""
    units: float


@dataclass
class OptimizerBatch:
    """What one optimizer step is taken on: this rank's micro-batches and the whole part's N and S."""

    micro_batches: list[MicroBatch]
    counts: Denominators
    old_logprobs: list[Tensor] = field(default_factory=list)
    """fp32 [K] for each micro-batch."""
    reference_logprobs: list[Tensor] = field(default_factory=list)
    """The same of the reference; none where there is none."""
    group_ids: list[str] = field(default_factory=list)
    """Of the groups that the micro-batches' `origin` counts."""


@dataclass
class Batch:
    """The groups of a step that carry a signal, cut into one part for each optimizer step."""

    groups: list[ScoredGroup]
    parts: list[OptimizerBatch]
    dropped: dict[str, DropReason]
    """Why a group of this id carries none."""
    tokens: int
    """Trained tokens of all ranks; what the mask for the sampler's mismatch leaves out does not count."""


def chosen_objective(config: TrainerConfig) -> Objective:
    """The objective's row of the table with the configured bounds."""
    return config.objective.row


def prepare(groups: Sequence[ScoredGroup], config: TrainerConfig, parallel: Parallel) -> Batch:
    """Advantages, drops and packing. Every rank gets the same groups and takes its share.

    Raises:
        DropDisagreement: the environment and the trainer disagree on which groups carry a signal.
        DoesNotFit: a sequence is longer than batch.max_tokens.
    """
    baseline = config.objective.overlong_baseline
    reasons = cross_check(groups, baseline)
    kept = [group for group, reason in zip(groups, reasons, strict=True) if reason is None]
    dropped = {group.group_id: why for group, why in zip(groups, reasons, strict=True) if why is not None}
    wanted = min(config.objective.optimizer_steps_per_batch, len(kept))
    parts = [_part(kept[index::wanted], config, parallel) for index in range(wanted)]
    return Batch(kept, parts, dropped, sum(part.counts.tokens for part in parts))


def _part(groups: list[ScoredGroup], config: TrainerConfig, parallel: Parallel) -> OptimizerBatch:
    baseline = config.objective.overlong_baseline
    scale = chosen_objective(config).scale_by_std
    advantages = [
        group_advantages(
            [rollout.score for rollout in group.rollouts],
            [rollout.overlong for rollout in group.rollouts],
            baseline,
            scale,
        )
        for group in groups
    ]
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    # The whole part is known on every rank, so N and S need no collective.
    counts = denominators(
        [len(rollout.completion) for rollout in rollouts], [rollout.overlong for rollout in rollouts], baseline
    )
    micro_batches = pack(
        groups,
        advantages,
        config.batch.max_tokens,
        rank=parallel.rank,
        world_size=parallel.world_size,
        device=parallel.device,
        skip_silent=baseline == "exclude",
    )
    return OptimizerBatch(micro_batches, counts, group_ids=[group.group_id for group in groups])


def chosen_mismatch(config: TrainerConfig) -> OffPolicy:
    """What is done about the sampler's mismatch, as configured."""
    options = config.objective
    return OffPolicy(
        weight=options.importance_weight,
        cap=options.tis_cap,
        icepop_low=options.icepop_low,
        icepop_high=options.icepop_high,
        sequence_low=options.sequence_mask_low,
        sequence_high=options.sequence_mask_high,
    )


def set_old_logprobs(batch: Batch, policy: Policy, config: TrainerConfig, parallel: Parallel) -> None:
    """Fills in the old log-probabilities: the sampler's own, or a forward of the policy before any update.

    A sequence that the mismatch mask leaves out is not counted in N and S either, so these are recounted, over all
    ranks, as soon as the mask is known.
    """
    mismatch = chosen_mismatch(config)
    masks = mismatch.sequence_low is not None or mismatch.sequence_high is not None
    for part in batch.parts:
        if config.objective.old_logprobs == "sampler":
            part.old_logprobs = [micro.sampler_logprob for micro in part.micro_batches]
            continue
        with torch.no_grad():
            part.old_logprobs = [policy.logprobs(micro, entropy=False)[0] for micro in part.micro_batches]
        for micro, old in zip(part.micro_batches, part.old_logprobs, strict=True):
            # Where the sampler's are unknown there is no mismatch to weigh.
            micro.sampler_logprob = torch.where(micro.sampler_logprob.isnan(), old, micro.sampler_logprob)
        if masks:
            part.counts = _counts_of_kept(part, mismatch, parallel)
    batch.tokens = sum(part.counts.tokens for part in batch.parts)


def set_reference_logprobs(batch: Batch, reference: Reference) -> None:
    """Fills in the reference's log-probabilities. A collective.

    Before `set_old_logprobs`: then no weight of the policy is whole beside the reference's.
    """
    for part in batch.parts:
        part.reference_logprobs = [reference.logprobs(micro) for micro in part.micro_batches]


def _counts_of_kept(part: OptimizerBatch, mismatch: OffPolicy, parallel: Parallel) -> Denominators:
    """N and S of what the mask keeps. Sequences that never count (overlong, excluded) were not packed."""
    sequences = tokens = 0
    for micro, old in zip(part.micro_batches, part.old_logprobs, strict=True):
        kept = kept_sequences(old, micro.sampler_logprob, micro.sequence, micro.length, mismatch)
        sequences += int((kept & (micro.length > 0)).sum())
        tokens += int(micro.length[kept].sum())
    sums = all_reduce_sums({"sequences": sequences, "tokens": tokens}, parallel)
    return Denominators(int(sums["sequences"]), int(sums["tokens"]))


def accumulate_gradient(
    part: OptimizerBatch,
    policy: Policy,
    config: TrainerConfig,
    parallel: Parallel,
    metrics: Metrics,
    tokens: TokenRecords | None = None,
) -> Ratios:
    """Forward and backward over the part's micro-batches; the gradient is that of the whole part.

    Returns this rank's ratios, which say something of numerical noise where the policy has not been updated yet.

    The loss is multiplied by the world size because FSDP averages gradients over ranks; it is never divided
    by the number of micro-batches, since each holds its own share of the sum over the fixed divisor.
    """
    chosen = chosen_objective(config)
    options = config.objective
    mismatch = chosen_mismatch(config)
    found = Ratios(0.0, 0.0, 0.0, 0.0)
    references: Sequence[Tensor | None] = part.reference_logprobs or [None] * len(part.micro_batches)
    for micro, old, held_to in zip(part.micro_batches, part.old_logprobs, references, strict=True):
        logprob, entropy = policy.logprobs(micro)
        loss, stats = policy_loss(
            chosen,
            logprob,
            old,
            micro.sequence,
            micro.advantage,
            micro.length,
            part.counts,
            max_length=config.batch.context,
            sampler_logprob=micro.sampler_logprob,
            mismatch=mismatch,
            kl_coefficient=options.kl_coefficient,
            reference_logprob=held_to,
        )
        (loss * parallel.world_size).backward()
        if tokens is not None:
            tokens.take(part.group_ids, micro, logprob, old, chosen, mismatch)
        metrics.update(stats)
        metrics.add("entropy", entropy.double().sum(), entropy.numel())
        metrics.add("packed_tokens", micro.input_ids.numel())
        mine = (float(number) for name in RATIOS for number in stats[name])
        found = Ratios(*(total + one for total, one in zip(found, mine, strict=True)))
    return found


def take_steps(
    batch: Batch,
    policy: Policy,
    optimizer: PolicyOptimizer,
    config: TrainerConfig,
    parallel: Parallel,
    metrics: Metrics,
    reference: Reference | None = None,
    tokens: TokenRecords | None = None,
) -> int:
    """One optimizer step for each part that has a gradient; returns how many were taken. A collective.

    A part whose sequences are all masked, or whose gradient is zero on every weight of every rank, takes none: AdamW's
    moments would move the weights without a signal. Such parts are counted. The reference follows each step that was
    taken. Raises ClippedBeforeUpdate.
    """
    taken: list[OptimizerBatch] = []
    updated = False
    for part in batch.parts:
        if not part.counts.tokens:  # over all ranks, so all of them skip it
            observe(part, config, metrics)
            continue
        ratios = accumulate_gradient(part, policy, config, parallel, metrics, tokens)
        if not updated:
            _check_before_update(ratios, config, parallel, metrics)
        update = optimizer.step()
        metrics.add("grad_norm", update.grad_norm)
        if update.taken:
            updated = True
            if reference is not None:
                reference.follow()
            metrics.add("learning_rate", update.lr)
            taken.append(part)
    metrics.add("optimizer_steps", len(taken))
    metrics.add("skipped_optimizer_steps", (len(batch.parts) - len(taken)) * int(parallel.is_main))
    metrics.add("skipped_batches", int(not taken and parallel.is_main))
    if taken:
        metrics.add("sequences", taken[-1].counts.sequences)
        metrics.add("tokens", taken[-1].counts.tokens)
        metrics.add("micro_batches", sum(len(part.micro_batches) for part in taken))
    return len(taken)


def _check_before_update(ratios: Ratios, config: TrainerConfig, parallel: Parallel, metrics: Metrics) -> None:
    """Counts what is clipped before the batch's first update; ClippedBeforeUpdate where it dominates.

    Every ratio should be 1 there. What they are off by is the noise that later ratios have too, and a clip range that
    is narrower than it decides by noise: that is warned of.
    """
    metrics.add("clipped_before_update", ratios.outside, ratios.sequences)
    if config.objective.old_logprobs != "recompute":
        return
    metrics.add("ratio_noise", ratios.log_abs, ratios.units)
    sums = all_reduce_sums(ratios._asdict(), parallel)
    chosen = chosen_objective(config)
    noise, narrow = sums["log_abs"] / max(sums["units"], 1), min(chosen.clip_low, chosen.clip_high)
    if parallel.is_main and not noise <= narrow:
        log.warning(
            "ratio_noise %.2g: before any update the ratios of two forwards differ by more than %s's clip range %.2g, "
            "so it clips by chance: compute in fp32, or widen objective.clip_low and clip_high",
            noise,
            chosen.name,
            narrow,
        )
    check_before_update(chosen, sums["outside"] / max(sums["sequences"], 1))


def observe(part: OptimizerBatch, config: TrainerConfig, metrics: Metrics) -> None:
    """Adds the statistics of a part that is not trained on: a mask that left all of it out must not hide why."""
    for micro, old in zip(part.micro_batches, part.old_logprobs, strict=True):
        _, stats = policy_loss(
            chosen_objective(config),
            old,
            old,
            micro.sequence,
            micro.advantage,
            micro.length,
            part.counts,
            max_length=config.batch.context,
            sampler_logprob=micro.sampler_logprob,
            mismatch=chosen_mismatch(config),
        )
        metrics.update({name: stats[name] for name in WITHOUT_A_STEP})


def describe(batch: Batch, step: int, metrics: Metrics) -> None:
    """Adds what the groups themselves say; to be called on one rank."""
    metrics.update(group_stats(batch.groups, step))
    for reason, count in Counter(batch.dropped.values()).items():
        metrics.add(f"dropped_{reason}", count)
