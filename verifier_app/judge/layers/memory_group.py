"""A memory group (cgroup version 2) for each rollout, where one may be made: the kernel counts, and has a roof.

The watch looks every 50 ms; what is allocated between two looks is bounded by `memory.max` alone, and what lies in no
process (shared memory without pages, pipes, sockets, page tables) is in the kernel's count. A zygote joins once, and
its tests' processes are born in its group. At the roof the kernel kills all of the group, the zygote included, so
that nothing of a test outlives it and no other process can be the victim.

Groups are made below this process's own group where its controllers may be passed on, which the kernel grants to the
hierarchy's root alone while there are processes in it; otherwise beside this process's group, unless that has a limit
of its own, which a group beside it would escape. No other process is moved, and no limit of others is changed.
"""

from __future__ import annotations

import contextlib
import os
import time

from verifier_app.judge.procfs import read, read_all

SLACK_BYTES = 64 << 20  # from a program's limit to the roof: the watch's own verdict comes first where it has the time
STALE_S = 3600.0
TRIED_BYTES = 8 << 20
_PREFIX = "judge-"
_UNCOUNTED = ("nokmem", "nosocket")  # with these the kernel's own memory is in no group


class Unusable(OSError):
    """There is no memory group to be had here; says why."""


class MemoryGroups:
    """Where the template makes its rollouts' groups.

    folder: descriptor of the group below which they are. It stays usable when the file system has left the root.
    """

    def __init__(self, folder: int) -> None:
        self.folder = folder
        self.prefix = f"{_PREFIX}{os.urandom(4).hex()}-"
        self._remove_stale()

    def make(self, name: str) -> None:
        """A new group. OSError: it cannot be made, or not such that a kill is one of the whole group."""
        os.mkdir(self.prefix + name, 0o755, dir_fd=self.folder)
        try:
            group = self._open(name)
            try:
                _write("memory.oom.group", b"1", group)
                with contextlib.suppress(FileNotFoundError):  # a kernel without swap
                    _write("memory.swap.max", b"0", group)
                for needed in ("memory.current", "memory.max", "memory.stat", "memory.events", "memory.events.local"):
                    os.stat(needed, dir_fd=group)
            finally:
                os.close(group)
        except OSError:
            self.remove(name)
            raise

    def join(self, name: str) -> int:
        """Put this process into a group; the descriptor of the group's folder."""
        group = self._open(name)
        try:
            _write("cgroup.procs", b"0", group)
        except OSError:
            os.close(group)
            raise
        return group

    def remove(self, name: str) -> None:
        """Remove a group whose processes are gone."""
        with contextlib.suppress(OSError):
            os.rmdir(self.prefix + name, dir_fd=self.folder)

    def _open(self, name: str) -> int:
        return os.open(self.prefix + name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self.folder)

    def _remove_stale(self) -> None:
        """What a template left that was killed: empty groups, which the kernel removes, and none that is just made."""
        for name in os.listdir(self.folder):
            if name.startswith(_PREFIX):
                with contextlib.suppress(OSError):
                    if time.time() - os.stat(name, dir_fd=self.folder).st_mtime > STALE_S:
                        os.rmdir(name, dir_fd=self.folder)


class MemoryGroup:
    """The judge's view of one rollout's group."""

    def __init__(self, folder: int) -> None:
        self.folder = folder
        self.base_bytes = 0  # the zygote's own, with the compiled program

    def settle(self, limit_bytes: int) -> None:
        """What is held now is the zygote's; from here on the group may grow by the limit and some slack."""
        self.base_bytes = int(read("memory.current", self.folder))
        _write("memory.max", b"%d" % (self.base_bytes + limit_bytes + SLACK_BYTES), self.folder)

    def used_bytes(self, enough: int) -> int:
        """What the tests' processes hold, read exactly where it may be more than `enough`.

        Cached pages of files are left out, since the kernel takes them back and a program writes to no disk. Their
        number is that of cached pages less shared memory: the list of inactive ones holds a program's own too, which it
        has marked as free (MADV_FREE) and may be using.
        """
        used = int(read("memory.current", self.folder)) - self.base_bytes
        if used > enough:
            counts = dict(line.split() for line in read_all("memory.stat", self.folder).splitlines())
            used -= max(0, int(counts[b"file"]) - int(counts[b"shmem"]))
        return max(0, used)

    def outgrown(self) -> bool:
        """Whether the kernel killed the group at its own roof, not at that of a group above it or of the machine."""
        at_its_roof = _event("memory.events.local", b"oom", self.folder)
        return bool(at_its_roof and _event("memory.events", b"oom_kill", self.folder))

    def close(self) -> None:
        """Let go of it; the template removes it."""
        os.close(self.folder)


