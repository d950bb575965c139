"""What the environment keeps on disk, one SQLite file: the events of its groups, and the groups that the API lacks.

That a group has ended, the group itself, and the line that records it are one transaction. The line goes to
environment.jsonl next, where people and tools read it; the file holds it until it is there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from sqlite3 import Connection
from typing import Any, NamedTuple

from environments.common import sqlite
from environments.common.run_folder import append_line
from environments.common.settings import ConfigError
from environments.common.sqlite import StateFile

NAME = "progress.db"
RECORDS = "environment.jsonl"
APPLICATION_ID = 0x6174_6C70  # "atlp"
VERSION = 1
FREE_BYTES = 256 << 20
"""Unused space that is kept for the next groups in any case."""

_OLD_NAME = "progress.jsonl"
_CACHE_BYTES = 512 << 10  # bodies are written once and read once: pages of theirs in memory help nobody
_PIECE = 1 << 20
_GIVEN_BACK = 8 << 20
_BITS = 20  # of a piece's number within its group; the snapshot's pieces are those of group 0

_TABLES = """
CREATE TABLE events (number INTEGER PRIMARY KEY, event TEXT NOT NULL) STRICT;
CREATE TABLE outbox (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, problem TEXT NOT NULL,
    version INTEGER NOT NULL) STRICT;
CREATE TABLE lines (number INTEGER PRIMARY KEY AUTOINCREMENT, line TEXT NOT NULL) STRICT;
CREATE TABLE pieces (place INTEGER PRIMARY KEY, content BLOB NOT NULL) STRICT
"""

Event = dict[str, Any]


class KeptGroup(NamedTuple):
    """A group that the API may not have: its id, its problem's, and the weight version of its oldest token."""

    id: str
    problem: str
    version: int


@dataclass(frozen=True)
class Change:
    """Parts that are on the disk together or not at all.

    event: JSON. line: for environment.jsonl. body: of `group`, as it is sent. delivered: the id of a group that the API
    has. snapshot: JSON, takes the place of all events before it.
    """

    event: str | None = None
    line: str | None = None
    group: KeptGroup | None = None
    body: bytes = field(default=b"", repr=False)
    delivered: str | None = None
    snapshot: bytes | None = field(default=None, repr=False)


class Kept:
    """What a file holds, as its connection sees it."""

    def __init__(self, run: Connection) -> None:
        self._run = run

    def snapshot(self) -> Event | None:
        """What all events before the first came to; None: there is nothing yet."""
        found = _joined(self._run, 0)
        return dict(json.loads(found)) if found else None

    def events(self) -> Iterator[tuple[int, str]]:
        """Number and JSON of each event since the snapshot."""
        return self._run.execute("SELECT number, event FROM events ORDER BY number")

    def outbox(self) -> list[KeptGroup]:
        """The groups that are kept, in the order they came."""
        rows = self._run.execute("SELECT id, problem, version FROM outbox ORDER BY number")
        return [KeptGroup(*row) for row in rows]

    def lines(self) -> list[tuple[int, str]]:
        """Number and text of each line that environment.jsonl may lack."""
        return self._run.execute("SELECT number, line FROM lines ORDER BY number").fetchall()


