"""The trainer's metrics: a table of names, and sums with counts, exact over micro-batches and ranks.

`atropos metrics` prints the table as Markdown.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from environments.common.terminal import take_any_text
from trainer.data.scored_groups import ScoredGroup, staleness

Number: TypeAlias = float | int | Tensor
Stats: TypeAlias = dict[str, tuple[Number, ...]]
"""Metric name -> (sum or maximum, count), for the effective sample size (sum, count, sum of squares)."""

Reduction = Literal["mean", "count", "sum", "max", "ess", "per_optimizer_step", "same"]

REDUCTIONS: dict[Reduction, str] = {
    "mean": "sum / count",
    "count": "integer sum",
    "sum": "sum",
    "max": "maximum",
    "ess": "sum² / (count · sum of squares)",
    "per_optimizer_step": "sum / optimizer steps",
    "same": "equal on all ranks",
}
"""How the ranks' sums become one value; never a mean of means."""


class Metric(NamedTuple):
    """One row of the table: what a name says, and how it is reduced."""

    sentence: str
    reduction: Reduction


METRICS: dict[str, Metric] = {
    # the objective
    "loss": Metric(
        "Objective of one optimizer step, summed over all sequences and divided by D.", "per_optimizer_step"
    ),
    "optimizer_steps": Metric("Optimizer steps taken on this batch.", "same"),
    "sequences": Metric("N: sequences in the divisor of one optimizer step.", "same"),
    "tokens": Metric("S: trained tokens in the divisor of one optimizer step.", "same"),
    "clip_low_tokens": Metric("Tokens with a negative advantage whose ratio fell below the clip range.", "mean"),
    "clip_high_tokens": Metric("Tokens with a positive advantage whose ratio rose above the clip range.", "mean"),
    "clip_low_sequences": Metric("Sequences with a token clipped from below.", "mean"),
    "clip_high_sequences": Metric("Sequences with a token clipped from above.", "mean"),
    "outside_clip_sequences": Metric(
        "Sequences with a ratio outside the clip range on either side, whatever the advantage.", "mean"
    ),
    "clipped_before_update": Metric("The same before the batch's first update, where every ratio should be 1.", "mean"),
    "dual_clip_tokens": Metric("Tokens with a negative advantage that the dual clip bounded.", "mean"),
    "ratio_mean": Metric("Mean importance ratio: over tokens, or over sequences with a sequence ratio.", "mean"),
    "ratio_max": Metric("Largest importance ratio.", "max"),
    "log_ratio_abs": Metric("Mean |log ratio|: over tokens, or over sequences with a sequence ratio.", "mean"),
    "ratio_noise": Metric(
        "The same before the batch's first update, with recomputed old log-probabilities: two forwards of one policy.",
        "mean",
    ),
    "kl_old_k1": Metric("KL(old, new) per token, estimator k1: mean of old - new log-probability.", "mean"),
    "kl_old_k3": Metric("KL(old, new) per token, estimator k3: mean of ratio - 1 - log ratio.", "mean"),
    "entropy": Metric("Entropy of the policy per trained token, in nats, at the sampling temperature.", "mean"),
    "grad_norm": Metric("Norm of the gradient before clipping.", "mean"),
    "learning_rate": Metric("Learning rate of the last optimizer step.", "same"),
    # the sampler against the trainer
    "mismatch_abs": Metric("Mean |trainer - sampler| log-probability per token.", "mean"),
    "mismatch_abs_max": Metric("Largest |trainer - sampler| log-probability of a token.", "max"),
    "mismatch_kl": Metric("KL(sampler, trainer) per token, estimator k3.", "mean"),
    "mismatch_abs_after_sync": Metric(
        "Mean |trainer - sampler| over tokens that were sampled with the weights of the last sync.", "mean"
    ),
    "masked_sequences": Metric("Sequences left out by the mask for the sampler's mismatch.", "count"),
    "effective_sample_size": Metric("Share of the tokens that the off-policy weights are worth, 0 to 1.", "ess"),
    "served_weights_changed": Metric("Share of the served weights that the last sync changed.", "mean"),
    "sync_difference": Metric(
        "Mean |trainer - server| log-probability over the probe after a sync, of the worst server.",
        "max",
    ),
    "sync_difference_max": Metric("The same of a single token.", "max"),
    # the groups
    "groups": Metric("Groups trained on.", "count"),
    "rollouts": Metric("Rollouts in these groups.", "count"),
    "reward": Metric("Mean reward of the rollouts (+1 or -1).", "mean"),
    "pass_at_1": Metric("Share of the rollouts that passed.", "mean"),
    "pass_at_group": Metric("Share of the groups in which a rollout passed.", "mean"),
    "overlong": Metric("Share of the rollouts that were truncated, so that their advantage is zero.", "mean"),
    "length_passed": Metric("Mean sampled tokens of finished rollouts that passed.", "mean"),
    "length_failed": Metric("Mean sampled tokens of finished rollouts that failed.", "mean"),
    "length_overlong": Metric("Mean sampled tokens of truncated rollouts.", "mean"),
    "length_max": Metric("Most sampled tokens of a rollout.", "max"),
    "staleness": Metric("Batches between a group's oldest trained token and this step, mean over groups.", "mean"),
    "staleness_max": Metric("The same, of the oldest group.", "max"),
    "dropped_all_pass": Metric("Groups dropped because every rollout passed.", "count"),
    "dropped_all_fail": Metric("Groups dropped because every rollout failed.", "count"),
    "dropped_all_overlong": Metric("Groups dropped because every rollout was truncated.", "count"),
    "dropped_finished_equal": Metric(
        "Groups dropped because the finished rollouts have one score (truncated ones left out).", "count"
    ),
    "groups_left_out": Metric("Groups that could not be trained on (batch.untrainable: leave_out).", "count"),
    "skipped_batches": Metric("Batches for which no optimizer step was taken.", "count"),
    "skipped_optimizer_steps": Metric(
        "Optimizer steps left out: every sequence was masked, or the gradient was exactly zero.", "count"
    ),
    # time and size
    "micro_batches": Metric("Micro-batches of one rank on this batch.", "same"),
    "packed_tokens": Metric("Tokens that went through the model, shared prompts once.", "count"),
    "seconds_wait": Metric("Seconds the trainer waited for a batch.", "same"),
    "seconds_alignment": Metric("Seconds of the alignment gate, on the first batch only.", "max"),
    "seconds_old_logprobs": Metric("Seconds to recompute the old log-probabilities.", "max"),
    "seconds_train": Metric("Seconds of forward, backward and optimizer.", "max"),
    "seconds_checkpoint": Metric("Seconds that training stood still for the checkpoint of the step before.", "max"),
    "seconds_sync": Metric("Seconds until vLLM served the new weights.", "max"),
    "seconds_pause": Metric("Seconds that generation stood still for the sync.", "max"),
    "servers_missing": Metric("Number of vLLM servers that were gone or hung when weights were published.", "max"),
    "seconds_step": Metric("Seconds of the whole step.", "max"),
    "peak_memory_gib": Metric("Highest memory in use on a rank, in GiB.", "max"),
}


