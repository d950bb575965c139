"""The trainer's own check of the environment's dynamic sampling."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from environments.common.errors import LivecodeError
from environments.common.rewards import DropReason, check_baseline, drop_reason, group_advantages
from trainer.data.scored_groups import ScoredGroup


class DropDisagreement(LivecodeError, RuntimeError):
    """The environment and the trainer differ on which groups carry a signal."""


def tensor_drop_reason(scores: torch.Tensor, overlong: torch.Tensor, baseline: str) -> DropReason | None:
    """`drop_reason` recomputed from the advantages themselves: scores [G] float64, overlong [G] bool."""
    check_baseline(baseline)
    counted = ~overlong if baseline == "exclude" else torch.ones_like(overlong)
    if not bool((~overlong).any()):
        return "all_overlong"
    std, mean = torch.std_mean(scores[counted], correction=0)
    advantage = torch.where(counted & ~overlong, scores - mean, 0.0)
    if float(std) != 0.0 and bool((advantage != 0).any()):
        return None
    if not bool(counted.all()):
        return "finished_equal"
    return "all_pass" if float(mean) > 0 else "all_fail"


def _without_signal(scores: Sequence[float], overlong: Sequence[bool], baseline: str) -> DropReason | None:
    """`drop_reason` of scores that are any numbers; equal ones above zero count as passes."""
    if all(overlong):
        return "all_overlong"
    if any(group_advantages(scores, overlong, baseline)):
        return None
    if baseline == "exclude" and any(overlong):
        return "finished_equal"
    return "all_pass" if scores[0] > 0 else "all_fail"


def cross_check(groups: Sequence[ScoredGroup], baseline: str) -> list[DropReason | None]:
    """Reason per group to drop it, recomputed with tensors and compared with the environment's own function.

    Raises DropDisagreement, naming the group.
    """
    reasons: list[DropReason | None] = []
    for group in groups:
        scores = [rollout.score for rollout in group.rollouts]
        overlong = [rollout.overlong for rollout in group.rollouts]
        if not group.judged:
            reasons.append(_without_signal(scores, overlong, baseline))
            continue
        expected = drop_reason(scores, overlong, baseline)
        found = tensor_drop_reason(
            torch.tensor(scores, dtype=torch.float64), torch.tensor(overlong, dtype=torch.bool), baseline
        )
        if found != expected:
            raise DropDisagreement(
                f"group {group.group_id} ({group.problem_id}): drop_reason says {expected}, the "
                f"advantages say {found}, "
                f"with scores {scores}, overlong {overlong}, baseline {baseline}: report this, one of the two is wrong"
            )
        reasons.append(found)
    return reasons
