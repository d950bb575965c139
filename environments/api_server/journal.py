"""The API server's state on disk, a SQLite file: groups with their bodies, batches, and what both sides stated.

Every method that changes something is one transaction, or part of the one around it (`together`), and on the disk when
it returns. A body is kept as the bytes that came, in pieces, so that neither writing nor deleting one needs much memory
or time. Of acknowledged groups' bodies the newest KEPT_BYTES are kept and older ones deleted; the space is used again
and, where it is more than half of the file, given back. `tidy` does that a little at a time.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from sqlite3 import Connection
from typing import NamedTuple

from environments.common import sqlite
from environments.common.sqlite import StateFile, StoreError

APPLICATION_ID = 0x6174_6A6C  # "atjl"
VERSION = 2
KEPT_BYTES = 64 << 20
"""Of acknowledged groups' bodies, which only an audit or a person still reads."""
FREE_BYTES = 64 << 20
"""Unused space that is kept for the next groups in any case."""

_PIECE = 1 << 20
_GIVEN_BACK = 8 << 20
_BITS = 20  # of a piece's number within its group

_TABLES = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL, crc INTEGER NOT NULL) STRICT;
CREATE TABLE batches (number INTEGER PRIMARY KEY, step INTEGER NOT NULL, leased INTEGER NOT NULL,
    place INTEGER NOT NULL) STRICT;
CREATE TABLE groups (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, size INTEGER NOT NULL, env INTEGER,
    batch INTEGER, place INTEGER, done INTEGER, bytes INTEGER NOT NULL, crc INTEGER NOT NULL) STRICT;