def try_counting(groups: MemoryGroups, name: str) -> None:
    """In a child: whether the kernel counts this process in a group, and takes a roof. OSError: it does not."""
    import mmap  # for this alone: what the template holds, every fork pays for

    group = MemoryGroup(groups.join(name))
    group.settle(TRIED_BYTES)
    held = mmap.mmap(-1, TRIED_BYTES)
    for offset in range(0, TRIED_BYTES, mmap.PAGESIZE):
        held[offset] = 1
    if group.used_bytes(0) < TRIED_BYTES // 2:
        raise Unusable("the kernel counts nothing in a group of this process's")


def find(mounts: str = "/proc/self/mountinfo", own: str = "/proc/self/cgroup", boot: str = "/proc/cmdline") -> int:
    """The descriptor of the group below which this process may make groups with a memory controller.

    Raises:
        Unusable: there is none.
    """
    with open(boot) as file:
        options = [word.partition("=")[2] for word in file.read().split() if word.startswith("cgroup.memory=")]
    uncounted = [name for name in _UNCOUNTED if any(name in option.split(",") for option in options)]
    if uncounted:
        raise Unusable(f"the kernel counts only a part (cgroup.memory={','.join(uncounted)})")
    point, path = _own_group(mounts, own)
    if "memory" not in _words(f"{path}/cgroup.controllers"):
        raise Unusable("version 2 has no memory controller here")
    if _passes_memory_on(path):
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    if path == point:
        raise Unusable("this process's group may not be divided, and none is above it")
    if any(_words(f"{path}/{name}") != ["max"] for name in ("memory.max", "memory.high")):
        raise Unusable("this process's group may not be divided, and has a limit which one beside it would escape")
    above = os.path.dirname(path)
    if "memory" not in _words(f"{above}/cgroup.subtree_control"):
        raise Unusable("the group above passes no memory controller on")
    return os.open(above, os.O_RDONLY | os.O_DIRECTORY)


def _own_group(mounts: str, own: str) -> tuple[str, str]:
    """Where version 2 is mounted, and this process's group there."""
    with open(mounts) as file:
        found = [line.split() for line in file if " - cgroup2 " in line]
    with open(own) as file:
        names = [line.rstrip("\n")[3:] for line in file if line.startswith("0::/")]
    if not found or not names:
        raise Unusable("version 2 is not mounted here")
    root, point = found[0][3], found[0][4].rstrip("/")
    inside = os.path.relpath(names[0], root)
    if inside.startswith(".."):
        raise Unusable("this process's group is not below the mount")
    return point, os.path.normpath(f"{point}/{inside}")


def _passes_memory_on(path: str) -> bool:
    """Whether groups below this one have the memory controller; it is asked for."""
    control = f"{path}/cgroup.subtree_control"
    if "memory" not in _words(control):
        with contextlib.suppress(OSError):  # busy: there are processes in it
            _write(control, b"+memory")
    return "memory" in _words(control)


def _words(path: str) -> list[str]:
    with open(path) as file:
        return file.read().split()


def _event(name: str, event: bytes, folder: int) -> int:
    return int(dict(line.split() for line in read(name, folder).splitlines())[event])


def _write(path: str, text: bytes, folder: int | None = None) -> None:
    fd = os.open(path, os.O_WRONLY, dir_fd=folder)
    try:
        os.write(fd, text)
    finally:
        os.close(fd)
