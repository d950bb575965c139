"""Memory groups of version 2: where one may be made, what counts in it, and whose excess a kill was.

Here on folders that look as the kernel's; tests/uml has the kernel.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from verifier_app.judge.layers.memory_group import SLACK_BYTES, MemoryGroup, MemoryGroups, Unusable, find

MOUNT = "30 24 0:26 {root} {point} rw,nosuid - cgroup2 cgroup2 rw\n"


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def group(folder: Path, passed_on: str = "", limit: str = "max") -> None:
    controllers = {"cgroup__controllers": "cpu memory pids\n", "cgroup__subtree_control": passed_on}
    write(folder, **controllers, memory__max=f"{limit}\n", memory__high="max\n")


class Host:
    """A machine's mounts, this process's groups and its kernel's command line."""

    def __init__(self, folder: Path) -> None:
        self.point = folder / "cgroup"
        group(self.point, "cpu memory")
        self.files = {name: folder / name for name in ("mounts", "own", "boot")}
        self.files["mounts"].write_text(
            "1 0 8:1 / / rw - ext4 /dev/vda rw\n" + MOUNT.format(root="/", point=self.point)
        )
        self.files["own"].write_text("0::/user/session\n")
        self.files["boot"].write_text("quiet\n")

    def find(self) -> str:
        """The path of the group below which groups are made."""
        folder = find(**{name: str(path) for name, path in self.files.items()})
        try:
            return os.readlink(f"/proc/self/fd/{folder}")
        finally:
            os.close(folder)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_a_group_that_passes_memory_on_is_divided_and_else_one_is_made_beside_it(host: Host) -> None:
    host.files["own"].write_text("11:memory:/x\n0::/\n")
    assert host.find() == str(host.point)
    host.files["own"].write_text("0::/user/session\n")
    group(host.point / "user", "memory pids")
    group(host.point / "user/session", "memory")
    assert host.find() == str(host.point / "user/session")
    session = host.point / "user/session"
    (session / "cgroup.subtree_control").unlink()
    (session / "cgroup.subtree_control").symlink_to("/dev/null")  # asked for it, the kernel refuses
    assert host.find() == str(host.point / "user")


def test_the_mounts_root_is_taken_off_the_groups_name(host: Host) -> None:
    host.files["mounts"].write_text(MOUNT.format(root="/pod/one", point=host.point))
    host.files["own"].write_text("0::/pod/one/a\n")
    group(host.point / "a", "memory")
    assert host.find() == str(host.point / "a")
    host.files["own"].write_text("0::/pod/two\n")
    with pytest.raises(Unusable, match="not below the mount"):
        host.find()


def test_no_limit_of_others_is_escaped(host: Host) -> None:
    group(host.point / "user", "memory")
    for limits in ({"memory__max": "1000\n"}, {"memory__high": "1000\n"}):
        own = host.point / "user/session"
        own.mkdir(exist_ok=True)
        group(own)
        write(own, **limits)
        (own / "cgroup.subtree_control").unlink()
        (own / "cgroup.subtree_control").symlink_to("/dev/null")
        with pytest.raises(Unusable, match="escape"):
            host.find()


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("mounts", "1 0 8:1 / / rw - ext4 /dev/vda rw\n", "not mounted"),
        ("own", "4:memory:/x\n", "not mounted"),
        ("boot", "ro cgroup.memory=nosocket,nokmem\n", "nokmem,nosocket"),
    ],
)
def test_what_is_missing_is_named(host: Host, name: str, text: str, reason: str) -> None:
    host.files[name].write_text(text)
    with pytest.raises(Unusable, match=reason):
        host.find()


def test_a_hierarchy_without_memory_is_not_used(host: Host) -> None:
    write(host.point / "user/session", cgroup__controllers="cpu pids\n")
    with pytest.raises(Unusable, match="no memory controller"):
        host.find()


@pytest.fixture
def counted(tmp_path: Path) -> Iterator[MemoryGroup]:
    events = "low 0\nhigh 0\nmax 9\noom {oom}\noom_kill {kills}\noom_group_kill 0\n"
    write(tmp_path, memory__current=f"{10 << 20}\n", memory__max="max\n")
    write(tmp_path, memory__events__local=events.format(oom=0, kills=0), memory__events=events.format(oom=0, kills=0))
    seen = MemoryGroup(os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY))
    yield seen
    seen.close()


def test_the_zygotes_own_is_no_tests_and_the_roof_is_above_both(counted: MemoryGroup, tmp_path: Path) -> None:
    counted.settle(100 << 20)
    assert int((tmp_path / "memory.max").read_text()) == (110 << 20) + SLACK_BYTES
    assert counted.used_bytes(1) == 0
    (tmp_path / "memory.current").write_text(f"{60 << 20}\n")
    assert counted.used_bytes(100 << 20) == 50 << 20


def test_what_the_kernel_takes_back_is_left_out_but_memory_marked_as_free_is_not(
    counted: MemoryGroup, tmp_path: Path
) -> None:
    counted.settle(100 << 20)
    (tmp_path / "memory.current").write_text(f"{210 << 20}\n")
    stat = f"anon {90 << 20}\nfile {80 << 20}\nshmem {30 << 20}\ninactive_file {140 << 20}\n"
    (tmp_path / "memory.stat").write_text(stat)
    assert counted.used_bytes(100 << 20) == 150 << 20


@pytest.mark.parametrize(("own", "kills", "is_own"), [(0, 0, False), (1, 1, True), (0, 2, False), (3, 0, False)])
def test_a_kill_at_the_groups_own_roof_alone_is_the_programs(
    counted: MemoryGroup, tmp_path: Path, own: int, kills: int, is_own: bool
) -> None:
    write(
        tmp_path,
        memory__events__local=f"oom {own}\noom_kill {kills}\n",
        memory__events=f"oom {own}\noom_kill {kills}\n",
    )
    assert counted.outgrown() is is_own


def test_a_folder_that_is_no_group_is_refused_and_nothing_is_left_of_it(tmp_path: Path) -> None:
    groups = MemoryGroups(os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY))
    with pytest.raises(OSError, match=r"memory\.oom\.group"):
        groups.make("one")
    assert list(tmp_path.iterdir()) == []
    os.close(groups.folder)


def test_only_old_empty_groups_of_a_dead_template_are_removed(tmp_path: Path) -> None:
    made: dict[str, Any] = {"judge-1-1": 0, "judge-2-1": None, "judge-3-1": 0, "others": 0}
    for name, changed in made.items():
        (tmp_path / name).mkdir()
        if name == "judge-3-1":
            (tmp_path / name / "busy").mkdir()
        if changed is not None:
            os.utime(tmp_path / name, (changed, changed))
    os.close(MemoryGroups(os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)).folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["judge-2-1", "judge-3-1", "others"]