class Metrics:
    """Sums of one step: added up locally without a device sync, reduced once over all ranks.

    `same` metrics keep the largest value, so it does not matter how many ranks add them.
    """

    def __init__(self) -> None:
        self._rows: dict[str, list[Number]] = {}

    def add(self, name: str, total: Number, count: Number = 1, squares: Number = 0) -> None:
        """Adds a sum (for `max` and `same`: a value) with its count. KeyError for a name that the table lacks."""
        if name not in METRICS:
            raise KeyError(f"metric {name!r} is unknown: add it with a sentence to METRICS in trainer/metrics.py")
        row = self._rows.get(name)
        if row is None:
            self._rows[name] = [total, count, squares]
            return
        if METRICS[name].reduction in ("max", "same"):
            row[0] = _larger(row[0], total)
        else:
            row[0] = row[0] + total
        row[1], row[2] = row[1] + count, row[2] + squares

    def update(self, stats: Mapping[str, tuple[Number, ...]]) -> None:
        """Adds every entry of `stats`, as `policy_loss` and `group_stats` return them."""
        for name, row in stats.items():
            self.add(name, *row)

    def reduce(
        self, group: dist.ProcessGroup | None = None, device: torch.device | str = "cpu"
    ) -> dict[str, float | int | None]:
        """Value of every metric over all ranks: one collective of one tensor [metrics, 3] in float64.

        device: where the collective runs (the GPU with NCCL). None stands for a metric that nobody observed;
        a count is 0 then. Starts from zero afterwards. Every rank must call it.
        """
        local = torch.zeros(len(METRICS), 3, dtype=torch.float64)
        for index, (name, metric) in enumerate(METRICS.items()):
            if name in self._rows:
                local[index] = torch.tensor([float(entry) for entry in self._rows[name]], dtype=torch.float64)
            elif metric.reduction in ("max", "same"):
                local[index, 0] = float("-inf")
        self._rows = {}
        ranks = local[None]
        if dist.is_available() and dist.is_initialized():
            flat = local.flatten().to(device)
            gathered = [torch.empty_like(flat) for _ in range(dist.get_world_size(group))]
            dist.all_gather(gathered, flat, group=group)
            ranks = torch.stack(gathered).cpu().view(-1, len(METRICS), 3)
        sums, largest = ranks.sum(dim=0), ranks[..., 0].amax(dim=0)
        steps = max(float(largest[list(METRICS).index("optimizer_steps")]), 1.0)
        return {
            name: _value(metric.reduction, sums[index].tolist(), float(largest[index]), steps)
            for index, (name, metric) in enumerate(METRICS.items())
        }


