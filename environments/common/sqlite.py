"""SQLite files in which one process keeps state that must survive its death.

A file has one owner, which holds the lock on `<file>.lock` until its process ends; others may read it at any time,
also after the owner was killed. A committed transaction is on the disk (WAL, synchronous=FULL), an interrupted one did
not happen. Checkpoints are the owner's to ask for: SQLite never starts one in the middle of a change.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from environments.common.errors import ConfigError

PAGE_BYTES = 16384
WAIT_S = 10.0
"""Longest wait for a reader that restores the log after a death; nothing else holds a lock that matters here."""
KEPT_LOG_BYTES = 8 << 20
"""The log's file is cut to this by the first change after a checkpoint."""

_NO_ROOM = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE)
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class StoreError(ConfigError, RuntimeError):
    """A file that cannot be used: another owner's, another program's or version's, or damaged; the message says so."""


class FileInUse(StoreError):
    """Another process owns the file."""


class StateFile:
    """One file, open for its owner.

    Args:
        path: the file; it and its folder are created where they are missing.
        application_id: 32 bits in the file's header that say whose file it is.
        version: of the tables.
        tables: SQL that creates them.
        cache_bytes: of pages in memory; None: as many as SQLite likes.

    Raises:
        StoreError: the file is in use, not of this kind and version, or damaged; nothing is changed then.
        OSError: the file cannot be read or written.
    """

    def __init__(
        self, path: Path, *, application_id: int, version: int, tables: str, cache_bytes: int | None = None
    ) -> None:
        self.path = path
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = _owned(path)
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            sync_folder(path.parent)
            with _mapped(path):
                self.connection = sqlite3.connect(path, timeout=WAIT_S, isolation_level=None, check_same_thread=False)
                if cache_bytes is not None:
                    self.connection.execute(f"PRAGMA cache_size=-{cache_bytes >> 10}")
                self._open(application_id, version, tables)
        except BaseException:
            self.close()
            raise

    def _open(self, application_id: int, version: int, tables: str) -> None:
        run = self.connection.execute
        fresh = not run("SELECT count(*) FROM sqlite_schema").fetchone()[0] and not _application_id(self.connection)
        if not fresh:
            _check_kind(self.connection, self.path, application_id, version)
        else:  # fixed with the first page
            run(f"PRAGMA page_size={PAGE_BYTES}")
            run("PRAGMA auto_vacuum=INCREMENTAL")
        run("PRAGMA journal_mode=WAL")
        run("PRAGMA synchronous=FULL")
        run("PRAGMA wal_autocheckpoint=0")
        run(f"PRAGMA journal_size_limit={KEPT_LOG_BYTES}")
        run("PRAGMA trusted_schema=OFF")
        if fresh:
            with self.transaction():
                for statement in filter(str.strip, tables.split(";")):
                    run(statement)
                run(f"PRAGMA application_id={application_id}")
                run(f"PRAGMA user_version={version}")
        found = run("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise damaged(self.path, found)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Everything in the block or, after an exception or a death, nothing of it.

        Raises OSError (ENOSPC and the like) where it does not fit on the disk.
        """
        with _mapped(self.path):
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield self.connection
                self.connection.execute("COMMIT")
            finally:
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The connection, with SQLite's errors as those of this module."""
        with _mapped(self.path):
            yield self.connection

    def checkpoint(self) -> None:
        """Moves the log into the main file. Raises OSError where that cannot grow; the log keeps everything then."""
        with _mapped(self.path):
            self.connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def give_back(self, size: int) -> int:
        """Gives at most `size` bytes of unused pages back to the disk; how many are unused after that."""
        with _mapped(self.path):
            # not execute, which stops after the first page
            self.connection.executescript(f"PRAGMA incremental_vacuum({max(size // PAGE_BYTES, 1)})")
        return self.unused

    def shrink(self, keep: int, step: int) -> bool:
        """Gives `step` bytes back where more than `keep` and half of the file are unused; whether more is left."""
        unused = self.unused
        if unused <= keep or 2 * unused <= self.allocated:
            return False
        return self.give_back(step) < unused

    @property
    def unused(self) -> int:
        """Bytes of the file that hold nothing and will be used again."""
        return int(self.connection.execute("PRAGMA freelist_count").fetchone()[0]) * PAGE_BYTES

    @property
    def allocated(self) -> int:
        """Bytes of the file once the log is moved into it."""
        return int(self.connection.execute("PRAGMA page_count").fetchone()[0]) * PAGE_BYTES

    @property
    def size(self) -> int:
        """Bytes of the file and its log; does not touch the connection."""
        return sum(_size(path) for path in (self.path, _log(self.path)))

    @property
    def log_size(self) -> int:
        """Bytes of the log."""
        return _size(_log(self.path))

    def close(self) -> None:
        """Closes the file; the log is moved into it first."""
        if hasattr(self, "connection"):
            self.connection.close()
        os.close(self._lock)


@contextmanager
def reading(path: Path, *, application_id: int, version: int) -> Iterator[sqlite3.Connection]:
    """A file's state at this moment, read only: beside its owner, or after it was killed.

    Raises StoreError as StateFile.
    """
    # In a folder that cannot be written SQLite could not share the log with others; without a log there are none.
    alone = not _log(path).exists() and not os.access(path.parent, os.W_OK)
    uri = f"{path.absolute().as_uri()}?mode=ro{'&immutable=1' if alone else ''}"
    try:
        with _mapped(path), closing(sqlite3.connect(uri, uri=True, timeout=WAIT_S, isolation_level=None)) as connection:
            connection.execute("BEGIN")
            _check_kind(connection, path, application_id, version)
            yield connection
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror})") from None


