"""What the API server holds: groups that wait, leases that are not durable yet, and who has registered.

Every change is one transaction of the journal, on the disk before it is applied here; starting again means reading the
journal. So a server that is killed comes back with what it had promised, and a change that cannot be written (a full
disk) did not happen.

A lease is the batch of one training step. It is kept until a checkpoint that includes it is durable (`ack`), and
served again, the same bytes in the same order, to a trainer that goes back to an older step (`rollback`).
"""

from __future__ import annotations

import logging
import uuid
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from environments.api_server.batches import oldest, ready_with
from environments.api_server.journal import BatchRow, GroupRow, Journal, read_journal
from environments.api_server.shards import shard_of
from environments.common.errors import LivecodeError

log = logging.getLogger(__name__)

T = TypeVar("T")

REMEMBERED_IDS = 100_000
"""Group ids of batches that are done with, kept so that a late duplicate is known."""


@dataclass
class Entry:
    """One group as it was received. Its bytes lie in the journal, or here where there is none."""

    group_id: str
    size: int
    env_id: int | None
    raw: bytes | None = field(repr=False, compare=False)
    number: int = field(default=0, repr=False, compare=False)
    """In the journal."""


@dataclass
class Lease:
    """The batch of one step."""

    step: int
    entries: list[Entry]
    number: int = field(default=0, repr=False, compare=False)
    """In the journal."""


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
            self._restore(*self.journal.read())

    @classmethod
    def read(cls, path: Path) -> Store:
        """What a server with this journal holds, without the groups' contents; it cannot be changed durably.

        Raises JournalError for a file that is no journal, or damaged.
        """
        store = cls()
        store._restore(*read_journal(path))
        return store

    # -- changes: written, then applied --------------------------------------------------------------------

    @contextmanager
    def together(self) -> Iterator[None]:
        """All changes of the block, or none of them: one transaction of the journal."""
        if self.journal is None:
            yield
            return
        try:
            with self.journal.together():
                yield
        except BaseException:
            self._forget()
            self._restore(*self.journal.read())
            raise

    def add(self, entry: Entry) -> str:
        """Takes a group: "received", "buffered" for one smaller than registered, "duplicate" for a known id."""
        if self.knows(entry.group_id):
            return "duplicate"
        ready = ready_with(entry, self.buffers, self.envs)
        env = entry.env_id
        if env is not None and env < len(self.envs) and not self.envs[env].get("sent"):
            self._set_env(env, sent=True)
        if self.journal is not None:
            entry.number = self.journal.add(entry.group_id, entry.size, entry.env_id, self.raw(entry), ready)
            entry.raw = None
        self.held.add(entry.group_id)
        buffer = self.buffers.setdefault(-1 if entry.env_id is None else entry.env_id, [])
        buffer.append(entry)
        for held in [held for held in buffer if held.group_id in ready]:
            buffer.remove(held)
            self.waiting[held.group_id] = held
        return "received" if ready == [entry.group_id] else "buffered"

    def add_all(self, entries: list[Entry]) -> list[str]:
        """Takes all of these groups, or none where they cannot be written; what became of each."""
        with self.together():
            return [self.add(entry) for entry in entries]

    def register(self, registration: dict[str, Any]) -> None:
        """A trainer's registration, the first or a later one."""
        with self.together():
            registration = self._say("registration", registration)
            if self.registration is None:
                self._set_step(registration["starting_step"])
        self.registration = registration

    def register_env(self, env: dict[str, Any]) -> None:
        """One more environment, whose id is its place. Of a shard that was started again it takes the former's."""
        with self.together():
            for place, former in enumerate(self.envs if env.get("shard") else ()):
                if former["connected"] and shard_of(former) == shard_of(env):
                    env |= {"sent": env.get("sent") or former.get("sent")}
                    self._set_env(place, connected=False)
            self.envs.append(self._say(f"env {len(self.envs)}", env))

    def disconnect_env(self, env_id: int) -> None:
        """An environment ends."""
        self._set_env(env_id, connected=False)

    def _set_env(self, env_id: int, **changes: Any) -> None:
        self.envs[env_id] = self._say(f"env {env_id}", {**self.envs[env_id], **changes})

    def start(self) -> None:
        """A trainer has asked for a batch: environments may register."""
        if not self.started:
            self.started = self._say("started", True)

    def set_contract(self, side: str, terms: dict[str, Any]) -> None:
        """What one side assumes of the run."""
        self.contracts[side] = self._say(f"contract {side}", terms)

    def lease(self, step: int, batch_size: int) -> Lease | None:
        """The batch of `step`: the same one when it is asked for again, None when too few rollouts wait."""
        for lease in self.leases:
            if lease.step == step:
                return lease
        again = self.again[0] if self.again else None
        entries = oldest(self.waiting.values(), self.envs, step, batch_size) if again is None else again.entries
        if entries is None:
            return None
        lease = Lease(step, entries, 0 if again is None else again.number)
        with self.together():
            if self.journal is not None:
                lease.number = self.journal.lease(lease.number, step, [entry.number for entry in entries])
            self._set_step(step + 1)
        if again is not None:
            self.again.popleft()
        else:
            for entry in entries:
                del self.waiting[entry.group_id]
        self.leases.append(lease)
        return lease

    def ack(self, checkpoint_step: int) -> int:
        """Forgets the leases that a durable checkpoint of this step includes; how many groups these were."""
        leases = [lease for lease in self.leases if lease.step < checkpoint_step]
        entries = [entry for lease in leases for entry in lease.entries]
        if checkpoint_step <= self.acked:
            return len(entries)
        names = dict.fromkeys(entry.group_id for entry in entries)
        forgotten = list(islice(chain(self.done, names), max(len(self.done) + len(names) - REMEMBERED_IDS, 0)))
        with self.together():
            if self.journal is not None:
                numbers = [entry.number for entry in entries]
                self.journal.ack([lease.number for lease in leases], numbers, forgotten)
            self.acked = self._say("acked", checkpoint_step)
        self.leases = [lease for lease in self.leases if lease.step >= checkpoint_step]
        self.held.difference_update(names)
        self.done.update(names)
        for name in forgotten:
            del self.done[name]
        return len(entries)

    def rollback(self, step: int) -> int:
        """The trainer is at `step` again: later leases will be served again; how many.

        Raises StepError for a step before the acknowledged one: its batches are gone.
        """
        if step < self.acked:
            raise StepError(
                f"step {step} is before the acknowledged checkpoint of step {self.acked}, and the batches between "
                f"are gone: resume from step {self.acked} or later, or begin with another journal"
            )
        back = sorted((lease for lease in self.leases if lease.step >= step), key=lambda lease: lease.step)
        with self.together():
            if self.journal is not None:
                self.journal.rollback([lease.number for lease in back])
            self._set_step(step)
        self.leases = [lease for lease in self.leases if lease.step < step]
        self.again.extendleft(reversed(back))
        return len(back)

    def reset(self) -> None:
        """Forgets everything."""
        if self.journal is not None:
            self.journal.reset()
        self._forget()

    def tidy(self) -> bool:
        """One short step of keeping the journal small; whether there is more to do. A full disk only puts it off."""
        try:
            return self.journal is not None and self.journal.tidy()
        except OSError as error:
            assert self.journal is not None
            log.error("%s: cannot be made smaller (%s); it stays in use as it is", self.journal.path, error.strerror)
            return False

    def close(self) -> None:
        """Closes the journal."""
        if self.journal is not None:
            self.journal.close()

    # -- questions -----------------------------------------------------------------------------------------

    def raw(self, entry: Entry) -> bytes:
        """The group as JSON or in binary form, byte for byte as it was received."""
        if entry.raw is not None:
            return entry.raw
        assert self.journal is not None
        return self.journal.body(entry.number)

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

    # -- the journal ---------------------------------------------------------------------------------------

    def _say(self, name: str, value: T) -> T:
        """Keeps one fact; as the journal gives it back."""
        try:
            payload = msgspec.json.encode(value)
            json_value = msgspec.json.decode(payload)  # what cannot be read again must not be written
            name.encode()
        except (msgspec.MsgspecError, OverflowError, RecursionError, UnicodeError) as error:
            raise Unwritable(f"cannot be written as JSON ({type(error).__name__}: {error})") from None
        if self.journal is not None:
            self.journal.say(name, payload)
        found: T = json_value
        return found

    def _set_step(self, step: int) -> None:
        self.step = self._say("step", step)

    def _forget(self) -> None:
        """Everything but the journal as at first."""
        for name, value in vars(Store()).items():
            if name != "journal":
                setattr(self, name, value)

    def _restore(self, facts: dict[str, bytes], batches: list[BatchRow], groups: list[GroupRow]) -> None:
        for name, payload in facts.items():
            kind, _, of = name.partition(" ")
            value = msgspec.json.decode(payload)
            if kind == "env":
                self.envs.append(value)
            elif kind == "contract":
                self.contracts[of] = value
            else:
                setattr(self, kind, value)
        leases = {row.number: Lease(row.step, [], row.number) for row in batches}
        for row in batches:
            (self.leases if row.leased else self.again).append(leases[row.number])
        for group in groups:
            if group.done is not None:
                self.done[group.id] = None
                continue
            self.held.add(group.id)
            entry = Entry(group.id, group.size, group.env, None, group.number)
            if group.batch is not None:
                leases[group.batch].entries.append(entry)
            elif group.place is not None:
                self.waiting[group.id] = entry
            else:
                self.buffers.setdefault(-1 if group.env is None else group.env, []).append(entry)


def new_id() -> str:
    """An id for a group that came without one."""
    return str(uuid.uuid4())
