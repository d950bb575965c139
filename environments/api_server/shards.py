"""Which environments may feed a run together, and how they fill its batches.

One without a part of its own, or shards of the same number that share what decides the order of problems. An
environment counts from its registration until it says that it ends, and one whose groups came counts in any case: what
it has not made of its part nobody else will.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from environments.common.shards import Shard

Env = Mapping[str, Any]
_OPTIONS = {"problems_sha256": "env.problems", "group_size": "env.group_size", "seed": "env.seed"}


def shard_of(env: Env) -> Shard | None:
    """An environment's part of the run; None for one that is no shard."""
    claim = env.get("shard")
    return Shard(claim["index"], claim["count"]) if claim else None


def count_of(envs: Sequence[Env]) -> int:
    """How many shards fill a batch; 0: groups are taken in the order they came, whoever sent them."""
    shard = shard_of(envs[-1]) if envs else None
    return shard.count if shard else 0


def refusal(envs: Iterable[Env], claim: Env | None) -> str | None:
    """Why an environment cannot register beside those that have, with the fix; None: it can.

    claim: its index, count, identity, folder and what all shards share; None for one that is no shard.
    """
    for env in envs:
        if not (env["connected"] or env.get("sent")):
            continue
        theirs = env.get("shard")
        if theirs and claim:
            said = _differs(theirs, claim)
        elif theirs:
            said = (
                f"env.shard is empty: shards feed this run, {Shard(theirs['index'], theirs['count'])} in "
                f"{theirs['folder']}; give this one's part as well"
            )
        elif claim:
            said = (
                f"env.shard {Shard(claim['index'], claim['count'])}: an environment without env.shard feeds this run "
                f"({env['real_name']}); leave env.shard out to continue it, or begin a run with another journal"
            )
        else:
            said = None
        if said:
            return said
    return None


def _differs(theirs: Env, claim: Env) -> str | None:
    own, other = (Shard(one["index"], one["count"]) for one in (claim, theirs))
    if own.count != other.count:
        return f"env.shard {own}: this run has {other.count} shards, {other} in {theirs['folder']}; give one of these"
    for name, value in theirs["shared"].items():
        if claim["shared"].get(name) != value:
            return (
                f"env.shard {own}: {_OPTIONS.get(name, f'env.{name}')} differs from shard {other}'s in "
                f"{theirs['folder']} ({name} {claim['shared'].get(name)!r} here, {value!r} there); give both the same"
            )
    if own == other and claim["identity"] != theirs["identity"]:
        return (
            f"env.shard {own}: {theirs['folder']} is this shard's folder; continue there (env.run_dir), give another "
            "index, or begin a run with another journal"
        )
    return None


def foreign(env_id: int | None, envs: Sequence[Env]) -> str | None:
    """Why a group of this sender cannot be taken: it would belong to no shard's share. None: it can."""
    if not count_of(envs) or (env_id is not None and 0 <= env_id < len(envs) and shard_of(envs[env_id])):
        return None
    return f"env_id {env_id}: shards feed this run, and a group has to come from one; register with env.shard"


def shares(count: int, step: int, groups: int) -> list[int]:
    """How many of a step's `groups` groups come from each of `count` shards; they add up to it."""
    parts = [Shard(index, count) for index in range(count)]
    return [part.places((step + 1) * groups) - part.places(step * groups) for part in parts]
