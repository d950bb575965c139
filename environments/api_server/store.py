"""What the API server holds: groups that wait, leases that are not durable yet, and who has registered.

Every change is one journal record, written before it is applied; starting again means applying the records again. So a
server that is killed comes back with what it had promised, and a change that cannot be written (a full disk) did
not happen.

A lease is the batch of one training step. It is kept until a checkpoint that includes it is durable (`ack`), and
served again, the same bytes in the same order, to a trainer that goes back to an older step (`rollback`).
"""

from __future__ import annotations

import logging
import uuid
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from environments.api_server.journal import Journal
from environments.common.errors import LivecodeError

log = logging.getLogger(__name__)

COMPACT_ABOVE = 64 << 20
"""A journal longer than this is rewritten when more than half of it is done with."""
REMEMBERED_IDS = 100_000
"""Group ids of batches that are done with, kept so that a late duplicate is known."""


@dataclass
class Entry:
    """One group as it was received. Its JSON object lies in the journal, or here where there is none."""

    group_id: str
    size: int
    env_id: int | None
    raw: bytes | None = field(repr=False, compare=False)
    place: tuple[int, int] | None = field(default=None, repr=False, compare=False)
    """Begin and length in the journal."""

    def record(self, raw: bytes, ready: list[str]) -> bytes:
        """The journal record that brings it; ready: ids of the groups that wait for a trainer from then on."""
        head = {"kind": "group", "id": self.group_id, "size": self.size, "env": self.env_id, "ready": ready}
        return msgspec.json.encode(head) + b"\n" + raw

    def put(self, at: int, record: bytes) -> None:
        """Its record's payload begins at `at` in the journal: memory need not hold it any more."""
        head = record.index(b"\n") + 1
        self.raw, self.place = None, (at + head, len(record) - head)


@dataclass
class Lease:
    """The batch of one step."""

    step: int
    entries: list[Entry]


class Unwritable(LivecodeError, ValueError):
    """A change that JSON has no form for: an integer beyond 64 bits, a lone surrogate, too deep."""


class StepError(LivecodeError, ValueError):
    """A step that the trainer cannot go back to; the message says where it can."""


