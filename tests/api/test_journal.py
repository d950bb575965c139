"""The journal's file: read beside its server and after its death, one server, and damage or another file refused."""

from __future__ import annotations

import os
import signal
import sqlite3
import struct
import zlib
from pathlib import Path

import pytest

from environments.api_server import journal as journals
from environments.api_server.journal import Journal, JournalError, read_bodies, read_journal
from environments.api_server.store import Entry, Store
from environments.common.sqlite import PAGE_BYTES

REGISTRATION = {"batch_size": 4, "starting_step": 0}
BODIES = {name: name.encode() * 100_000 for name in "abcdef"}


def filled(path: Path) -> Store:
    """Two batches leased, the first acknowledged; two groups wait."""
    store = Store(Journal(path))
    store.register(REGISTRATION)
    store.set_contract("trainer", {"steps": 3})
    for name, body in BODIES.items():
        store.add(Entry(name, 2, None, body))
    store.lease(0, 4)
    store.lease(1, 4)
    store.ack(1)
    return store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A closed journal."""
    store = filled(tmp_path / "deep" / "journal")
    store.close()
    return tmp_path / "deep" / "journal"


def held(path: Path) -> tuple[list[str], list[str], list[str]]:
    """Ids that wait, that are leased, that are done with."""
    store = Store.read(path)
    return list(store.waiting), [one.group_id for lease in store.leases for one in lease.entries], list(store.done)


def test_it_is_read_beside_its_server_and_after_it_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    child = os.fork()
    if child == 0:
        filled(path)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    for _ in range(2):
        assert held(path) == (["e", "f"], ["c", "d"], ["a", "b"])
        assert read_bodies(path) == list(BODIES.values())
        store = Store(Journal(path))
        assert held(path) == (["e", "f"], ["c", "d"], ["a", "b"])
        assert [store.raw(entry) for entry in store.waiting.values()] == [BODIES["e"], BODIES["f"]]
        store.close()


def test_a_clean_end_leaves_one_file_and_its_lock(path: Path) -> None:
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["journal", "journal.lock"]


def test_one_journal_has_one_server(path: Path) -> None:
    journal = Journal(path)
    with pytest.raises(JournalError, match="another process keeps this file: end it, or give another --journal"):
        Journal(path)
    journal.close()
    Journal(path).close()


def test_a_changed_body_or_fact_is_damage_and_the_file_is_kept(path: Path) -> None:
    whole = path.read_bytes()
    for content, named in ((BODIES["c"][:50], "the group c"), (b'"steps":3', "the entry contract trainer")):
        data = bytearray(whole)
        data[whole.index(content) + 8] ^= 1
        path.write_bytes(data)
        for read in (Journal, read_journal):
            with pytest.raises(JournalError, match=f"damaged.*{named}.*give another --journal"):
                read(path)
        assert path.read_bytes() == bytes(data)


@pytest.mark.parametrize("page", range(8))
def test_a_page_that_the_disk_lost_is_damage(path: Path, page: int) -> None:
    data = bytearray(path.read_bytes())
    for start in range(page * PAGE_BYTES, len(data), 8 * PAGE_BYTES):
        data[start : start + PAGE_BYTES] = b"\xff" * len(data[start : start + PAGE_BYTES])
    path.write_bytes(data)
    with pytest.raises(JournalError, match=f"{path}: "):
        Journal(path)
    assert path.read_bytes() == bytes(data)


def test_a_file_that_is_cut_off_is_damage(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(JournalError, match="damaged"):
        Journal(path)


def test_a_journal_of_the_form_before_sqlite_is_refused_with_the_version_that_reads_it(tmp_path: Path) -> None:
    payload = b'{"kind":"start"}\n'
    old = journals._OLD + struct.pack("<II", len(payload), zlib.crc32(payload)) + payload
    path = tmp_path / "journal"
    path.write_bytes(old)
    for read in (Journal, read_journal):
        with pytest.raises(JournalError, match="form before SQLite, which atropos-livecode reads up to commit 582f97f"):
            read(path)
    assert path.read_bytes() == old


@pytest.mark.parametrize("content", [b"notes", b"something of mine\n" * 2000])
def test_another_file_is_not_touched(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes"
    path.write_bytes(content)
    for read in (Journal, read_journal):
        with pytest.raises(JournalError, match="not a file of this version"):
            read(path)
    assert path.read_bytes() == content


def test_another_programs_database_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "other"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE mine (x)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(JournalError, match="not a file of this kind"):
        Journal(path)
    assert path.read_bytes() == before