class ProgressFile:
    """The file of one folder, open for the environment that runs there. Its methods are for one thread at a time.

    Raises:
        ConfigError: the folder was written by an older version, or another environment runs there.
        StoreError: the file is damaged or none of ours.
        OSError: it cannot be read or written, from every method.
    """

    def __init__(self, folder: Path) -> None:
        refuse_old(folder)
        self.path = folder / NAME
        self._records = folder / RECORDS
        try:
            self.file = StateFile(
                self.path,
                application_id=APPLICATION_ID,
                version=VERSION,
                tables=_TABLES,
                cache_bytes=_CACHE_BYTES,
            )
        except sqlite.FileInUse:
            raise ConfigError(
                f"env.run_dir = {folder}: another environment is running there. Stop it or give another folder."
            ) from None
        self._recorded = 0  # the newest line that is in environment.jsonl
        try:
            self._clean()
            self._record_left()
        except BaseException:
            self.file.close()
            raise

    @contextmanager
    def reading(self) -> Iterator[Kept]:
        """All that the file holds, without bodies."""
        with self.file.reading() as run:
            yield Kept(run)

    def body(self, group_id: str) -> bytes:
        """A kept group's body, byte for byte; empty for one that is not kept."""
        with self.file.reading() as run:
            number = _number(run, group_id)
            return _joined(run, number) if number else b""

    def write(self, changes: Iterable[Change]) -> None:
        """All of the changes, in one transaction."""
        with self.file.transaction() as run:
            run.execute("DELETE FROM lines WHERE number <= ?", (self._recorded,))
            for change in changes:
                _apply(run, change)

    def record(self) -> None:
        """Adds the lines of all changes since the last call to environment.jsonl."""
        with self.file.reading() as run:
            rows = run.execute("SELECT number, line FROM lines WHERE number > ? ORDER BY number", (self._recorded,))
            for number, line in rows.fetchall():
                append_line(self._records, line)
                self._recorded = number

    def tidy(self) -> None:
        """Moves a long log into the file, and gives some unused space back to the disk."""
        if self.file.log_size > sqlite.KEPT_LOG_BYTES:
            self.file.checkpoint()
        self.file.shrink(FREE_BYTES, _GIVEN_BACK)

    def close(self) -> None:
        """Lets another process have the folder."""
        try:
            with suppress(OSError):  # the next start finds its lines in environment.jsonl as well
                self.write(())
        finally:
            self.file.close()

    def _clean(self) -> None:
        """Bodies of groups that somebody deleted by hand."""
        with self.file.transaction() as run:
            run.execute(
                "DELETE FROM pieces WHERE place >= ? AND place >> ? NOT IN (SELECT number FROM outbox)",
                (1 << _BITS, _BITS),
            )

    def _record_left(self) -> None:
        """Lines that a death kept from environment.jsonl, or from being known to be there."""
        with self.reading() as kept:
            rows = kept.lines()
        if not rows:
            return
        left = {line.encode() + b"\n": line for _, line in rows}
        if self._records.exists():
            with self._records.open("r+b") as file:
                whole = 0
                for written in file:
                    left.pop(written, None)
                    whole += len(written) if written.endswith(b"\n") else 0
                file.truncate(whole)  # half a line is one of those that are left
        for line in left.values():
            append_line(self._records, line)
        self._recorded = rows[-1][0]
        self.write(())


def refuse_old(folder: Path) -> None:
    """ConfigError for a folder that holds what versions before this form wrote."""
    if (folder / _OLD_NAME).exists() and not (folder / NAME).exists():
        raise ConfigError(
            f"{folder}: its {_OLD_NAME} and outbox/ are of the form before {NAME}, which atropos-livecode reads up to "
            "commit a7e483d: use that version, or give another folder."
        )


@contextmanager
def reading(folder: Path) -> Iterator[Kept | None]:
    """What a folder's file holds at this moment, also beside its owner; None where there is none.

    Raises ConfigError for a file that is none of ours, damaged, or of the form before.
    """
    refuse_old(folder)
    if not (folder / NAME).exists():
        yield None
        return
    with sqlite.reading(folder / NAME, application_id=APPLICATION_ID, version=VERSION) as run:
        yield Kept(run)


def _apply(run: Connection, change: Change) -> None:
    if change.snapshot is not None:
        run.execute("DELETE FROM events")
        _delete(run, 0)
        _put(run, 0, change.snapshot)
    if change.event is not None:
        run.execute("INSERT INTO events (event) VALUES (?)", (change.event,))
    if change.line is not None:
        run.execute("INSERT INTO lines (line) VALUES (?)", (change.line,))
    if change.group is not None:
        number = run.execute("INSERT INTO outbox (id, problem, version) VALUES (?, ?, ?)", change.group).lastrowid
        assert number is not None
        _put(run, number, change.body)
    if change.delivered is not None and (number := _number(run, change.delivered)):
        _delete(run, number)
        run.execute("DELETE FROM outbox WHERE id = ?", (change.delivered,))


def _number(run: Connection, group_id: str) -> int:
    """0 for a group that is not kept."""
    row = run.execute("SELECT number FROM outbox WHERE id = ?", (group_id,)).fetchone()
    return int(row[0]) if row else 0


def _put(run: Connection, number: int, content: bytes) -> None:
    view = memoryview(content)
    for piece, at in enumerate(range(0, len(content), _PIECE)):
        run.execute("INSERT INTO pieces VALUES (?, ?)", (number << _BITS | piece, view[at : at + _PIECE]))


def _delete(run: Connection, number: int) -> None:
    run.execute("DELETE FROM pieces WHERE place >= ? AND place < ?", (number << _BITS, number + 1 << _BITS))


def _joined(run: Connection, number: int) -> bytes:
    return sqlite.joined_pieces(run, number << _BITS, number + 1 << _BITS)