CREATE INDEX kept ON groups (done) WHERE done IS NOT NULL AND bytes > 0;
CREATE TABLE pieces (place INTEGER PRIMARY KEY, content BLOB NOT NULL) STRICT
"""
_OLD = b"atropos-livecode journal 1\n"


class JournalError(StoreError):
    """A journal that cannot be used; the message names file and fix."""


class GroupRow(NamedTuple):
    """A group: in the batch `batch` at `place`; waiting at `place`; done as number `done`; or none, buffered."""

    number: int
    id: str
    size: int
    env: int | None
    batch: int | None
    place: int | None
    done: int | None


class BatchRow(NamedTuple):
    """A batch, leased or to be served again, in the order of `place`."""

    number: int
    step: int
    leased: bool
    place: int


class Journal:
    """One journal, open for its server. Changes raise OSError where they cannot be written; they did not happen then.

    Raises JournalError for a file that is none of ours, in use or damaged, OSError where it cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _explained(path):
            self.file = StateFile(path, application_id=APPLICATION_ID, version=VERSION, tables=_TABLES)
        try:
            with _explained(path), self.file.reading() as connection:
                _verify(path, connection)
                self._count(connection)
        except BaseException:
            self.file.close()
            raise
        self._within = self._closed = False

    def _count(self, run: Connection) -> None:
        """Where the next group, batch and acknowledgement come, and how much of bodies is done with."""
        found = run.execute(
            "SELECT (SELECT max(place) FROM groups), (SELECT max(done) FROM groups), "
            "(SELECT max(place) FROM batches), (SELECT min(place) FROM batches), "
            "(SELECT sum(bytes) FROM groups WHERE done IS NOT NULL AND bytes > 0)"
        ).fetchone()
        self._waiting, self._done, self._last, self._first, self._kept = (value or 0 for value in found)

    def close(self) -> None:
        """Closes the file; a second time it does nothing."""
        if not self._closed:
            self._closed = True
            self.file.close()

    @property
    def size(self) -> int:
        """Bytes on the disk."""
        return self.file.size

    # -- changes -------------------------------------------------------------------------------------------

    @contextmanager
    def together(self) -> Iterator[Connection]:
        """All changes of the block in one transaction."""
        if self._within:
            yield self.file.connection
            return
        self._within = True
        try:
            with self.file.transaction() as connection:
                yield connection
        except BaseException:
            with self.file.reading() as connection:
                self._count(connection)
            raise
        finally:
            self._within = False

    def say(self, name: str, value: bytes) -> None:
        """Keeps or replaces one fact, JSON."""
        with self.together() as run:
            run.execute(
                "INSERT INTO facts VALUES (?, ?, ?) "
                "ON CONFLICT DO UPDATE SET value = excluded.value, crc = excluded.crc",
                (name, value.decode(), _fact_crc(name, value)),
            )

    def add(self, group_id: str, size: int, env: int | None, raw: bytes, ready: Iterable[str]) -> int:
        """A group that came; those in `ready` wait for a trainer from now on, in this order. Returns its number."""
        crc = zlib.crc32(raw, _group_crc(group_id, size, env))
        with self.together() as run:
            number = run.execute(
                "INSERT INTO groups (id, size, env, bytes, crc) VALUES (?, ?, ?, ?, ?)",
                (group_id, size, env, len(raw), crc),
            ).lastrowid
            assert number is not None
            view = memoryview(raw)
            for piece, at in enumerate(range(0, len(raw), _PIECE)):
                run.execute("INSERT INTO pieces VALUES (?, ?)", (number << _BITS | piece, view[at : at + _PIECE]))
            for name in ready:
                self._waiting += 1
                run.execute("UPDATE groups SET place = ? WHERE id = ?", (self._waiting, name))
        return number

    def lease(self, batch: int, step: int, groups: list[int]) -> int:
        """A batch of these groups, new (0) or one that was rolled back, is leased as `step`. Returns its number."""
        with self.together() as run:
            self._last += 1
            if batch:
                run.execute(
                    "UPDATE batches SET step = ?, leased = 1, place = ? WHERE number = ?", (step, self._last, batch)
                )
                return batch
            number = run.execute(
                "INSERT INTO batches (step, leased, place) VALUES (?, 1, ?)", (step, self._last)
            ).lastrowid
            assert number is not None
            run.executemany(
                "UPDATE groups SET batch = ?, place = ? WHERE number = ?",
                [(number, place, group) for place, group in enumerate(groups)],
            )
        return number

    def ack(self, batches: list[int], groups: list[int], forgotten: list[str]) -> None:
        """These batches and their groups are done with; the ids of forgotten ones need not be known any more."""
        with self.together() as run:
            run.executemany("DELETE FROM batches WHERE number = ?", [(number,) for number in batches])
            for number in groups:
                self._done += 1
                ((size,),) = run.execute(
                    "UPDATE groups SET batch = NULL, place = NULL, done = ? WHERE number = ? RETURNING bytes",
                    (self._done, number),
                ).fetchall()
                self._kept += size
            for name in forgotten:
                for number, size in run.execute("SELECT number, bytes FROM groups WHERE id = ?", (name,)).fetchall():
                    self._delete_pieces(run, number)
                    run.execute("DELETE FROM groups WHERE number = ?", (number,))
                    self._kept -= size

    def rollback(self, batches: list[int]) -> None:
        """These batches will be served again, in this order and before any other."""
        with self.together() as run:
            for number in reversed(batches):
                self._first -= 1
                run.execute("UPDATE batches SET leased = 0, place = ? WHERE number = ?", (self._first, number))

    def reset(self) -> None:
        """Forgets everything."""
        with self.together() as run:
            for table in ("facts", "batches", "groups", "pieces"):
                run.execute(f"DELETE FROM {table}")  # noqa: S608
        self._count(self.file.connection)

    def tidy(self) -> bool:
        """One short step of moving the log, deleting old bodies and giving space back; whether there is more to do."""
        if self._closed:
            return False
        if self.file.log_size > sqlite.KEPT_LOG_BYTES:
            self.file.checkpoint()
        if self._kept > KEPT_BYTES:
            with self.together() as run:
                number, size = run.execute(
                    "SELECT number, bytes FROM groups WHERE done IS NOT NULL AND bytes > 0 ORDER BY done LIMIT 1"
                ).fetchone()
                self._delete_pieces(run, number)
                run.execute("UPDATE groups SET bytes = 0 WHERE number = ?", (number,))
                self._kept -= size
            return True
        return self.file.shrink(FREE_BYTES, _GIVEN_BACK)

    def _delete_pieces(self, run: Connection, number: int) -> None:
        run.execute("DELETE FROM pieces WHERE place >= ? AND place < ?", (number << _BITS, number + 1 << _BITS))

    # -- questions -----------------------------------------------------------------------------------------

    def body(self, number: int) -> bytes:
        """A group as JSON or in binary form, byte for byte as it was received."""
        with self.file.reading() as connection:
            return _body(connection, number)

    def read(self) -> tuple[dict[str, bytes], list[BatchRow], list[GroupRow]]:
        """All facts, batches and groups, without bodies."""
        with self.file.reading() as connection:
            return _rows(connection)


