"""Which charts the report draws: human names, units, and the sentences of the trainer's table of metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from environments.livecode.records.schema import GroupRecord
from environments.tools.report.values import Rows, lineage, number
from trainer.metric_table import METRICS


class Chart(NamedTuple):
    """One chart: its lines by the name of the record's field, each with the name that the reader sees."""

    part: str
    title: str
    unit: str
    lines: Mapping[str, str]
    logarithmic: bool = False


LEARNING, OPTIMIZATION, SAMPLER, SPEED = "Learning", "Optimization", "Sampler and trainer", "Speed and size"

CHARTS = (
    Chart(LEARNING, "Reward", "mean of +1 and -1", {"reward": "Reward"}),
    Chart(LEARNING, "Solved in training", "share", {"pass_at_1": "Rollouts", "pass_at_group": "Groups, any rollout"}),
    Chart(
        LEARNING,
        "Answer length",
        "tokens",
        {"length_passed": "Passed", "length_failed": "Failed", "length_overlong": "Truncated", "length_max": "Longest"},
    ),
    Chart(LEARNING, "Truncated answers", "share of rollouts", {"overlong": "Truncated"}),
    Chart(LEARNING, "Entropy", "nats a token", {"entropy": "Entropy"}),
    Chart(OPTIMIZATION, "Loss", "objective", {"loss": "Loss"}),
    Chart(OPTIMIZATION, "Gradient norm", "before clipping", {"grad_norm": "Gradient norm"}, True),
    Chart(OPTIMIZATION, "Learning rate", "per optimizer step", {"learning_rate": "Learning rate"}),
    Chart(
        OPTIMIZATION,
        "Clipped tokens",
        "share of trained tokens",
        {"clip_low_tokens": "Below the range", "clip_high_tokens": "Above the range", "dual_clip_tokens": "Dual clip"},
    ),
    Chart(OPTIMIZATION, "Importance ratio", "new / old", {"ratio_mean": "Mean", "ratio_max": "Largest"}, True),
    Chart(OPTIMIZATION, "Step of the policy", "nats a token", {"kl_old_k1": "KL, k1", "kl_old_k3": "KL, k3"}),
    Chart(
        SAMPLER,
        "Trainer against sampler",
        "nats a token",
        {"mismatch_abs": "All tokens", "mismatch_abs_after_sync": "Newest weights", "mismatch_kl": "KL, k3"},
        True,
    ),
    Chart(
        SAMPLER,
        "Servers after a sync",
        "nats a token",
        {"sync_difference": "Mean, worst server", "sync_difference_max": "Largest, one token"},
        True,
    ),
    Chart(SAMPLER, "Age of the data", "steps", {"staleness": "Mean", "staleness_max": "Oldest group"}),
    Chart(SAMPLER, "Effective sample size", "share of tokens", {"effective_sample_size": "Effective"}),
    Chart(SAMPLER, "Weights changed by a step", "share of weights", {"served_weights_changed": "Changed"}),
    Chart(
        SPEED,
        "Time of a step",
        "seconds",
        {
            "seconds_step": "Whole step",
            "seconds_wait": "Waiting for rollouts",
            "seconds_old_logprobs": "Old log-probabilities",
            "seconds_train": "Training",
            "seconds_sync": "Publishing weights",
            "seconds_checkpoint": "Checkpoint",
        },
    ),
    Chart(SPEED, "Generation paused", "seconds", {"seconds_pause": "Paused for the sync"}),
    Chart(SPEED, "Tokens of a step", "tokens", {"tokens_trained": "Trained", "packed_tokens": "Through the model"}),
    Chart(SPEED, "Memory", "GiB, fullest rank", {"peak_memory_gib": "Peak"}),
)

ENVIRONMENT_CHARTS = (
    Chart(LEARNING, "Solved while sampling", "share of all rollouts", {"pass_rate": "All groups, flat ones too"}),
    Chart(SPEED, "Generation slots busy", "share of the time", {"slots_busy": "Busy"}),
    Chart(SPEED, "Time to judge", "seconds a rollout", {"mean": "Mean", "p95": "95 of 100", "max": "Longest"}),
    Chart(SPEED, "Rollouts in flight", "groups", {"in_flight": "In flight"}),
)

SENTENCES = {
    "tokens_trained": "Tokens that the step trained on.",
    "pass_rate": "Mean share of passed rollouts over all groups that finished while these weights were served.",
    "slots_busy": "Share of the time that a generation slot was taken, mean over slots.",
    "mean": "Mean seconds of one rollout's verification.",
    "p95": "Seconds that 95 of 100 verifications do not exceed.",
    "max": "Longest verification.",
    "in_flight": "Groups that were being generated or judged when the weights changed.",
}
"""Of fields that are not in the trainer's table."""


