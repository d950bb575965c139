"""Where the environment is in its data, kept so that a restart skips no problem and repeats none.

Events, replayed at start: a group begins, ends, or is interrupted; a trainer first names the served weights. The
sampler and the test order are functions of these events, so that they come back as they were.

ConfigError         the folder belongs to another run or to a process that lives
└── ProgressError   the file is damaged (the message names what)
    └── DiskFull    it cannot be written
"""

from __future__ import annotations

import hashlib
import json
import threading
import uuid
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from environments.common import worker_threads
from environments.common.settings import ConfigError
from environments.livecode.pipeline import JudgedGroup
from environments.livecode.problems.problem import Problem
from environments.livecode.problems.sampler import Sampler
from environments.livecode.recovery.progress_file import NAME, Change, Event, KeptGroup, ProgressFile, refuse_old
from environments.livecode.verification.ordering import TestOrder

COMPACT_ABOVE = 256 << 20
"""Characters of events before a new snapshot takes their place: some 40,000 groups. With 24,000 problems of 20 tests a
snapshot takes 1.6 s, in which nothing else moves; it is made at every start as well."""


class ProgressError(ConfigError):
    """The file of events is damaged or cannot be written."""


class DiskFull(ProgressError):
    """The file of events cannot be written; with space on the disk the same command resumes."""

    exit_code = 1


@dataclass(frozen=True)
class OpenGroup:
    """A group that began and has not ended."""

    group_id: str
    problem: Problem
    version: int


