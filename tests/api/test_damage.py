"""A journal that the disk changed is refused and left as it is; only a torn end is cut off, and a copy of it kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from environments.api_server import journal as journals
from environments.api_server.journal import MAGIC, Journal, JournalError, RecordTooLong, read_records
from environments.api_server.store import Store

PAYLOADS = [json.dumps({"kind": "group", "id": f"g{n}", "tokens": list(range(40 + n))}).encode() for n in range(6)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A closed journal of PAYLOADS."""
    journal = Journal(tmp_path / "journal")
    for payload in PAYLOADS:
        journal.append(payload)
    journal.close()
    return journal.path


def places() -> list[int]:
    """Where each record begins, and the file's end."""
    found = [len(MAGIC)]
    for payload in PAYLOADS:
        found.append(found[-1] + 8 + len(payload))
    return found


@pytest.mark.parametrize("record", range(len(PAYLOADS)))
@pytest.mark.parametrize("value", [0, 1, 70, 2**8, 2**16, 2**31, 2**32 - 1])
def test_a_changed_length_of_any_record_is_damage(path: Path, record: int, value: int) -> None:
    data, at = bytearray(path.read_bytes()), places()[record]
    data[at : at + 4] = value.to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(JournalError, match=f"the record at byte {at} is damaged"):
        Journal(path)
    with pytest.raises(JournalError, match=f"the record at byte {at} is damaged"):
        list(read_records(path))
    assert path.read_bytes() == bytes(data)
    assert [entry.name for entry in path.parent.iterdir()] == ["journal"]


def test_a_changed_byte_anywhere_is_damage_and_the_file_is_kept(path: Path) -> None:
    whole = path.read_bytes()
    for place in range(len(MAGIC), len(whole), 3):
        data = bytearray(whole)
        data[place] ^= 0x10
        path.write_bytes(data)
        at = max(start for start in places() if start <= place)
        with pytest.raises(JournalError, match=f"byte {at} is damaged"):
            Journal(path)
        assert path.read_bytes() == bytes(data)


@pytest.mark.parametrize("cut", [1, 5, 9, 30])
def test_a_torn_end_is_cut_off_and_kept_beside_the_journal(path: Path, cut: int) -> None:
    data, at = path.read_bytes(), places()[-2]
    path.write_bytes(data[:-cut])
    Journal(path).close()
    assert path.read_bytes() == data[:at]
    assert path.with_name(f"journal.torn-{at}").read_bytes() == data[at:-cut]


def test_sectors_that_a_power_cut_left_unwritten_are_a_torn_end(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.append(PAYLOADS[0])
    at = journal.size
    journal.append(b"x" * 4000)
    journal.close()
    data = bytearray(journal.path.read_bytes())
    data[at + 1024 : at + 2048] = bytes(1024)
    journal.path.write_bytes(data)
    Journal(journal.path).close()
    assert journal.path.stat().st_size == at


@pytest.mark.parametrize("zeros", [3, 8, 100, 5000])
def test_zeros_behind_the_last_record_lose_nothing(tmp_path: Path, zeros: int) -> None:
    store = Store(Journal(tmp_path / "journal"))
    store.set_contract("trainer", {"steps": 3})
    assert store.journal is not None
    store.journal.close()
    with store.journal.path.open("ab") as stream:
        stream.write(bytes(zeros))
    again = Store(Journal(tmp_path / "journal"))
    again.set_contract("environment", {"steps": 3})
    assert again.journal is not None
    again.journal.close()
    assert set(Store(Journal(tmp_path / "journal")).contracts) == {"trainer", "environment"}


def test_a_record_above_the_limit_is_not_begun(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "LONGEST", 1000)
    journal = Journal(path)
    journal.append(b"x" * 1000)
    with pytest.raises(RecordTooLong, match="1001 bytes; the journal takes 1000"):
        journal.append(b"x" * 1001)
    journal.append(b"y")
    journal.close()
    assert [payload for _, payload in read_records(path)][-2:] == [b"x" * 1000, b"y"]