def joined_pieces(connection: sqlite3.Connection, first: int, after: int) -> bytes:
    """The content of the table `pieces` at the places from `first` to before `after`, in their order."""
    whole = io.BytesIO()
    rows = connection.execute(
        "SELECT content FROM pieces WHERE place >= ? AND place < ? ORDER BY place", (first, after)
    )
    for (content,) in rows:
        whole.write(content)
    return whole.getvalue()


def sync_folder(folder: Path) -> None:
    """Makes a file's creation or renaming durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _owned(path: Path) -> int:
    """The lock that makes this process the owner; a file of its own, since closing any descriptor of the main file
    would release SQLite's own locks on it."""
    fd = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise FileInUse(f"{path}: another process keeps this file: end it, or give another") from None
    return fd


def _check_kind(connection: sqlite3.Connection, path: Path, application_id: int, version: int) -> None:
    found = _application_id(connection), int(connection.execute("PRAGMA user_version").fetchone()[0])
    if found[0] != application_id:
        raise StoreError(f"{path}: not a file of this kind (application id {found[0]:#x}): give another")
    if found[1] != version:
        raise StoreError(f"{path}: its tables are of version {found[1]}, this version reads {version}: give another")


def _application_id(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA application_id").fetchone()[0])


@contextmanager
def _mapped(path: Path) -> Iterator[None]:
    """SQLite's errors as StoreError for a file that cannot be used, OSError for a disk that does not take it."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
        if code & 0xFF in _DAMAGE:
            raise damaged(path, str(error)) from None
        if code in _NO_ROOM:
            number = errno.ENOSPC if code == sqlite3.SQLITE_FULL else _write_error(path)
            raise OSError(number, os.strerror(number), str(path)) from None
        if code & 0xFF in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_BUSY):
            raise OSError(errno.EIO, str(error), str(path)) from None
        raise


def damaged(path: Path, found: str) -> StoreError:
    """The error for a file with content that is not what was written."""
    return StoreError(
        f"{path}: damaged, or not a file of this version ({found}). Nothing was changed: keep the file for inspection "
        "and give another"
    )


def _write_error(path: Path) -> int:
    """Why the disk took no more of a file: SQLite does not tell a quota or a limit of files from a broken disk."""
    try:
        with tempfile.TemporaryFile(dir=path.parent, buffering=0) as probe:
            os.pwrite(probe.fileno(), bytes(PAGE_BYTES), max(_size(path), _size(_log(path))))
    except OSError as error:
        return error.errno or errno.EIO
    return errno.EIO


def _log(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