def read_journal(path: Path) -> tuple[dict[str, bytes], list[BatchRow], list[GroupRow]]:
    """As `Journal.read`, of a journal that may be in use or whose server was killed; nothing is locked or changed.

    Raises JournalError for a file that is none of ours or damaged.
    """
    with _reading(path) as connection:
        _verify(path, connection)
        return _rows(connection)


def read_bodies(path: Path) -> list[bytes]:
    """The bodies that a journal still has, oldest first. Raises as `read_journal`."""
    with _reading(path) as connection:
        numbers = connection.execute("SELECT number FROM groups WHERE bytes > 0 ORDER BY number").fetchall()
        return [_body(connection, number) for (number,) in numbers]


def _rows(run: Connection) -> tuple[dict[str, bytes], list[BatchRow], list[GroupRow]]:
    facts = {name: value.encode() for name, value in run.execute("SELECT name, value FROM facts ORDER BY rowid")}
    batches = run.execute("SELECT number, step, leased, place FROM batches ORDER BY place")
    groups = run.execute("SELECT number, id, size, env, batch, place, done FROM groups ORDER BY done, place, number")
    return facts, [BatchRow(*row) for row in batches], [GroupRow(*row) for row in groups]


def _body(run: Connection, number: int) -> bytes:
    return sqlite.joined_pieces(run, number << _BITS, number + 1 << _BITS)


def _verify(path: Path, run: Connection) -> None:
    """Every fact and body is what was written: SQLite has no checksums of its own outside the log.

    Raises StoreError for the first that is not.
    """
    for name, value, crc in run.execute("SELECT name, value, crc FROM facts"):
        if _fact_crc(name, value.encode()) != crc:
            raise sqlite.damaged(path, f"the entry {name}")
    rows = run.execute("SELECT number, id, size, env, bytes, crc FROM groups WHERE bytes > 0").fetchall()
    for number, name, size, env, length, crc in rows:
        found = _group_crc(name, size, env)
        left = length
        for (content,) in run.execute(
            "SELECT content FROM pieces WHERE place >= ? AND place < ? ORDER BY place",
            (number << _BITS, number + 1 << _BITS),
        ):
            found = zlib.crc32(content, found)
            left -= len(content)
        if found != crc or left:
            raise sqlite.damaged(path, f"the group {name}")


def _fact_crc(name: str, value: bytes) -> int:
    return zlib.crc32(value, zlib.crc32(name.encode()))


def _group_crc(group_id: str, size: int, env: int | None) -> int:
    return zlib.crc32(f"{group_id}\n{size}\n{env}\n".encode())


@contextmanager
def _reading(path: Path) -> Iterator[Connection]:
    with _explained(path), sqlite.reading(path, application_id=APPLICATION_ID, version=VERSION) as connection:
        yield connection


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """StoreError as JournalError, which knows the option and the form that journals had before."""
    try:
        yield
    except StoreError as error:
        if _begins_as_old(path):
            raise JournalError(
                f"{path}: a journal of the form before SQLite, which atropos-livecode reads up to commit 582f97f: end "
                "its run with that version, or give another --journal"
            ) from None
        raise JournalError(f"{error} --journal") from None


def _begins_as_old(path: Path) -> bool:
    """Only asked where SQLite refuses the file, since closing it would release locks that SQLite holds on it."""
    try:
        with path.open("rb") as file:
            return file.read(len(_OLD)) == _OLD
    except OSError:
        return False
