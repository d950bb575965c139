"""When a group may begin: the bound on staleness is kept by admission, so that nothing generated has to be dropped.

A rule that drops groups which have become too old loses those that take longest, and with them the hard problems.
The serving loop (serving.py) asks before each group.
"""

from __future__ import annotations

from environments.common.shards import WHOLE, Shard


def may_begin(
    *, oldest: int, ahead: int, groups_per_batch: int, max_staleness: int, total_steps: int, shard: Shard = WHOLE
) -> bool:
    """Whether one more group can begin without any group exceeding the staleness bound.

    The group takes place number `ahead` in the order of training, counted from the first step. A group that began at
    version v must be among the first (v + max_staleness + 1) batches. Groups finish in any order, so nothing may
    pass the oldest unfinished group by more than that: its version counts, not only the served one.

    Args:
        oldest: the weight version at which the oldest unfinished group began, the served one where there is none.
        ahead: groups of all steps that are trained, queued, or unfinished.
        max_staleness: batches between a group's oldest token and the step that trains on it; 0 is on-policy.
        total_steps: steps of the run; no group begins that no step would train on.
        shard: whose groups are counted. The API server fills each batch with every shard's own share, so that the
            places of one do not depend on how far the others are.
    """
    return ahead < shard.places(min(oldest + max_staleness + 1, total_steps) * groups_per_batch)
