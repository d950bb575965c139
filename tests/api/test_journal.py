"""The journal: what was appended is there, whatever happened to the file's end."""

from __future__ import annotations

import logging
import os
import resource
from pathlib import Path

import pytest

from environments.api_server.journal import MAGIC, Journal, JournalError

PAYLOADS = [b"first", b"", b"third \x00\n" * 50]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A closed journal of PAYLOADS."""
    journal = Journal(tmp_path / "deep" / "journal")
    for payload in PAYLOADS:
        journal.append(payload)
    journal.close()
    return journal.path


def reopened(path: Path) -> list[bytes]:
    """What a journal holds after it is opened again."""
    journal = Journal(path)
    try:
        return [payload for _, payload in journal.records()]
    finally:
        journal.close()


def test_what_was_appended_is_read_again(path: Path) -> None:
    assert reopened(path) == PAYLOADS


def test_a_file_torn_at_any_byte_keeps_every_whole_record_and_takes_new_ones(path: Path) -> None:
    data = path.read_bytes()
    ends = [len(MAGIC)]
    for payload in PAYLOADS:
        ends.append(ends[-1] + 8 + len(payload))
    for length in range(len(data) + 1):
        path.write_bytes(data[:length])
        journal = Journal(path)
        whole = max(sum(end <= length for end in ends) - 1, 0)
        assert [payload for _, payload in journal.records()] == PAYLOADS[:whole]
        journal.append(b"next")
        journal.close()
        assert reopened(path) == [*PAYLOADS[:whole], b"next"]


def test_a_torn_end_is_said(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.truncate(path, path.stat().st_size - 1)
    with caplog.at_level(logging.WARNING):
        reopened(path)
    assert "the last record is torn" in caplog.text


def test_damage_before_the_end_is_no_torn_end(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(MAGIC) + 8] ^= 1
    path.write_bytes(data)
    with pytest.raises(JournalError, match="the record at byte 27 is damaged"):
        Journal(path)


def test_another_file_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_text("something of mine\n")
    with pytest.raises(JournalError, match="not a journal of this version"):
        Journal(path)
    assert path.read_text() == "something of mine\n"


def test_what_does_not_fit_on_the_disk_leaves_the_file_as_it_was(path: Path) -> None:
    journal = Journal(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (journal.size + 100, hard))  # Python ignores SIGXFSZ
    try:
        with pytest.raises(OSError, match="File too large"):
            journal.append(b"x" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    journal.append(b"small")
    journal.close()
    assert reopened(path) == [*PAYLOADS, b"small"]


def test_rewriting_replaces_everything(path: Path) -> None:
    journal = Journal(path)
    journal.rewrite([b"one", b"two"])
    journal.append(b"three")
    journal.close()
    assert reopened(path) == [b"one", b"two", b"three"]
    assert [entry.name for entry in path.parent.iterdir()] == ["journal"]
