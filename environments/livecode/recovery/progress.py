"""Where the environment is in its data, kept so that a restart skips no problem and repeats none.

A file of events, replayed at start: a snapshot in the first line, then one line for each group that begins, ends, or is
cut off, and one when a trainer first names the served weights. The sampler and the test order are functions of these
events, so that they come back as they were.

ConfigError         the folder belongs to another run or to a process that lives
└── ProgressError   the file is damaged (the message names the line)
    └── DiskFull    it cannot be written
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from environments.common.settings import ConfigError
from environments.livecode.pipeline import JudgedGroup
from environments.livecode.problems.problem import Problem
from environments.livecode.problems.sampler import Sampler
from environments.livecode.verification.ordering import TestOrder

FORMAT = 1
COMPACT_ABOVE = 256 << 20
"""Bytes of events before a new snapshot takes their place: some 40,000 groups. With 24,000 problems of 20 tests a
snapshot takes 1.6 s, in which nothing else moves; it is made at every start as well."""


class ProgressError(ConfigError):
    """The file of events is damaged or cannot be written."""


class DiskFull(ProgressError):
    """The file of events cannot be written; with space on the disk the same command goes on."""

    exit_code = 1


@dataclass(frozen=True)
class OpenGroup:
    """A group that began and has not ended."""

    group_id: str
    problem: Problem
    version: int


class Progress:
    """The sampler and the test order with the events that made them what they are.

    Args:
        folder: holds progress.jsonl; one living process may hold it.
        settings: what the order of problems depends on beside the problems; another value is another run.
        sampler: fresh; the events bring it to where it was.
        order: fresh, as the sampler.

    Raises:
        ConfigError: the folder holds the progress of a run with other problems or settings, or another environment
            holds it.
        ProgressError: a line that cannot be read, or that this sampler could not have written.
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
        self.path = folder / "progress.jsonl"
        self.sampler, self.order = sampler, order
        self.open: dict[str, OpenGroup] = {}
        self.again: deque[Problem] = deque()  # cut off; they begin before any new one
        self.sent = 0  # groups that ended and were not dropped
        self.named = False  # a trainer has named the weights that are served
        self._torn = False
        self._snapshot = 0  # bytes
        self._problems = {problem.id: problem for problem in problems}
        digest = hashlib.sha256("\n".join(self._problems).encode()).hexdigest()
        self._settings = {"problems_sha256": digest, **settings}
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = (folder / "progress.lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise ConfigError(
                f"env.run_dir = {folder}: another environment is running there. Stop it or give another folder."
            ) from None
        try:
            self._replay()
            self._fd = self._compact()
        except BaseException:
            self._lock.close()
            raise

    @staticmethod
    def begun(folder: Path) -> bool:
        """Whether the folder holds the progress of a run."""
        return (folder / "progress.jsonl").exists()

    def close(self) -> None:
        """Lets another process have the folder."""
        os.close(self._fd)
        self._lock.close()

    # -- Events -----------------------------------------------------------------------------------------------

    def begin(self, version: int) -> OpenGroup:
        """The next problem, as a group that begins at this weight version."""
        again = bool(self.again)
        problem = self.again.popleft() if again else self.sampler.next()
        begun = OpenGroup(str(uuid.uuid4()), problem, version)
        self.open[begun.group_id] = begun
        self._write({"begin": begun.group_id, "problem": problem.id, "version": version, "again": again})
        return begun

    def end(self, group: JudgedGroup) -> None:
        """A group that is finished: in the outbox, or dropped for good."""
        rate = None if group.dropped in ("infrastructure", "judge_fault") else group.pass_rate
        runs = [
            {"status": rollout.verdict["status"], "tests": [[t["index"], t["status"], t["cpu_s"]] for t in tests]}
            for rollout in group.rollouts
            if rollout.verdict is not None and (tests := rollout.verdict.get("tests"))
        ]
        event = {"end": group.group_id, "rate": rate, "sent": group.dropped is None, "runs": runs}
        self._apply(event)
        self._write(event)

    def cut_off(self, group_id: str) -> None:
        """A group that ends unfinished; its problem begins again before any new one."""
        event = {"cut_off": group_id}
        self._apply(event)
        self._write(event)

    def name(self) -> None:
        """From now on a server whose weights have no name is one that was started again."""
        event = {"named": True}
        self._apply(event)
        self._write(event)

    def recover(
        self, waiting: Iterable[tuple[str, list[float]]], record: Callable[[OpenGroup, list[float] | None], None]
    ) -> int:
        """Settles what an earlier process left open: (group id, scores) of groups in the outbox have ended.

        `record` is called for each open group with its scores, None for one that was lost unfinished and begins
        again; it comes before the event, so that a death between the two records it twice and not never.

        Returns:
            The number of groups that were lost.
        """
        for group_id, scores in waiting:
            if group_id in self.open:
                record(self.open[group_id], scores)
                rate = sum(score > 0 for score in scores) / len(scores)
                event = {"end": group_id, "rate": rate, "sent": True, "runs": []}
                self._apply(event)
                self._write(event)
        lost = list(self.open.values())
        for begun in lost:
            record(begun, None)
            self.cut_off(begun.group_id)
        return len(lost)

    def sync(self) -> None:
        """Puts the events on the disk; for a thread."""
        os.fdatasync(self._fd)

    def _apply(self, event: dict[str, Any]) -> None:
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

    # -- The file ---------------------------------------------------------------------------------------------

    def _write(self, event: dict[str, Any]) -> None:
        data = json.dumps(event, separators=(",", ":")).encode() + b"\n"
        try:
            if self._torn:
                raise OSError(errno.EIO, "an earlier line could not be written")
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError as error:
            self._torn = True  # half a line may stand there: it must stay the last one
            raise DiskFull(
                f"{self.path}: cannot be written ({error.strerror}). Free space on that disk and start again."
            ) from None
        if os.fstat(self._fd).st_size > self._snapshot + COMPACT_ABOVE:
            os.close(self._fd)
            self._fd = self._compact()

    def _compact(self) -> int:
        """A file with nothing but a snapshot takes the place of the old one; its descriptor."""
        snapshot = {
            "format": FORMAT,
            "settings": self._settings,
            "sampler": self.sampler.state(),
            "order": self.order.state(),
            "open": [[begun.group_id, begun.problem.id, begun.version] for begun in self.open.values()],
            "again": [problem.id for problem in self.again],
            "sent": self.sent,
            "named": self.named,
        }
        new = self.path.with_suffix(".new")
        with new.open("wb") as file:
            self._snapshot = file.write(msgspec.json.encode(snapshot) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, self.path)
        sync_folder(self.path.parent)
        return os.open(self.path, os.O_WRONLY | os.O_APPEND)

    def _replay(self) -> None:
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return
        lines = data[: data.rfind(b"\n") + 1].splitlines()  # what follows is a line that a death cut off
        for number, line in enumerate(lines, 1):
            try:
                event = json.loads(line)
                if number == 1:
                    self._restore(event)
                elif "begin" in event:
                    self._begin_again(event)
                else:
                    self._apply(event)
            except ConfigError:
                raise
            except (ValueError, KeyError, TypeError, IndexError) as error:
                raise ProgressError(
                    f"{self.path} line {number}: cannot be read ({type(error).__name__}: {error}). Restore the file, "
                    "or remove it to begin the order of problems anew."
                ) from None

    def _restore(self, snapshot: dict[str, Any]) -> None:
        if snapshot["format"] != FORMAT:
            raise ProgressError(f"{self.path}: format {snapshot['format']}, this version reads {FORMAT}")
        theirs = snapshot["settings"]
        for name in {**theirs, **self._settings}:
            if theirs.get(name) != self._settings.get(name):
                raise ConfigError(
                    f"env.run_dir = {self.path.parent}: holds a run with {name} {theirs.get(name)!r}, this one has "
                    f"{self._settings.get(name)!r}. Give another folder, or go on with the same settings."
                )
        self.sampler.restore(snapshot["sampler"])
        self.order.restore(snapshot["order"])
        for group_id, problem_id, version in snapshot["open"]:
            self.open[group_id] = OpenGroup(group_id, self._problems[problem_id], version)
        self.again.extend(self._problems[problem_id] for problem_id in snapshot["again"])
        self.sent = snapshot["sent"]
        self.named = snapshot.get("named", False)  # since after the first files of this format

    def _begin_again(self, event: dict[str, Any]) -> None:
        problem = self.again.popleft() if event["again"] else self.sampler.next()
        if problem.id != event["problem"]:
            raise ValueError(f"problem {event['problem']!r} stands where {problem.id!r} came next")
        self.open[event["begin"]] = OpenGroup(event["begin"], problem, event["version"])


def sync_folder(folder: Path) -> None:
    """Puts a folder's entries on the disk (fsync(2) of a file does not)."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
