"""The trainer's metrics: sums with counts, exact over micro-batches and ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.data.scored_groups import ScoredGroup, staleness
from trainer.metric_table import METRICS, Reduction

Number: TypeAlias = float | int | Tensor
Stats: TypeAlias = dict[str, tuple[Number, ...]]
"""Metric name -> (sum or maximum, count), for the effective sample size (sum, count, sum of squares)."""


class Metrics:
    """Sums of one step: added up locally without a device sync, reduced once over all ranks.

    `same` metrics keep the largest value, so it does not matter how many ranks add them.
    """

    def __init__(self) -> None:
        self._rows: dict[str, list[Number]] = {}

    def add(self, name: str, total: Number, count: Number = 1, squares: Number = 0) -> None:
        """Adds a sum (for `max` and `same`: a value) with its count. KeyError for a name that the table lacks."""
        if name not in METRICS:
            raise KeyError(f"metric {name!r} is unknown: add it with a sentence to METRICS in trainer/metric_table.py")
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

        device: where the collective runs (the GPU with NCCL). None is a metric that nobody observed;
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
