"""An append-only file of checked records: what the API server has promised survives its death.

    file    = MAGIC record*
    record  = length (uint32, little-endian) crc32 (uint32) payload[length]

A record counts once it is whole and its checksum fits. `append` returns after fsync. A file that ends within a record
lost nothing that was promised: the torn end is cut off, kept beside the journal, and said. Anything else that does not
fit is damage: nothing is cut off, and the file is refused with the place.
"""

from __future__ import annotations

import fcntl
import logging
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from environments.common.errors import ConfigError, LivecodeError

log = logging.getLogger(__name__)

MAGIC = b"atropos-livecode journal 1\n"
_HEAD = struct.Struct("<II")
LONGEST = 2**30
"""Bytes of the longest payload."""
_PIECE = 1 << 22
_UNWRITTEN = bytes(512)
"""A sector that a power cut left as zeros."""


class JournalError(ConfigError, RuntimeError):
    """A journal that cannot be read, of another version or damaged in its middle; the message names file and fix."""


class RecordTooLong(LivecodeError, ValueError):
    """A record that the journal does not take; the message names its length and the limit."""


class Journal:
    """One journal, open for appending.

    Raises JournalError for a file that is none of ours, OSError where it cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._lock(self._fd)
            self.size = self._check()
        except BaseException:
            os.close(self._fd)
            raise

    def close(self) -> None:
        """Closes the file."""
        os.close(self._fd)

    def _lock(self, fd: int) -> None:
        """Two servers on one file would overwrite each other's records."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            same = os.path.samestat(os.fstat(fd), os.stat(self.path))  # not one that was just compacted away
        except BlockingIOError:
            same = False
        if not same:
            raise JournalError(f"{self.path}: another server keeps this journal: end it, or give another --journal")

    def _check(self) -> int:
        """Length of the whole records; what lies behind them is cut off."""
        length = os.fstat(self._fd).st_size
        found = os.pread(self._fd, len(MAGIC), 0)
        if found != MAGIC:
            if not MAGIC.startswith(found):
                raise JournalError(
                    f"{self.path}: not a journal of this version (it begins with {found!r}): give another --journal"
                )
            os.ftruncate(self._fd, 0)  # nothing was promised before the first line was whole
            os.pwrite(self._fd, MAGIC, 0)
            os.fsync(self._fd)
            _sync_folder(self.path.parent)
            return len(MAGIC)
        end = len(MAGIC)
        for start, payload in self._scan(length):
            end = start + _HEAD.size + len(payload)
        if end < length:
            self._cut(end, length)
        return end

    def _cut(self, end: int, length: int) -> None:
        """Cuts a torn end off, once a copy of it is on disk."""
        copy = self.path.with_name(f"{self.path.name}.torn-{end}")
        with copy.open("wb") as stream:
            stream.write(_read(self._fd, length - end, end))
            stream.flush()
            os.fsync(stream.fileno())
        _sync_folder(self.path.parent)
        log.warning(
            "%s: the last record is torn: %d bytes from byte %d on are moved to %s; nothing acknowledged is in them",
            self.path, length - end, end, copy.name,
        )  # fmt: skip
        os.ftruncate(self._fd, end)
        os.fsync(self._fd)

    def _scan(self, length: int) -> Iterator[tuple[int, bytes]]:
        at = len(MAGIC)
        while at < length:
            size, checksum = _HEAD.unpack(_read(self._fd, _HEAD.size, at).ljust(_HEAD.size, b"\0"))
            payload = _read(self._fd, size, at + _HEAD.size) if at + _HEAD.size + size <= length else b""
            if at + _HEAD.size + size > length or zlib.crc32(payload) != checksum:
                if not is_torn(_read(self._fd, length - at, at)):
                    raise JournalError(
                        f"{self.path}: the record at byte {at} is damaged: the disk changed what was written there, or "
                        "others follow it. Nothing was changed: keep the file for inspection and give another --journal"
                    )
                return
            yield at, payload
            at += _HEAD.size + size

    def records(self) -> Iterator[tuple[int, bytes]]:
        """All payloads with the place where each begins, oldest first."""
        for start, payload in self._scan(self.size):
            yield start + _HEAD.size, payload

    def read(self, at: int, length: int) -> bytes:
        """Bytes of a payload; `at` counts from the file's begin."""
        return _read(self._fd, length, at)

    def append(self, payload: bytes) -> int:
        """One record, on disk when this returns; the place where its payload begins.

        Raises OSError (a full disk) and RecordTooLong; then the file is as before.
        """
        if len(payload) > LONGEST:
            raise RecordTooLong(f"a record of {len(payload)} bytes; the journal takes {LONGEST}: send smaller groups")
        record = _HEAD.pack(len(payload), zlib.crc32(payload)) + payload
        try:
            _write(self._fd, record, self.size)
            os.fsync(self._fd)
        except OSError:
            os.ftruncate(self._fd, self.size)
            raise
        start, self.size = self.size, self.size + len(record)
        return start + _HEAD.size

    def rewrite(self, payloads: Iterable[bytes]) -> list[int]:
        """Replaces everything by these records, all at once: a death in between leaves the old file.

        Returns the place where each payload begins. Raises OSError (a full disk); then the file is as before.
        """
        fresh = self.path.with_name(self.path.name + ".new")
        fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        starts = []
        try:
            _write(fd, MAGIC, 0)
            at = len(MAGIC)
            for payload in payloads:
                record = _HEAD.pack(len(payload), zlib.crc32(payload)) + payload
                _write(fd, record, at)
                starts.append(at + _HEAD.size)
                at += len(record)
            os.fsync(fd)
            fcntl.flock(fd, fcntl.LOCK_EX)
            os.replace(fresh, self.path)
        except BaseException:
            os.close(fd)
            fresh.unlink(missing_ok=True)
            raise
        _sync_folder(self.path.parent)
        os.close(self._fd)
        self._fd, self.size = fd, at
        return starts


