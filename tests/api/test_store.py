"""The store: first in, first out; nothing lost, nothing twice; a restart changes nothing."""

from __future__ import annotations

import copy
import random
import resource
from pathlib import Path
from typing import Any

import pytest

from environments.api_server import journal as journals
from environments.api_server import store as store_module
from environments.api_server.journal import Journal
from environments.api_server.store import Entry, StepError, Store
from environments.common import sqlite

REGISTRATION = {"batch_size": 4, "starting_step": 0}
ENV = {"group_size": 4, "desired_name": "x", "min_batch_allocation": None}


def entry(name: str, size: int = 2, env: int | None = None) -> Entry:
    """A group of this id."""
    return Entry(name, size, env, b'{"name":"' + name.encode() + b'"}')


def leased(store: Store, step: int) -> list[str] | None:
    """Ids of the step's batch."""
    lease = store.lease(step, 4)
    return None if lease is None else [held.group_id for held in lease.entries]


def state(store: Store) -> Any:
    """All of a store but its journal."""
    found = {name: copy.deepcopy(value) for name, value in vars(store).items() if name != "journal"}
    raws = {held.group_id: store.raw(held) for held in store._held()}
    return found | {"buffers": {env: held for env, held in store.buffers.items() if held}, "raws": raws}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store with a journal and a trainer."""
    made = Store(Journal(tmp_path / "journal"))
    made.register(REGISTRATION)
    return made


def test_batches_come_in_the_order_of_arrival(store: Store) -> None:
    for name in "abcdef":
        store.add(entry(name))
    assert [leased(store, step) for step in range(4)] == [["a", "b"], ["c", "d"], ["e", "f"], None]


def test_the_same_step_gets_the_same_batch_again(store: Store) -> None:
    for name in "abcd":
        store.add(entry(name))
    assert leased(store, 0) == leased(store, 0) == ["a", "b"]


def test_a_group_that_does_not_fit_stays_for_the_next_batch(store: Store) -> None:
    for name, size in (("a", 3), ("b", 2), ("c", 1), ("d", 2)):
        store.add(entry(name, size))
    assert leased(store, 0) == ["a", "c"]
    assert leased(store, 1) == ["b", "d"]


def test_small_groups_of_an_environment_wait_until_they_add_up(store: Store) -> None:
    store.register_env(ENV)
    assert [store.add(entry("a", 3, 0)), store.add(entry("b", 4, 0)), store.add(entry("c", 1, 0))] == [
        "buffered",
        "received",
        "buffered",
    ]
    assert leased(store, 0) == ["b"]
    assert leased(store, 1) == ["a", "c"]


def test_an_id_is_taken_once_waiting_leased_or_done(store: Store) -> None:
    store.add(entry("a"))
    assert store.add(entry("a")) == "duplicate"
    store.add(entry("b"))
    leased(store, 0)
    assert store.add(entry("a")) == "duplicate"
    assert store.ack(1) == 2
    assert store.add(entry("b")) == "duplicate"


def test_a_rollback_serves_the_same_batches_again_before_anything_else(store: Store) -> None:
    for name in "abcdefgh":
        store.add(entry(name))
    for step in range(3):
        leased(store, step)
    assert store.ack(1) == 2
    assert store.rollback(1) == 2
    assert [leased(store, step) for step in (1, 2, 3)] == [["c", "d"], ["e", "f"], ["g", "h"]]


def test_a_step_before_the_acknowledged_one_is_refused(store: Store) -> None:
    for name in "abcd":
        store.add(entry(name))
    leased(store, 0)
    store.ack(1)
    with pytest.raises(StepError, match=r"step 0 is before the acknowledged checkpoint of step 1.*another journal"):
        store.rollback(0)
    assert leased(store, 1) == ["c", "d"]


def test_with_a_journal_no_group_stays_in_memory(store: Store) -> None:
    store.add(entry("a"))
    assert store.waiting["a"].raw is None
    assert store.raw(store.waiting["a"]) == b'{"name":"a"}'


def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that keeps a journal small happens at once."""
    monkeypatch.setattr(journals, "KEPT_BYTES", 0)
    monkeypatch.setattr(journals, "FREE_BYTES", 0)
    monkeypatch.setattr(sqlite, "KEPT_LOG_BYTES", 0)


