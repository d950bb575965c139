"""What the trainer measures: a table of names, what each says, and how it is reduced. Read without torch."""

from __future__ import annotations

from typing import Literal, NamedTuple

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
    "kl_reference": Metric("KL(policy, reference) per token, estimator k3; with objective.reference alone.", "mean"),
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
    "seconds_reference": Metric("Seconds of the reference's log-probabilities.", "max"),
    "seconds_train": Metric("Seconds of forward, backward and optimizer.", "max"),
    "seconds_checkpoint": Metric("Seconds that training stood still for the checkpoint of the step before.", "max"),
    "seconds_sync": Metric("Seconds until vLLM served the new weights.", "max"),
    "seconds_pause": Metric("Seconds that generation stood still for the sync.", "max"),
    "seconds_turns": Metric("Seconds that one GPU took to change hands between vLLM and the trainer.", "max"),
    "servers_missing": Metric("Number of vLLM servers that were gone or hung when weights were published.", "max"),
    "seconds_step": Metric("Seconds of the whole step.", "max"),
    "peak_memory_gib": Metric("Highest memory in use on a rank, in GiB.", "max"),
}


def markdown() -> str:
    """The table of metrics as Markdown, one line per name."""
    lines = ["| metric | meaning | reduced as |", "|---|---|---|"]
    for name, row in METRICS.items():
        sentence = row.sentence.replace("|", r"\|")
        lines.append(f"| `{name}` | {sentence} | {REDUCTIONS[row.reduction]} |")
    return "\n".join(lines) + "\n"
