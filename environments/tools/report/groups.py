"""Groups for the rollout browser: rewards with their advantages, and what each problem's rollouts came to over time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from environments.common.rewards import group_advantages
from environments.livecode.records.schema import GroupRecord
from environments.tools.report.values import Row
from trainer.objective.table import OBJECTIVES

MOST_GROUPS = 20_000
"""Groups whose outcomes the page keeps, the newest ones."""


def by_group(groups: Iterable[GroupRecord], wanted: Collection[str], trainer: Row, environment: Row) -> dict[str, Row]:
    """{group id: {scores, advantages, verdicts, lengths, dropped}} of the wanted groups.

    Args:
        trainer, environment: the options as used, which say how advantages were taken.
    """
    scale, baseline = _rule(trainer, environment)
    found = {}
    for group in groups:
        if group.group_id in wanted:
            found[group.group_id] = {
                "scores": group.scores,
                "advantages": _advantages(group, baseline, scale),
                "verdicts": group.verdicts,
                "lengths": group.lengths,
                "dropped": group.dropped,
            }
    return found


def by_problem(groups: Sequence[GroupRecord]) -> dict[str, list[list[Any]]]:
    """{problem id: [[version, verdicts, why left out, group id], ...]} in the order in which the groups ended."""
    found: dict[str, list[list[Any]]] = defaultdict(list)
    for group in groups[-MOST_GROUPS:]:
        if group.verdicts:
            row = [group.weight_version, group.verdicts, group.dropped, group.group_id]
            found[group.problem_id].append(row)
    return dict(found)


def _rule(trainer: Row, environment: Row) -> tuple[bool, str]:
    """Whether advantages are divided by the group's deviation, and which rollouts count in its mean."""
    options = trainer.get("objective")
    objective = options if isinstance(options, dict) else {}
    row = OBJECTIVES.get(str(objective.get("name")))
    env = environment.get("env")
    given = objective.get("overlong_baseline") or (env.get("overlong_baseline") if isinstance(env, dict) else None)
    return row.scale_by_std if row else True, given if given in ("include", "exclude") else "include"


def _advantages(group: GroupRecord, baseline: str, scale: bool) -> list[float] | None:
    cut = group.overlong or [False] * len(group.scores)
    if len(cut) != len(group.scores):
        return None
    return [round(value, 4) for value in group_advantages(group.scores, cut, baseline, scale)]
