"""From verdicts to rewards and advantages, and which groups carry a signal: pure Python, as the trainer uses it too."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

Baseline = Literal["include", "exclude"]
"""`include`: truncated rollouts are judged and count in the group's mean and std; `exclude`: they are outside."""

DropReason = Literal["all_pass", "all_fail", "all_overlong", "finished_equal"]

PASS, FAIL = 1.0, -1.0

FAILED_STATUSES = frozenset(
    {
        "wrong_answer",
        "time_limit_exceeded",
        "memory_limit_exceeded",
        "runtime_error",
        "compile_error",
        "output_limit_exceeded",
        "no_code",
    }
)
"""The judge's verdicts against a program, and the extraction's own when a rollout holds no program."""


def reward(verdict: Mapping[str, Any] | None) -> float | None:
    """Reward of a verdict's `status`: accepted +1, any verdict against the program -1, no verdict None.

    None means that verification failed on our side: the rollout is judged again or replaced, never scored.
    Raises ValueError for a status that is not a verdict, so that a new kind of failure cannot become a -1.
    """
    if verdict is None:
        return None
    status = verdict.get("status")
    if status == "accepted":
        return PASS
    if status in FAILED_STATUSES:
        return FAIL
    known = ", ".join(["accepted", *sorted(FAILED_STATUSES)])
    raise ValueError(
        f"status {status!r} is not a verdict (known: {known}): a fault of ours is a JudgeError, not a score"
    )


def check_baseline(baseline: str) -> None:
    """ValueError unless `baseline` is one of the two known ones."""
    if baseline not in ("include", "exclude"):
        raise ValueError(f"overlong_baseline {baseline!r} is unknown: choose include or exclude")


def drop_reason(
    scores: Sequence[float | None], overlong: Sequence[bool], baseline: str = "include"
) -> DropReason | None:
    """Why a group has no effective advantage, or None when some rollout's advantage is not zero.

    scores: +1 or -1 per rollout (ignored, and may be None, for an overlong rollout under `exclude`); overlong: its
    advantage is set to zero. An effective advantage is one of a finished rollout. Dynamic sampling keeps a group
    iff this returns None (arXiv 2503.14476, section 3.2, on effective advantages). Raises ValueError for other scores.
    """
    check_baseline(baseline)
    if len(scores) != len(overlong) or not scores:
        raise ValueError(f"{len(scores)} scores and {len(overlong)} overlong flags: give one of each per rollout")
    counted = [score for score, over in zip(scores, overlong, strict=True) if not (over and baseline == "exclude")]
    for score in counted:
        if score not in (PASS, FAIL):
            raise ValueError(f"score {score!r}: a rollout is scored +1.0 or -1.0; one without a verdict has no score")
    if all(overlong):
        return "all_overlong"
    if len(set(counted)) > 1:
        # finished rollouts differ from the mean, as a mean of unequal +-1 is neither
        return None
    if len(counted) < len(scores):
        return "finished_equal"
    return "all_pass" if counted[0] == PASS else "all_fail"


def group_advantages(
    scores: Sequence[float], overlong: Sequence[bool], baseline: str, scale_by_std: bool = True
) -> list[float]:
    """A_i = (R_i - mean) / std of one group, then 0 for overlong rollouts (arXiv 2402.03300, section 4.1.2).

    The standard deviation is the population's, with no epsilon: a group whose scores are all equal gets zeros and
    is dropped (`drop_reason`). baseline `include` counts overlong rollouts in mean and std, `exclude` does not.
    scale_by_std False leaves the division out (Dr.GRPO, arXiv 2503.20783). Raises ValueError for bad lengths.
    """
    check_baseline(baseline)
    if len(scores) != len(overlong):
        raise ValueError(f"{len(scores)} scores and {len(overlong)} overlong flags: give one of each per rollout")
    counted = [score for score, over in zip(scores, overlong, strict=True) if not (over and baseline == "exclude")]
    if not counted or min(counted) == max(counted):
        return [0.0] * len(scores)
    mean = math.fsum(counted) / len(counted)
    std = math.sqrt(math.fsum((score - mean) ** 2 for score in counted) / len(counted))
    scale = std if scale_by_std else 1.0
    return [0.0 if over else (score - mean) / scale for score, over in zip(scores, overlong, strict=True)]