def curves(metrics: Rows, environment: Rows | None = None) -> list[dict[str, Any]]:
    """The charts that have a value.

    Returns:
        {part, title, unit, log, series: [{name, field, hint, points: [[step, value], ...]}]} for each.
    """
    judged = [row | _dictionary(row.get("verify_seconds")) for row in environment or ()]
    drawn = [(chart, lineage(metrics)) for chart in CHARTS]
    drawn += [(chart, lineage(judged)) for chart in ENVIRONMENT_CHARTS]
    found = []
    for chart, rows in drawn:
        series = [
            {"name": name, "field": field, "hint": _sentence(field), "points": points}
            for field, name in chart.lines.items()
            if (points := [[row["step"], row[field]] for row in rows if number(row.get(field))])
        ]
        if series:
            found.append(_as_chart(chart.part, chart.title, chart.unit, series, chart.logarithmic))
    return found


def held_out(evaluations: Rows) -> list[dict[str, Any]]:
    """A chart of the evaluations that ran while the run trained: pass@1 of each set over steps."""
    scores: dict[str, dict[float, float]] = {}
    for record in evaluations:
        name, step, rate = record.get("set"), record.get("step"), record.get("pass_at_1")
        if isinstance(name, str) and number(step) and number(rate):
            label = name + (", greedy" if record.get("greedy") else "")
            scores.setdefault(label, {})[step] = rate
    if not scores:
        return []
    series = [
        {"name": name, "field": name, "hint": "Mean over problems of the share of samples that passed.",
         "points": [[step, points[step]] for step in sorted(points)]}
        for name, points in scores.items()
    ]  # fmt: skip
    return [_as_chart(LEARNING, "Held-out pass@1", "share, at one weight version each", series, False)]


def left_out(groups: Sequence[GroupRecord]) -> Rows:
    """A chart of the groups that were left out, by reason, over weight versions."""
    pairs = [(group.weight_version, group.dropped) for group in groups if group.weight_version is not None]
    counts = Counter((version, reason) for version, reason in pairs if reason is not None)
    versions = sorted({version for version, _ in pairs})
    reasons = sorted({reason for _, reason in counts if reason is not None})
    if not reasons:
        return []
    series = [
        {
            "name": reason.replace("_", " "),
            "field": f"dropped_{reason}",
            "hint": _sentence(f"dropped_{reason}"),
            "points": [[version, counts[version, reason]] for version in versions],
        }
        for reason in reasons
    ]
    return [_as_chart(LEARNING, "Groups left out", "groups, by the weights that sampled them", series, False)]


def refused(environment: Rows) -> list[dict[str, Any]]:
    """A chart of the programs whose system calls the sandbox refused, by kind, over weight versions."""
    rows = lineage(environment)
    kinds = sorted({kind for row in rows for kind in _dictionary(row.get("attempts"))})
    if not kinds:
        return []
    series = [
        {
            "name": kind.replace("_", " "),
            "field": f"attempts_{kind}",
            "hint": "Programs that made a system call of this kind, which the sandbox refused.",
            "points": [[row["step"], count if number(count := _dictionary(row["attempts"]).get(kind, 0)) else 0]
                       for row in rows if isinstance(row.get("attempts"), dict)],
        }
        for kind in kinds
    ]  # fmt: skip
    return [_as_chart(LEARNING, "Refused system calls", "programs", series, False)]


def axes(metrics: Rows) -> dict[str, list[float]]:
    """What a step is on the other axes: hours since the first step began, millions of tokens trained on.

    {steps, hours, tokens}; step 0 is the beginning. hours is empty where the rows hold no time.
    """
    rows = lineage(metrics)
    steps, hours, tokens = [0.0], [0.0], [0.0]
    begun = next((row["time"] - (_or(row.get("seconds_step"), 0.0)) for row in rows if number(row.get("time"))), None)
    for row in rows:
        steps.append(row["step"])
        hours.append(max(hours[-1], (_or(row.get("time"), begun or 0.0) - (begun or 0.0)) / 3600))
        tokens.append(tokens[-1] + max(_or(row.get("tokens_trained"), 0.0), 0.0) / 1e6)
    return {"steps": steps, "hours": hours if begun is not None else [], "tokens": tokens}


def _as_chart(part: str, title: str, unit: str, series: list[dict[str, Any]], log: bool) -> dict[str, Any]:
    return {"part": part, "title": title, "unit": unit, "log": log, "series": series}


def _sentence(field: str) -> str:
    return METRICS[field].sentence if field in METRICS else SENTENCES.get(field, "")


def _dictionary(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _or(value: Any, other: float) -> float:
    return value if number(value) else other
