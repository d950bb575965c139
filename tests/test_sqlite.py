"""State files: one owner, readers at any time, all or nothing, and an error that says what is wrong with a file."""

from __future__ import annotations

import errno
import os
import resource
import signal
import sqlite3
from pathlib import Path

import pytest

from environments.common.sqlite import StateFile, StoreError, reading

KIND = 0x74657374
TABLES = "CREATE TABLE pairs (number INTEGER PRIMARY KEY, value BLOB) STRICT; CREATE TABLE other (x TEXT) STRICT"


def opened(path: Path, version: int = 1) -> StateFile:
    return StateFile(path, application_id=KIND, version=version, tables=TABLES)


def values(path: Path) -> list[bytes]:
    with reading(path, application_id=KIND, version=1) as connection:
        return [value for (value,) in connection.execute("SELECT value FROM pairs ORDER BY number")]


def put(file: StateFile, *items: bytes) -> None:
    with file.transaction() as connection:
        for item in items:
            connection.execute("INSERT INTO pairs (value) VALUES (?)", (item,))


def test_a_committed_change_is_read_beside_the_owner_and_after_it(tmp_path: Path) -> None:
    file = opened(tmp_path / "deep" / "state")
    put(file, b"a", b"b")
    assert values(file.path) == [b"a", b"b"]
    file.checkpoint()
    put(file, b"c")
    assert values(file.path) == [b"a", b"b", b"c"]
    file.close()
    assert values(file.path) == [b"a", b"b", b"c"]


def test_a_change_that_fails_did_not_happen(tmp_path: Path) -> None:
    file = opened(tmp_path / "state")

    def fail() -> None:
        with file.transaction() as connection:
            connection.execute("INSERT INTO pairs (value) VALUES (x'00')")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    put(file, b"a")
    assert values(file.path) == [b"a"]
    file.close()


def test_after_a_kill_what_was_committed_is_there_and_what_was_not_is_not(tmp_path: Path) -> None:
    path = tmp_path / "state"
    child = os.fork()
    if child == 0:
        file = opened(path)
        put(file, b"a")
        with file.transaction() as connection:
            connection.execute(
                "INSERT INTO pairs (value) VALUES (?)", (bytes(10 << 20),)
            )  # beyond the cache: in the log
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert values(path) == [b"a"]
    file = opened(path)
    put(file, b"b")
    file.close()
    assert values(path) == [b"a", b"b"]


def test_a_file_has_one_owner(tmp_path: Path) -> None:
    file = opened(tmp_path / "state")
    with pytest.raises(StoreError, match="another process keeps this file"):
        opened(tmp_path / "state")
    file.close()
    opened(tmp_path / "state").close()


def test_a_folder_is_no_file_and_nothing_is_put_beside_it(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        opened(tmp_path / "folder")
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def test_files_of_another_kind_or_version_are_refused_and_left_alone(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.write_bytes(b"some notes of mine, not to be overwritten\n" * 100)
    foreign = tmp_path / "foreign"
    connection = sqlite3.connect(foreign)
    connection.execute("CREATE TABLE t (x)")
    connection.close()
    newer = tmp_path / "newer"
    opened(newer, version=2).close()
    for path, reason in ((notes, "not a database"), (foreign, "not a file of this kind"), (newer, "version 2")):
        before = path.read_bytes()
        with pytest.raises(StoreError, match=reason):
            opened(path)
        with pytest.raises(StoreError, match=reason):
            values(path)
        assert path.read_bytes() == before


def test_what_does_not_fit_is_an_os_error_with_its_number_and_the_rest_goes_on(tmp_path: Path) -> None:
    file = opened(tmp_path / "state")
    put(file, b"a")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))  # Python ignores SIGXFSZ
    try:
        with pytest.raises(OSError, match="File too large") as raised:
            put(file, bytes(4 << 20))
        assert raised.value.errno == errno.EFBIG
        put(file, b"b")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert values(file.path) == [b"a", b"b"]
    file.close()


def test_space_that_is_not_used_is_given_back_in_parts(tmp_path: Path) -> None:
    file = opened(tmp_path / "state")
    put(file, *[bytes(1 << 20)] * 8)
    with file.transaction() as connection:
        connection.execute("DELETE FROM pairs WHERE number < 8")
    assert file.unused >= 7 << 20
    assert file.give_back(2 << 20) == pytest.approx(5 << 20, abs=1 << 18)
    assert file.give_back(16 << 20) == 0
    file.checkpoint()
    assert file.path.stat().st_size < 2 << 20
    file.close()


def test_a_read_only_folder_is_read_where_the_owner_has_ended(tmp_path: Path) -> None:
    file = opened(tmp_path / "folder" / "state")
    put(file, b"a")
    file.close()
    (tmp_path / "folder").chmod(0o500)
    try:
        assert values(file.path) == [b"a"]
    finally:
        (tmp_path / "folder").chmod(0o700)
