"""Control groups where the kernel does not say what processes share, as gVisor, which has no smaps_rollup.

gVisor's own cgroups (version 1, of the sandbox's kernel) count the memory that a tree has allocated, each page once and
files in a tmpfs included; its memory limit is not enforced. They bound the number of tasks too, whatever their user. A
zygote joins once, and its tests' processes are born there.
"""

from __future__ import annotations

import os

from verifier_app.judge.layers import syscalls

_POINT = "/tmp"  # of the private root; the mount is gone before the scratch folders come
USAGE = "memory.usage_in_bytes"


def join(name: str, tasks: int) -> int:
    """Put this process, which has a mount namespace of its own, into new groups of that name.

    Returns:
        A descriptor of the memory's usage in bytes, which only groups' root may open.

    Raises:
        OSError: this kernel has no such groups, or they are not this process's to use.
    """
    usage = -1
    for controller in ("pids", "memory"):
        syscalls.mount(
            "cgroup", _POINT, "cgroup", syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC, controller
        )
        try:
            folder = f"{_POINT}/{name}"
            os.mkdir(folder, 0o700)
            if controller == "pids":
                _write(f"{folder}/pids.max", tasks)
            else:
                usage = os.open(f"{folder}/{USAGE}", os.O_RDONLY)
            _write(f"{folder}/cgroup.procs", os.getpid())
        finally:
            syscalls.umount(_POINT, syscalls.MNT_DETACH)
    return usage


class Usage:
    """The judge's view of such a group's memory; `fd` is what `join` returned."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def used_bytes(self, enough: int) -> int:
        """What the group has allocated now, whether that is more than `enough` or not."""
        return int(os.pread(self.fd, 32, 0))

    def close(self) -> None:
        """Let go of it."""
        os.close(self.fd)


def _write(path: str, value: int) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, b"%d" % value)
    finally:
        os.close(fd)
