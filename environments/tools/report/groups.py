"""Groups for the rollout browser: rewards with their advantages, and what each problem's rollouts came to over time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

from environments.common.rewards import group_advantages
from environments.tools.report.values import Row, Rows, number
from trainer.objective.table import OBJECTIVES

MOST_GROUPS = 20_000
"""Groups whose outcomes the page keeps, the newest ones."""


def by_group(groups: Rows, wanted: Collection[str], trainer: Row, environment: Row) -> dict[str, Row]:
    """{group id: {scores, advantages, verdicts, lengths, dropped}} of the wanted groups.

    Args:
        trainer, environment: the options as used, which say how advantages were taken.
    """
    scale, baseline = _rule(trainer, environment)
    found = {}
    for group in groups:
        name, scores = str(group.get("group_id")), group.get("scores")
        if name not in wanted or not isinstance(scores, list):
            continue
        found[name] = {
            "scores": scores,
            "advantages": _advantages(scores, group.get("overlong"), baseline, scale),
            "verdicts": _texts(group.get("verdicts")),
            "lengths": group["lengths"] if isinstance(group.get("lengths"), list) else [],
            "dropped": group.get("dropped"),
        }
    return found


def by_problem(groups: Rows) -> dict[str, list[list[Any]]]:
    """{problem id: [[version, verdicts, why left out, group id], ...]} in the order in which the groups ended."""
    found: dict[str, list[list[Any]]] = defaultdict(list)
    for group in groups[-MOST_GROUPS:]:
        version, verdicts = group.get("weight_version"), _texts(group.get("verdicts"))
        if verdicts:
            row = [version if number(version) else None, verdicts, group.get("dropped"), group.get("group_id")]
            found[str(group.get("problem_id"))].append(row)
    return dict(found)


def _rule(trainer: Row, environment: Row) -> tuple[bool, str]:
    """Whether advantages are divided by the group's deviation, and which rollouts count in its mean."""
    options = trainer.get("objective")
    objective = options if isinstance(options, dict) else {}
    row = OBJECTIVES.get(str(objective.get("name")))
    env = environment.get("env")
    given = objective.get("overlong_baseline") or (env.get("overlong_baseline") if isinstance(env, dict) else None)
    return row.scale_by_std if row else True, given if given in ("include", "exclude") else "include"


def _advantages(scores: Sequence[Any], overlong: Any, baseline: str, scale: bool) -> list[float] | None:
    cut = overlong if isinstance(overlong, list) else [False] * len(scores)
    if len(cut) != len(scores) or not all(number(score) for score in scores):
        return None
    return [round(value, 4) for value in group_advantages(scores, [bool(one) for one in cut], baseline, scale)]


def _texts(values: Any) -> list[str]:
    return [str(value) for value in values] if isinstance(values, list) else []