def read_records(path: Path) -> Iterator[tuple[int, bytes]]:
    """All whole records of a journal that may be in use, as `Journal.records`; nothing is locked or changed.

    Raises JournalError for a file that is none of ours or damaged in its middle.
    """
    reader = Journal.__new__(Journal)
    reader.path, reader._fd = path, os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = os.pread(reader._fd, len(MAGIC), 0)
        if found != MAGIC:
            raise JournalError(f"{path}: not a journal of this version (it begins with {found!r})")
        reader.size = os.fstat(reader._fd).st_size
        yield from reader.records()
    finally:
        os.close(reader._fd)


def is_torn(tail: bytes) -> bool:
    """Whether a file's last bytes, which are no whole record, are the begin of one whose writing was cut short.

    They are not when a whole record lies among them, when they would be one with another length, or when all of them
    is there and no sector was left unwritten: then what was written, and promised, has changed.
    """
    if len(tail) < _HEAD.size:
        return True
    size, checksum = _HEAD.unpack_from(tail)
    there = len(tail) - _HEAD.size
    if zlib.crc32(tail[_HEAD.size :]) == checksum:
        return False
    if size <= there and _UNWRITTEN not in tail:
        return False
    return not _holds_a_record(tail)


def _holds_a_record(tail: bytes) -> bool:
    """Whether a whole record that is not empty begins at any byte but the first."""
    for start in range(1, len(tail) - _HEAD.size, _PIECE):
        data = np.frombuffer(tail[start : start + _PIECE + 3], np.uint8).astype(np.uint32)
        sizes = data[:-3] | data[1:-2] << 8 | data[2:-1] << 16 | data[3:] << 24
        room = len(tail) - _HEAD.size - start - np.arange(len(sizes))
        for begin in (np.flatnonzero((sizes > 0) & (sizes <= room)) + start).tolist():
            size, checksum = _HEAD.unpack_from(tail, begin)
            if zlib.crc32(memoryview(tail)[begin + _HEAD.size : begin + _HEAD.size + size]) == checksum:
                return True
    return False


def _read(fd: int, size: int, at: int) -> bytes:
    parts = []
    while size:
        part = os.pread(fd, size, at)
        if not part:
            break
        parts.append(part)
        size, at = size - len(part), at + len(part)
    return b"".join(parts)


def _write(fd: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, at)
        view, at = view[written:], at + written


def _sync_folder(folder: Path) -> None:
    """Makes a file's creation or renaming durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
