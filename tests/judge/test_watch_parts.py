"""What the watch reads, on folders that look as the kernel's: processes that go, hidden files, a slow host."""

from __future__ import annotations

import errno
import fcntl
import io
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from verifier_app.judge import shared_memory, watchdog
from verifier_app.judge.layers import capabilities, memory_group
from verifier_app.judge.layers.capabilities import HostCapabilities
from verifier_app.judge.layers.memory_group import MemoryGroups, Unusable
from verifier_app.judge.refusals import Refusals
from verifier_app.judge.shared_memory import Hidden, Loose
from verifier_app.judge.watchdog import PATIENCE, Heartbeat, Watchdog

MAPPED = "7f0000000000-7f0000100000 rw-s 00000000 00:01 77                      /dev/zero (deleted)\n"
PLAIN = "00400000-00500000 r-xp 00000000 08:01 5                          /bin/sleep\n"


@pytest.fixture
def proc(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A folder in place of /proc, and its descriptor."""
    folder = tmp_path / "proc"
    folder.mkdir()
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    yield folder, fd
    os.close(fd)


def process(proc: Path, pid: str, maps: str, page_tables_kb: int | None = 8, held: bytes | None = None) -> None:
    folder = proc / pid
    (folder / "map_files").mkdir(parents=True)
    (folder / "maps").write_text(maps)
    if page_tables_kb is not None:
        (folder / "status").write_text(f"Name:\tx\nVmPTE:\t      {page_tables_kb} kB\n")
    if held is not None:
        (folder / "map_files" / "7f0000000000-7f0000100000").write_bytes(held)


def test_a_shared_object_counts_once_by_its_pages_however_many_map_it(proc: tuple[Path, int]) -> None:
    folder, fd = proc
    process(folder, "11", PLAIN + MAPPED, held=b"x" * 40_000)
    process(folder, "12", MAPPED, held=b"x" * 40_000)
    blocks = (folder / "11/map_files/7f0000000000-7f0000100000").stat().st_blocks * 512
    assert blocks >= 40_000
    assert Hidden().bytes(fd, {"11": b"1", "12": b"1"}) == blocks + 2 * (8 << 10)


def test_what_goes_while_it_is_looked_at_counts_nothing(proc: tuple[Path, int]) -> None:
    folder, fd = proc
    process(folder, "11", MAPPED)  # its object is gone from map_files
    hidden = Hidden()
    assert hidden.bytes(fd, {"11": b"1", "12": b"1"}) == 8 << 10
    assert hidden._known == {}  # both are read anew
    process(folder, "13", PLAIN, page_tables_kb=None)
    assert hidden.bytes(fd, {"13": b"1"}) == 0


def test_an_object_that_cannot_be_read_counts_with_all_that_is_mapped(proc: tuple[Path, int]) -> None:
    folder, fd = proc
    process(folder, "14/task/15", MAPPED)  # a thread without its main one
    assert Hidden().bytes(fd, {"14/task/15": b"1"}) == (1 << 20) + (8 << 10)
    process(folder, "16", MAPPED)
    (folder / "16/map_files").rmdir()
    (folder / "16/map_files").write_text("no folder")
    assert Hidden().bytes(fd, {"16": b"1"}) == (1 << 20) + (8 << 10)


def test_mappings_are_read_again_when_the_size_changes_and_now_and_then(proc: tuple[Path, int]) -> None:
    folder, fd = proc
    process(folder, "11", PLAIN)
    hidden = Hidden()
    assert hidden.bytes(fd, {"11": b"1"}) == 8 << 10
    (folder / "11/maps").write_text(MAPPED)
    (folder / "11/map_files/7f0000000000-7f0000100000").write_bytes(b"x" * 8192)
    for _ in range(shared_memory.REREAD - 1):
        assert hidden.bytes(fd, {"11": b"1"}) == 8 << 10
    assert hidden.bytes(fd, {"11": b"1"}) > 8 << 10
    (folder / "11/maps").write_text(PLAIN)
    assert hidden.bytes(fd, {"11": b"2"}) == 8 << 10


@pytest.fixture
def loose(tmp_path: Path) -> Loose:
    for name in ("own", "shared"):
        (tmp_path / name).mkdir()
    return Loose(str(tmp_path / "own"), [str(tmp_path / "shared"), str(tmp_path / "none")], os.getuid(), since=0.0)


def test_files_count_by_their_size_on_disk_and_others_files_do_not(
    loose: Loose, tmp_path: Path, proc: tuple[Path, int]
) -> None:
    (tmp_path / "own/inner").mkdir()
    for path in ("own/inner/a", "shared/b", "elsewhere"):
        (tmp_path / path).write_bytes(b"x" * 5000)
    (tmp_path / "own/link").symlink_to(tmp_path / "elsewhere")
    os.link(tmp_path / "own/inner/a", tmp_path / "own/again")
    on_disk = sum(
        os.lstat(tmp_path / path).st_blocks * 512 for path in ("own/inner", "own/inner/a", "own/link", "shared/b")
    )
    assert loose.bytes(proc[1], []) == on_disk
    fds = proc[0] / "21" / "fd"
    fds.mkdir(parents=True)
    (fds / "3").symlink_to(tmp_path / "elsewhere")  # open, below none of the folders
    (fds / "4").symlink_to(tmp_path / "own/inner/a")  # counted already
    (fds / "5").symlink_to("/nowhere")
    more = (tmp_path / "elsewhere").stat().st_blocks * 512
    assert loose.bytes(proc[1], ["21", "22"]) == on_disk + more
    loose.since = 2**40  # changed before the rollout began: not its own
    assert loose.bytes(proc[1], ["21"]) == on_disk - (tmp_path / "shared/b").stat().st_blocks * 512


def test_more_files_or_deeper_ones_than_are_looked_at_exceed_every_limit(
    loose: Loose, tmp_path: Path, proc: tuple[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own/a/b/c").mkdir(parents=True)
    monkeypatch.setattr(shared_memory, "MAX_DEPTH", 3)
    assert loose.bytes(proc[1], []) == 1 << 62
    monkeypatch.setattr(shared_memory, "MAX_DEPTH", 5)
    assert loose.bytes(proc[1], []) < 1 << 20
    monkeypatch.setattr(shared_memory, "MAX_LOOSE_FILES", 2)
    assert loose.bytes(proc[1], []) == 1 << 62


# -- clocks ----------------------------------------------------------------------------------------------------------


def test_the_heartbeat_is_measured_against_its_best(monkeypatch: pytest.MonkeyPatch) -> None:
    spent = iter([0.010] * 20 + [0.011, 0.040, 0.005, 0.010])
    monkeypatch.setattr(Heartbeat, "_spin", staticmethod(lambda: next(spent)))
    beat = Heartbeat()
    assert beat.starved_share() == 0.0  # a tenth is noise
    assert beat.starved_share() == pytest.approx(0.75)
    assert beat.starved_share() == 0.0  # a new best
    assert beat.starved_share() == pytest.approx(0.5)


def test_the_heartbeat_is_calibrated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "_heartbeat", None)
    first = watchdog.heartbeat()
    assert first.best_s > 0
    assert watchdog.heartbeat() is first


def test_where_the_kernel_does_not_say_how_long_a_thread_waited_it_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError

    monkeypatch.setattr(watchdog, "open", absent, raising=False)
    assert watchdog.own_wait_ns() == 0


def starved(watch: Any, **seen: Any) -> float:
    sample = {"pids": [1], "awake": False, "waited_ns": {}, "runnable": True} | seen
    return Watchdog._starved(watch, SimpleNamespace(**sample), 2.0, 0.5, 0.25)  # type: ignore[arg-type]


def test_starvation_is_what_the_kernel_says_or_is_estimated_from_what_did_not_run() -> None:
    there = SimpleNamespace(there=True, waited_ns={"1": 10**9})
    assert starved(there, waited_ns={"1": 3 * 10**9, "2": 10**8}) == 2.0  # the longest wait of one task
    assert starved(there) == 1.5  # runnable, and half a second of CPU time in two
    assert starved(there, runnable=False) == 0.5  # the heartbeat's share
    assert starved(there, pids=[], awake=True) == 2.0  # between two tests the host clears up
    assert starved(there, pids=[]) == 0.0  # a zygote that sleeps has nothing to wait for
    new = SimpleNamespace(there=False, waited_ns={})
    assert starved(new, pids=[]) == 2.0  # it is being started
    assert (starved(new), new.there) == (2.0, True)


class Overdue(Watchdog):
    """A watch whose test has run far beyond its limit, nearly all of it without a core."""

    def _clock(self, seen: Any, now: float, late: float) -> None:
        self.start = self.moved = now - self.time_limit_s * (PATIENCE + 1)
        self.starved_s = self.time_limit_s * (PATIENCE + 0.5)


def test_a_test_that_never_gets_a_core_is_the_hosts_fault() -> None:
    fd = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    try:
        watch = Overdue(fd, os.getpid(), False, 1.0, 1 << 40, [])
        assert watch.check() == "host_overloaded"
    finally:
        os.close(fd)


# -- memory groups ---------------------------------------------------------------------------------------------------


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryGroups]:
    """Groups in a folder, with the files that the kernel makes in each."""
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    made = MemoryGroups(fd)
    mkdir = os.mkdir

    def as_the_kernel(path: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        mkdir(path, mode, dir_fd=dir_fd)
        for name in FILES:
            (tmp_path / path / name).write_text("4096\n" if name == "memory.current" else "")

    monkeypatch.setattr(os, "mkdir", as_the_kernel)
    yield made
    os.close(fd)


FILES = (
    *("cgroup.procs", "memory.oom.group", "memory.current", "memory.max", "memory.stat", "memory.events"),
    "memory.events.local",
)


def test_a_group_is_made_to_be_killed_as_a_whole_and_is_joined_by_its_own_process(
    groups: MemoryGroups, tmp_path: Path
) -> None:
    groups.make("1")
    folder = tmp_path / f"{groups.prefix}1"
    assert (folder / "memory.oom.group").read_text() == "1"
    assert not (folder / "memory.swap.max").exists()  # a kernel without swap
    (folder / "memory.swap.max").write_text("max")
    fd = groups.join("1")
    assert (folder / "cgroup.procs").read_text() == "0"
    assert os.readlink(f"/proc/self/fd/{fd}") == str(folder)
    os.close(fd)


def test_a_group_that_cannot_be_joined_leaves_no_descriptor(groups: MemoryGroups, tmp_path: Path) -> None:
    groups.make("1")
    (tmp_path / f"{groups.prefix}1" / "cgroup.procs").unlink()
    before = os.listdir("/proc/self/fd")
    with pytest.raises(FileNotFoundError):
        groups.join("1")
    assert os.listdir("/proc/self/fd") == before


def test_a_kernel_that_counts_nothing_is_found_out(groups: MemoryGroups, tmp_path: Path) -> None:
    groups.make("probe")
    with pytest.raises(Unusable, match="the kernel counts nothing"):
        memory_group.try_counting(groups, "probe")
    roof = (tmp_path / f"{groups.prefix}probe" / "memory.max").read_text()
    assert int(roof) == 4096 + memory_group.TRIED_BYTES + memory_group.SLACK_BYTES


@pytest.mark.parametrize(("root", "counts", "used"), [(True, True, True), (True, False, False), (False, True, False)])
def test_groups_are_used_where_the_kernel_counts_in_them_and_files_are_not_on_disks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: bool, counts: bool, used: bool
) -> None:
    def counting(groups: MemoryGroups, name: str) -> None:
        if not counts:
            raise Unusable("the kernel counts nothing")

    monkeypatch.setattr(memory_group, "try_counting", counting)
    monkeypatch.setattr(MemoryGroups, "make", lambda self, name: os.mkdir(tmp_path / (self.prefix + name)))
    place = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    host = HostCapabilities([], [], [], [])
    host.root = root
    host._find_groups(place)
    assert (host.groups is not None) is used
    assert host.reasons == ({} if counts else {"cgroup2": "the kernel counts nothing"})
    assert list(tmp_path.iterdir()) == []  # the group of the probe is removed
    if used:
        os.close(place)
    else:
        with pytest.raises(OSError):
            os.fstat(place)


def test_an_id_map_is_read_and_written_as_the_kernel_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capabilities, "open", lambda _: io.StringIO("0 100000 65536\n70000 7 1\n"), raising=False)
    assert capabilities._identity_map("uid_map") == "0 0 65536\n70000 70000 1"
    (tmp_path / "uid_map").write_text("")
    capabilities._write(str(tmp_path / "uid_map"), "0 0 1")
    assert (tmp_path / "uid_map").read_text() == "0 0 1"


# -- refused calls ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "open_still"), [(errno.ENOENT, True), (errno.EINTR, True), (errno.ENODEV, False)])
def test_a_caller_that_is_gone_keeps_the_listener_and_a_filter_that_is_gone_does_not(
    monkeypatch: pytest.MonkeyPatch, number: int, open_still: bool
) -> None:
    def gone(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    fd = os.dup(0)
    refusals = Refusals(fd)
    monkeypatch.setattr(fcntl, "ioctl", gone)
    refusals.answer()
    assert refusals.fd == (fd if open_still else -1)
    assert refusals.take() == {}
    refusals.close()
    refusals.close()
    with pytest.raises(OSError):
        os.fstat(fd)