class Progress:
    """The sampler and the test order with the events that made them what they are, and the groups to be sent.

    A change takes effect at once, and is on the disk when the next `written` returns, after every change before it.

    Args:
        folder: holds the file; one living process may hold it.
        settings: what the order of problems depends on beside the problems; another value is another run.
        sampler: fresh; the events bring it to where it was.
        order: fresh, as the sampler.

    Raises:
        ConfigError: the folder holds the progress of a run with other problems or settings, or another environment
            holds it.
        ProgressError: an event that cannot be read, or that this sampler could not have written.
        DiskFull: the file cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        *,
        problems: Sequence[Problem],
        settings: Mapping[str, Any],
        sampler: Sampler,
        order: TestOrder,
    ) -> None:
        self.sampler, self.order = sampler, order
        self.open: dict[str, OpenGroup] = {}
        self.again: deque[Problem] = deque()  # interrupted; they begin before any new one
        self.sent = 0  # groups that ended and were not dropped
        self.named = False  # a trainer has named the weights that are served
        self.identity = uuid.uuid4().hex  # of this folder's progress, by which the API server knows a shard again
        self.problems = {problem.id: problem for problem in problems}
        digest = hashlib.sha256("\n".join(self.problems).encode()).hexdigest()
        self.settings = {"problems_sha256": digest, **settings}
        self._events = 0  # characters since the snapshot
        self._changes: list[Change] = []  # not yet on the disk
        self._list, self._disk, self._closed = threading.Lock(), threading.Lock(), False
        try:
            self.file = ProgressFile(folder)
        except OSError as error:
            raise self._full(folder / NAME, error) from None
        self.path = self.file.path
        try:
            with self.file.reading() as kept:
                self.kept = kept.outbox()
                """Groups that an earlier process kept and that the API may not have, in their order."""
                if (snapshot := kept.snapshot()) is not None:
                    self._replay(snapshot, kept.events())
            self._compact()
            self.commit()
        except BaseException:
            self.file.close()
            raise

    @staticmethod
    def begun(folder: Path) -> bool:
        """Whether the folder holds the progress of a run; ConfigError where that is of the form before."""
        refuse_old(folder)
        return (folder / NAME).exists()

    def close(self) -> None:
        """Lets another process have the folder; changes that are not on the disk are written first."""
        try:
            self.commit()
        finally:
            with self._disk:
                self._closed = True
                self.file.close()

    # -- Changes ----------------------------------------------------------------------------------------------

    def begin(self, version: int) -> OpenGroup:
        """The next problem, as a group that begins at this weight version."""
        again = bool(self.again)
        problem = self.again.popleft() if again else self.sampler.next()
        begun = OpenGroup(str(uuid.uuid4()), problem, version)
        self.open[begun.group_id] = begun
        self._note({"begin": begun.group_id, "problem": problem.id, "version": version, "again": again})
        return begun

    def end(self, group: JudgedGroup, line: str, body: bytes | None = None) -> None:
        """A group that is finished.

        Args:
            line: its record. body: what is to be sent; None: it is dropped for good.
        """
        rate = None if group.dropped in ("infrastructure", "judge_fault") else group.pass_rate
        runs = [
            {"status": rollout.verdict["status"], "tests": [[t["index"], t["status"], t["cpu_s"]] for t in tests]}
            for rollout in group.rollouts
            if rollout.verdict is not None and (tests := rollout.verdict.get("tests"))
        ]
        kept = None if body is None else KeptGroup(group.group_id, group.problem.id, group.weight_version)
        event = {"end": group.group_id, "rate": rate, "sent": kept is not None, "runs": runs}
        self._apply(event)
        self._note(event, line=line, group=kept, body=body or b"")

    def cut_off(self, group_id: str, line: str) -> None:
        """A group that ends unfinished, with its record; its problem begins again before any new one."""
        event = {"cut_off": group_id}
        self._apply(event)
        self._note(event, line=line)

    def name(self) -> None:
        """From now on a server whose weights have no name is one that was started again."""
        event = {"named": True}
        self._apply(event)
        self._note(event)

    def delivered(self, group_id: str) -> None:
        """The API has this group. Until that is on the disk a death sends it again, which the API ignores."""
        with self._list:
            self._changes.append(Change(delivered=group_id))

    # -- The disk ---------------------------------------------------------------------------------------------

    async def written(self) -> None:
        """Returns when every change up to now is on the disk. Raises DiskFull."""
        await worker_threads.progress(self.commit)
        worker_threads.progress.later(self._tidy)

    async def body(self, group_id: str) -> bytes:
        """What is to be sent of a group that is kept; empty where it is not kept."""
        return await worker_threads.progress(self.file.body, group_id)

    def commit(self) -> None:
        """As `written`, in this thread. What cannot be written is tried again by the next call."""
        with self._disk:
            with self._list:
                changes = self._changes[:]
            if not changes:
                return
            try:
                self.file.write(changes)
                with self._list:
                    del self._changes[: len(changes)]
                self.file.record()
            except OSError as error:
                raise self._full(self.path, error) from None

    def _tidy(self) -> None:
        with self._disk, suppress(OSError):  # where there is no room the log keeps everything
            if not self._closed:
                self.file.tidy()

    @staticmethod
    def _full(path: Path, error: OSError) -> DiskFull:
        return DiskFull(f"{path}: cannot be written ({error.strerror}). Free space on that disk and start again.")

    # -- Events -----------------------------------------------------------------------------------------------

    def _note(self, event: Event, **parts: Any) -> None:
        text = json.dumps(event, separators=(",", ":"))
        with self._list:
            self._changes.append(Change(text, **parts))
        self._events += len(text)
        if self._events > COMPACT_ABOVE:
            self._compact()

    def _compact(self) -> None:
        """A snapshot takes the place of the events."""
        snapshot = {
            "settings": self.settings,
            "identity": self.identity,
            "sampler": self.sampler.state(),
            "order": self.order.state(),
            "open": [[begun.group_id, begun.problem.id, begun.version] for begun in self.open.values()],
            "again": [problem.id for problem in self.again],
            "sent": self.sent,
            "named": self.named,
        }
        with self._list:
            self._changes.append(Change(snapshot=msgspec.json.encode(snapshot)))
        self._events = 0

    def _replay(self, snapshot: Event, events: Iterable[tuple[int, str]]) -> None:
        where = "snapshot"
        try:
            self._restore(snapshot)
            for number, text in events:
                where = f"event {number}"
                event = json.loads(text)
                if "begin" in event:
                    self._begin_again(event)
                else:
                    self._apply(event)
        except ConfigError:
            raise
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ProgressError(
                f"{self.path} {where}: cannot be read ({type(error).__name__}: {error}). Restore the file, or "
                "give another folder."
            ) from None

    def _restore(self, snapshot: Event) -> None:
        theirs = snapshot["settings"]
        for name in {**theirs, **self.settings}:
            if theirs.get(name) != self.settings.get(name):
                raise ConfigError(
                    f"env.run_dir = {self.path.parent}: holds a run with {name} {theirs.get(name)!r}, this one has "
                    f"{self.settings.get(name)!r}. Give another folder, or resume with the same settings."
                )
        self.identity = snapshot.get("identity", self.identity)
        self.sampler.restore(snapshot["sampler"])
        self.order.restore(snapshot["order"])
        for group_id, problem_id, version in snapshot["open"]:
            self.open[group_id] = OpenGroup(group_id, self.problems[problem_id], version)
        self.again.extend(self.problems[problem_id] for problem_id in snapshot["again"])
        self.sent = snapshot["sent"]
        self.named = snapshot["named"]

    def _begin_again(self, event: Event) -> None:
        problem = self.again.popleft() if event["again"] else self.sampler.next()
        if problem.id != event["problem"]:
            raise ValueError(f"problem {event['problem']!r} is where {problem.id!r} came next")
        self.open[event["begin"]] = OpenGroup(event["begin"], problem, event["version"])

    def _apply(self, event: Event) -> None:
        if "cut_off" in event:
            self.again.append(self.open.pop(event["cut_off"]).problem)
            return
        if "named" in event:
            self.named = True
            return
        problem = self.open.pop(event["end"]).problem
        self.sent += event["sent"]
        if event["rate"] is not None:
            self.sampler.update(problem, event["rate"])
        for run in event["runs"]:
            tests = [{"index": index, "status": status, "cpu_s": cpu} for index, status, cpu in run["tests"]]
            self.order.record(problem.id, {"status": run["status"], "tests": tests})