@dataclass
class Store:
    """The server's state, in memory and, with a journal, on disk."""

    journal: Journal | None = None
    waiting: dict[str, Entry] = field(default_factory=dict)
    """FIFO: in the order of arrival."""
    buffers: dict[int, list[Entry]] = field(default_factory=dict)
    """Groups smaller than their environment registered, until they add up to one of its size."""
    leases: list[Lease] = field(default_factory=list)
    again: deque[Lease] = field(default_factory=deque)
    """Leases that were rolled back, to be served first."""
    held: set[str] = field(default_factory=set)
    """Ids of all groups above."""
    done: dict[str, None] = field(default_factory=dict)
    registration: dict[str, Any] | None = None
    envs: list[dict[str, Any]] = field(default_factory=list)
    contracts: dict[str, dict[str, Any]] = field(default_factory=dict)
    step: int = 0
    acked: int = 0
    """Step of the newest durable checkpoint: batches before it cannot be served again."""
    started: bool = False

    def __post_init__(self) -> None:
        if self.journal is not None:
            self._replay(self.journal.records())

    @classmethod
    def replay(cls, records: Iterable[tuple[int, bytes]]) -> Store:
        """What a server with these records holds, without the groups' contents; it cannot be changed durably."""
        store = cls()
        store._replay(records)
        return store

    def _replay(self, records: Iterable[tuple[int, bytes]]) -> None:
        for at, payload in records:
            if payload:  # zeros that a power cut left read as empty records
                self._apply(payload, at)

    # -- changes: written, then applied --------------------------------------------------------------------

    def add(self, entry: Entry) -> str:
        """Takes a group: "received", "buffered" for one smaller than registered, "duplicate" for a known id."""
        if self.knows(entry.group_id):
            return "duplicate"
        ready = self._ready_with(entry)
        if self.journal is not None:
            record = entry.record(self.raw(entry), ready)
            entry.put(self.journal.append(record), record)
        self._add(entry, ready)
        return "received" if ready == [entry.group_id] else "buffered"

    def register(self, registration: dict[str, Any]) -> None:
        """A trainer's registration, the first or a later one."""
        self._change({"kind": "register", "registration": registration})

    def register_env(self, env: dict[str, Any]) -> None:
        """One more environment, whose id is its place."""
        self._change({"kind": "env", "env": env})

    def start(self) -> None:
        """A trainer has asked for a batch: environments may register."""
        if not self.started:
            self._change({"kind": "start"})

    def set_contract(self, side: str, terms: dict[str, Any]) -> None:
        """What one side assumes of the run."""
        self._change({"kind": "contract", "side": side, "terms": terms})

    def lease(self, step: int, batch_size: int) -> Lease | None:
        """The batch of `step`: the same one when it is asked for again, None when too few rollouts wait."""
        for lease in self.leases:
            if lease.step == step:
                return lease
        entries = self.again[0].entries if self.again else self._oldest(batch_size)
        if entries is None:
            return None
        self._change({"kind": "lease", "step": step, "ids": [entry.group_id for entry in entries]})
        return self.leases[-1]

    def ack(self, checkpoint_step: int) -> int:
        """Forgets the leases that a durable checkpoint of this step includes; how many groups these were."""
        groups = sum(len(lease.entries) for lease in self.leases if lease.step < checkpoint_step)
        if checkpoint_step > self.acked:
            self._change({"kind": "ack", "step": checkpoint_step})
            self._compact()
        return groups

    def rollback(self, step: int) -> int:
        """The trainer is at `step` again: later leases will be served again; how many.

        Raises StepError for a step before the acknowledged one: its batches are gone.
        """
        if step < self.acked:
            raise StepError(
                f"step {step} is before the acknowledged checkpoint of step {self.acked}, and the batches between "
                f"are gone: resume from step {self.acked} or later, or begin with another journal"
            )
        leases = sum(lease.step >= step for lease in self.leases)
        self._change({"kind": "rollback", "step": step})
        return leases

    def reset(self) -> None:
        """Forgets everything."""
        if self.journal is not None:
            self.journal.rewrite([])
        journal, self.journal = self.journal, None
        self.__init__()  # type: ignore[misc]
        self.journal = journal

    # -- questions -----------------------------------------------------------------------------------------

    def raw(self, entry: Entry) -> bytes:
        """The group's JSON object, byte for byte as it was received."""
        if entry.raw is not None:
            return entry.raw
        assert self.journal is not None
        assert entry.place is not None
        return self.journal.read(*entry.place)

    @property
    def groups_queued(self) -> int:
        """Groups that a trainer will get: those that wait, and those of batches that were rolled back."""
        return len(self.waiting) + sum(len(lease.entries) for lease in self.again)

    def knows(self, group_id: str) -> bool:
        """Whether a group of this id has been taken before."""
        return group_id in self.done or group_id in self.held

    def _held(self) -> Iterator[Entry]:
        for lease in [*self.leases, *self.again]:
            yield from lease.entries
        yield from self.waiting.values()
        for buffer in self.buffers.values():
            yield from buffer

    def _oldest(self, batch_size: int) -> list[Entry] | None:
        """The oldest groups that make exactly `batch_size` rollouts; one that does not fit stays for the next batch."""
        if any(env.get("min_batch_allocation") is not None for env in self.envs):
            from atroposlib.api.utils import grab_batch_with_minimum_allocations  # readers of a journal do without

            items = [{"tokens": range(e.size), "env_id": e.env_id, "entry": e} for e in self.waiting.values()]
            batch, _ = grab_batch_with_minimum_allocations(items, batch_size, self.envs)
            return None if batch is None else [item["entry"] for item in batch]
        chosen, left = [], batch_size
        for entry in self.waiting.values():
            if entry.size <= left:
                chosen.append(entry)
                left -= entry.size
            if not left:
                return chosen
        return None

    # -- the journal ---------------------------------------------------------------------------------------

    def _change(self, change: dict[str, Any]) -> None:
        try:
            payload = msgspec.json.encode(change) + b"\n"
            msgspec.json.decode(payload)  # what cannot be read again must not be written
        except (msgspec.MsgspecError, OverflowError, RecursionError, UnicodeError) as error:
            raise Unwritable(f"cannot be written as JSON ({type(error).__name__}: {error})") from None
        self._apply(payload, 0 if self.journal is None else self.journal.append(payload))

    def _compact(self) -> None:
        """Rewrites a journal of which less than half is needed; one that cannot be rewritten goes on growing."""
        if self.journal is None or self.journal.size < COMPACT_ABOVE:
            return
        if self.journal.size < 2 * sum(entry.place[1] for entry in self._held() if entry.place):
            return
        moved: list[tuple[Entry, bytes] | None] = []

        def payloads() -> Iterator[bytes]:
            for entry, payload in self._snapshot():
                moved.append((entry, payload[: payload.index(b"\n") + 1]) if entry else None)
                yield payload

        try:
            starts = self.journal.rewrite(payloads())
        except OSError as error:
            log.error("%s: cannot be compacted (%s); it goes on as it is", self.journal.path, error.strerror)
            return
        for one, at in zip(moved, starts, strict=True):
            if one is not None:
                entry, head = one
                assert entry.place is not None
                entry.place = (at + len(head), entry.place[1])

    def _snapshot(self) -> Iterator[tuple[Entry | None, bytes]]:
        """Records that lead to this state, those of groups with the group."""

        def change(**fields: Any) -> tuple[None, bytes]:
            return None, msgspec.json.encode(fields) + b"\n"

        def group(entry: Entry, ready: list[str]) -> tuple[Entry, bytes]:
            return entry, entry.record(self.raw(entry), ready)

        if self.registration is not None:
            yield change(kind="register", registration=self.registration)
        for env in self.envs:
            yield change(kind="env", env=env)
        for side, terms in self.contracts.items():
            yield change(kind="contract", side=side, terms=terms)
        if self.started:
            yield change(kind="start")
        yield change(kind="done", ids=list(self.done))
        for lease in [*self.leases, *self.again]:
            for entry in lease.entries:
                yield group(entry, [entry.group_id])
        for lease in self.leases:
            yield change(kind="lease", step=lease.step, ids=[entry.group_id for entry in lease.entries])
        for number, lease in enumerate(self.again):
            yield change(kind="again", place=number, step=lease.step, ids=[entry.group_id for entry in lease.entries])
        for entry in self.waiting.values():
            yield group(entry, [entry.group_id])
        for buffer in self.buffers.values():
            for entry in buffer:
                yield group(entry, [])
        yield change(kind="step", step=self.step, acked=self.acked)

    def _apply(self, payload: bytes, at: int) -> None:
        change = msgspec.json.decode(payload[: payload.index(b"\n")])
        kind = change.pop("kind")
        if kind != "group":
            getattr(self, f"_apply_{kind}")(**change)
            return
        entry = Entry(change["id"], change["size"], change["env"], None)
        entry.put(at, payload)
        self._add(entry, change["ready"])

    def _apply_register(self, registration: dict[str, Any]) -> None:
        if self.registration is None:
            self.step = registration["starting_step"]
        self.registration = registration

    def _apply_env(self, env: dict[str, Any]) -> None:
        self.envs.append(env)

    def _apply_start(self) -> None:
        self.started = True

    def _apply_step(self, step: int, acked: int) -> None:
        self.step, self.acked = step, acked

    def _apply_contract(self, side: str, terms: dict[str, Any]) -> None:
        self.contracts[side] = terms

    def _apply_done(self, ids: list[str]) -> None:
        self.done.update(dict.fromkeys(ids))

    def _apply_lease(self, step: int, ids: list[str]) -> None:
        if self.again and [entry.group_id for entry in self.again[0].entries] == ids:
            entries = self.again.popleft().entries
        else:
            entries = [self.waiting.pop(group_id) for group_id in ids]
        self.leases.append(Lease(step, entries))
        self.step = step + 1

    def _apply_again(self, place: int, step: int, ids: list[str]) -> None:
        self.again.append(Lease(step, [self.waiting.pop(group_id) for group_id in ids]))

    def _apply_ack(self, step: int) -> None:
        for lease in self.leases:
            if lease.step < step:
                ids = [entry.group_id for entry in lease.entries]
                self.done.update(dict.fromkeys(ids))
                self.held.difference_update(ids)
        self.leases = [lease for lease in self.leases if lease.step >= step]
        self.acked = max(self.acked, step)
        while len(self.done) > REMEMBERED_IDS:
            del self.done[next(iter(self.done))]

    def _apply_rollback(self, step: int) -> None:
        back = sorted((lease for lease in self.leases if lease.step >= step), key=lambda lease: lease.step)
        self.leases = [lease for lease in self.leases if lease.step < step]
        self.again.extendleft(reversed(back))
        self.step = step

    def _ready_with(self, entry: Entry) -> list[str]:
        """Ids of the groups that can be trained once this one is there: a smaller one waits for others to fill up."""
        env = entry.env_id
        if env is None or not 0 <= env < len(self.envs) or entry.size == self.envs[env]["group_size"]:
            return [entry.group_id]
        chosen, left = [], int(self.envs[env]["group_size"])
        for held in [*self.buffers.get(env, []), entry]:
            if held.size <= left:
                chosen.append(held.group_id)
                left -= held.size
        return [] if left else chosen

    def _add(self, entry: Entry, ready: list[str]) -> None:
        self.held.add(entry.group_id)
        buffer = self.buffers.setdefault(-1 if entry.env_id is None else entry.env_id, [])
        buffer.append(entry)
        for held in [held for held in buffer if held.group_id in ready]:
            buffer.remove(held)
            self.waiting[held.group_id] = held


def new_id() -> str:
    """An id for a group that came without one."""
    return str(uuid.uuid4())