def tidied(store: Store) -> Store:
    while store.tidy():
        pass
    return store


def test_a_journal_that_cannot_be_made_smaller_goes_on(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    small(monkeypatch)
    for name in "abcdef":
        store.add(entry(name))
    assert store.journal is not None
    leased(store, 0)
    assert store.ack(1) == 2
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (sqlite.PAGE_BYTES + 1, hard))  # Python ignores SIGXFSZ
    try:
        assert not store.tidy()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "cannot be made smaller (File too large); it stays in use as it is" in caplog.text
    assert leased(store, 1) == ["c", "d"]
    before = state(store)
    store.close()
    assert state(Store(Journal(store.journal.path))) == before


def test_old_bodies_are_deleted_and_their_space_is_given_back(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.register_env(ENV)
    store.set_contract("trainer", {"model": "m"})
    for number in range(40):
        store.add(Entry(f"g{number}", 4, 0, bytes([number]) * 300_000))
    store.add(entry("part", 1, 0))
    for step in range(30):
        leased(store, step)
    assert store.journal is not None
    store.rollback(28)
    store.ack(25)
    path = store.journal.path
    tidied(store)
    assert len(journals.read_bodies(path)) == 41, "the newest acknowledged ones are kept"
    size = store.journal.size
    small(monkeypatch)
    tidied(store)
    assert len(journals.read_bodies(path)) == 16
    assert store.add(entry("g3")) == "duplicate"
    before = state(store)
    store.close()
    assert path.stat().st_size < 16 * 400_000 < size
    assert state(Store(Journal(path))) == before


def test_several_changes_that_cannot_all_be_written_did_not_happen(store: Store) -> None:
    store.add(entry("a"))
    before = state(store)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            store.add_all([entry("b"), Entry("large", 2, None, bytes(4 << 20)), entry("c")])
        assert state(store) == before
        assert store.add_all([entry("b"), entry("b")]) == ["received", "duplicate"]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert leased(store, 0) == ["a", "b"]


def test_only_so_many_ids_of_acknowledged_groups_are_kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "REMEMBERED_IDS", 3)
    for name in "abcdef":
        store.add(entry(name))
    for step in range(3):
        leased(store, step)
        store.ack(step + 1)
    assert list(store.done) == ["d", "e", "f"]
    assert store.journal is not None
    store.close()
    again = Store(Journal(store.journal.path))
    assert state(again) == state(store) | {"raws": {}}
    assert again.add(entry("a")) == "received"


@pytest.mark.parametrize("seed", range(20))
def test_a_restart_at_any_moment_changes_nothing(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    rng = random.Random(seed)
    path = tmp_path / "journal"
    store = Store(Journal(path))
    store.register(REGISTRATION)
    store.register_env(ENV)
    sent: list[str] = []
    trained: dict[int, list[str]] = {}
    durable = step = 0
    for _ in range(300):
        action = rng.random()
        if action < 0.45:
            sent.append(f"g{len(sent)}")
            store.add(entry(sent[-1], rng.choice([1, 2, 4, 4]), rng.choice([None, 0])))
        elif action < 0.75:
            found = leased(store, step)
            if found is not None:
                trained[step] = found
                step += 1
        elif action < 0.82:
            durable = step
            store.ack(durable)
        elif action < 0.88:  # the trainer dies
            again = {number: trained.pop(number) for number in sorted(trained) if number >= durable}
            store.rollback(durable)
            step = durable
            for number in again:
                assert leased(store, number) == again[number]
                trained[number] = again[number]
                step = number + 1
        else:  # the server dies
            before = state(store)
            store.close()
            store = Store(Journal(path))
            assert state(store) == before
        if action > 0.7:
            store.tidy()
    served = [name for number in sorted(trained) for name in trained[number]]
    held = [*store.waiting, *(one.group_id for buffer in store.buffers.values() for one in buffer)]
    assert sorted(served + held) == sorted(sent), "every group once: trained, or still held"