def _larger(first: Number, second: Number) -> Number:
    if isinstance(first, Tensor) or isinstance(second, Tensor):
        return torch.maximum(torch.as_tensor(first), torch.as_tensor(second))
    return max(first, second)


def _value(reduction: Reduction, row: Sequence[float], largest: float, steps: float) -> float | int | None:
    total, count, squares = row
    if reduction == "count":
        return round(total)
    if count == 0:
        return None
    if reduction in ("max", "same"):
        return largest
    if reduction == "mean":
        return total / count
    if reduction == "ess":
        return total * total / (count * squares) if squares else None
    return total / steps if reduction == "per_optimizer_step" else total


def group_stats(groups: Sequence[ScoredGroup], step: int) -> Stats:
    """Rewards, lengths and staleness of `groups`, as sums with counts.

    Every rank holds all groups of a batch: only one of them adds the result, or each adds its own share's.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    finished = [rollout for rollout in rollouts if not rollout.overlong]
    passed = [len(rollout.completion) for rollout in finished if rollout.score > 0]
    failed = [len(rollout.completion) for rollout in finished if rollout.score <= 0]
    truncated = [len(rollout.completion) for rollout in rollouts if rollout.overlong]
    ages = [staleness(group, step) for group in groups]
    solved = [any(rollout.score > 0 for rollout in group.rollouts) for group in groups]
    return {
        "groups": (len(groups), 1),
        "rollouts": (len(rollouts), 1),
        "reward": (sum(rollout.score for rollout in rollouts), len(rollouts)),
        "pass_at_1": (sum(rollout.score > 0 for rollout in rollouts), len(rollouts)),
        "pass_at_group": (sum(solved), len(groups)),
        "overlong": (len(truncated), len(rollouts)),
        "length_passed": (sum(passed), len(passed)),
        "length_failed": (sum(failed), len(failed)),
        "length_overlong": (sum(truncated), len(truncated)),
        "length_max": (max(map(len, (r.completion for r in rollouts)), default=0), len(rollouts)),
        "staleness": (sum(ages), len(ages)),
        "staleness_max": (max(ages, default=float("-inf")), len(ages)),
    }


def markdown() -> str:
    """The table of metrics as Markdown, one line per name."""
    lines = ["| metric | meaning | reduced as |", "|---|---|---|"]
    for name, row in METRICS.items():
        sentence = row.sentence.replace("|", r"\|")
        lines.append(f"| `{name}` | {sentence} | {REDUCTIONS[row.reduction]} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    take_any_text()
    sys.stdout.write(markdown())
