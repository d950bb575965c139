"""Which of the groups that wait make a batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from environments.api_server.shards import count_of, shard_of, shares

if TYPE_CHECKING:
    from environments.api_server.store import Entry, Store

Envs = Sequence[Mapping[str, Any]]


def oldest(waiting: Iterable[Entry], envs: Envs, step: int, batch_size: int) -> list[Entry] | None:
    """The oldest groups that make exactly `batch_size` rollouts; one that does not fit stays for the next batch.

    Where shards feed the run: the oldest ones of each, as many as its share of this step has.
    """
    if count := count_of(envs):
        return _shares_of(waiting, envs, shares(count, step, batch_size // int(envs[-1]["group_size"])))
    if any(env.get("min_batch_allocation") is not None for env in envs):
        from atroposlib.api.utils import grab_batch_with_minimum_allocations  # readers of a journal do without

        items = [{"tokens": range(e.size), "env_id": e.env_id, "entry": e} for e in waiting]
        batch, _ = grab_batch_with_minimum_allocations(items, batch_size, [dict(env) for env in envs])
        return None if batch is None else [item["entry"] for item in batch]
    chosen, left = [], batch_size
    for entry in waiting:
        if entry.size <= left:
            chosen.append(entry)
            left -= entry.size
        if not left:
            return chosen
    return None


def _shares_of(waiting: Iterable[Entry], envs: Envs, left: list[int]) -> list[Entry] | None:
    chosen = []
    for entry in waiting:
        shard = _shard(entry, envs)
        if shard is not None and left[shard]:
            left[shard] -= 1
            chosen.append(entry)
    return None if any(left) else chosen


def queued_by_shard(store: Store) -> list[int]:
    """How many of the groups that a trainer will get come from each shard; empty where there are none."""
    counts = [0] * count_of(store.envs)
    queued = [*store.waiting.values(), *(entry for lease in list(store.again) for entry in lease.entries)]
    for entry in queued if counts else ():
        if (shard := _shard(entry, store.envs)) is not None:
            counts[shard] += 1
    return counts


def ready_with(entry: Entry, buffers: Mapping[int, Sequence[Entry]], envs: Envs) -> list[str]:
    """Ids of the groups that can be trained once this one is there: a smaller one waits for others to fill up."""
    env = entry.env_id
    if env is None or not 0 <= env < len(envs) or entry.size == envs[env]["group_size"]:
        return [entry.group_id]
    chosen, left = [], int(envs[env]["group_size"])
    for held in [*buffers.get(env, []), entry]:
        if held.size <= left:
            chosen.append(held.group_id)
            left -= held.size
    return [] if left else chosen


def _shard(entry: Entry, envs: Envs) -> int | None:
    """None: it came before the first shard, from a sender that had not registered, and stays where it is."""
    shard = shard_of(envs[entry.env_id]) if entry.env_id is not None and entry.env_id < len(envs) else None
    return shard.index if shard else None
