"""What this host offers, probed once by the template, which also prepares what all its zygotes share."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import NoReturn

from verifier_app.judge.layers import cgroup, landlock, memory_group, rootfs, seccomp, syscalls

UID_BASE = 1_000_000_000  # far above accounts; below 2**31
UID_SPAN = 1 << 30
_SWEEPERS = 1 << 31  # from a program's uid to its sweeper's
LAYERS = ("pid_namespace", "net_namespace", "ipc_namespace", "private_root", "uid", "seccomp", "landlock")
_UIDS, _GIDS = 1, 2  # bits of an exit status


class HostCapabilities:
    """The layers that work here. (No dataclass: its imports would make every fork cost more.)"""

    def __init__(self, packages: list[str], entries: list[str], deny: list[str], readable: list[str]) -> None:
        self.packages, self.entries, self.deny, self.readable = packages, entries, deny, readable
        self.user_namespace = self.pid = self.net = self.ipc = self.uid = self.seccomp = self.notices = False
        self.root = False  # a private root in a mount namespace
        self.landlock = 0  # its version
        self.cgroup = False  # tried only where the kernel does not say what processes share
        self.groups: memory_group.MemoryGroups | None = None  # of version 2
        self.reasons: dict[str, str] = {}
        self.interpreter: list[str] = []
        self.uid_base, self.uid_span = UID_BASE, UID_SPAN
        self.sweepers = 0

    def prepare(self) -> None:
        """Probe, and enter what is entered once: a user namespace without root, the private root."""
        if self.deny:
            seccomp.install(seccomp.refusal_rules(self.deny))
        self.interpreter = [*rootfs.interpreter_paths(self.packages), *self.readable]
        root = os.geteuid() == 0
        # root without CAP_SYS_ADMIN, as in a container, makes namespaces in a user namespace of its own too
        if not (
            root and self._works("namespaces", lambda: syscalls.unshare(syscalls.CLONE_NEWNS | syscalls.CLONE_NEWPID))
        ):
            works = self._works("user namespace", _enter_user_namespace)  # there is no way back from half of one
            self.user_namespace = works and self._try("user namespace", _enter_user_namespace)
        if not root:
            self.reasons["uid"] = "the judge does not run as root"
        elif self._try("uid", self._find_uids):
            self.uid = self._works("uid", lambda: _become(self.uid_base + 1))
        self.seccomp = self._works("seccomp", lambda: seccomp.install(seccomp.program_rules(False)))
        if self.seccomp:  # gVisor has the filter and tells nobody
            self.notices = self._works("notices", lambda: seccomp.install(seccomp.program_rules(False), listen=True))
        self.landlock = landlock.version()
        if not self.landlock:
            self.reasons["landlock"] = "this kernel has none"
        if self.landlock and not self._works("landlock", lambda: landlock.restrict(["/"], [])):
            self.landlock = 0
        self.ipc = self._works("ipc namespace", lambda: syscalls.unshare(syscalls.CLONE_NEWIPC))
        self.net = self._works("net namespace", lambda: syscalls.unshare(syscalls.CLONE_NEWNET))
        place = self._place_of_groups()
        if self._works("mount namespace", lambda: self._try_root()):
            rootfs.build(self.interpreter, self.packages, self.entries)
            self.root = True
        if place is not None:
            self._find_groups(place)
        self.pid = self._try("pid namespace", self._try_pid)
        if self.root and not os.path.exists("/proc/self/smaps_rollup"):
            self.cgroup = self._works("cgroup", self._try_cgroup)

    def _try(self, name: str, action: Callable[[], None]) -> bool:
        """Whether the action works in this process."""
        try:
            action()
        except OSError as error:
            self.reasons[name] = str(error.strerror or error)
            return False
        return True

    def _works(self, name: str, action: Callable[[], object]) -> bool:
        """Whether the action works, tried in a child."""
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                action()
            except Exception as error:
                os.write(writer, str(getattr(error, "strerror", None) or error).encode())
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as file:
            reason = file.read().decode()
        _, status = os.waitpid(pid, 0)
        if status and not reason:
            reason = "the probe died"
        if reason:
            self.reasons[name] = reason
        return not reason

    def _find_uids(self) -> None:
        """A range of uids that nobody uses and that this user namespace maps."""
        with open("/proc/self/uid_map") as file:
            ranges = [tuple(map(int, line.split())) for line in file]
        start, _, count = max(ranges, key=lambda entry: entry[2])
        if count > UID_BASE + UID_SPAN + _SWEEPERS:
            self.sweepers = _SWEEPERS
        if count > UID_BASE + UID_SPAN:
            return
        if count < 4:
            raise OSError(f"this user namespace maps {count} uids")
        self.uid_base, self.uid_span = start + count // 2, count - count // 2 - 1

    def _try_root(self) -> None:
        rootfs.build(self.interpreter, self.packages, self.entries)
        syscalls.unshare(syscalls.CLONE_NEWNS)
        rootfs.mount_scratch(1, self.interpreter)

    def _try_pid(self) -> None:
        pid = self.fork_in_namespace()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)

    def _try_cgroup(self) -> None:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        cgroup.join(f"probe-{os.getpid()}", 1)

    def _place_of_groups(self) -> int | None:
        """Where groups of version 2 can be made; looked for while the host's root is there."""
        try:
            return memory_group.find()
        except (OSError, ValueError) as error:
            self.reasons["cgroup2"] = str(getattr(error, "strerror", None) or error)
            return None

    def _find_groups(self, place: int) -> None:
        """Use them where the kernel counts in them. Without a private root a program's files lie on disks, and are not
        learned from what is read: there the watch counts."""
        groups, name = memory_group.MemoryGroups(place), "probe"
        if self.root and self._try("cgroup2", lambda: groups.make(name)):
            self.groups = groups if self._works("cgroup2", lambda: memory_group.try_counting(groups, name)) else None
            groups.remove(name)
        if self.groups is None:
            os.close(place)

    def fork_in_namespace(self) -> int:
        """fork(2) whose child is pid 1 of a new pid namespace; this process itself stays as it is.

        A process between the two unshares, forks and leaves; its child comes to this process, a subreaper for so long,
        and waits at the gate until it has: a parent-death signal set before would be the middle one's. This process
        is no subreaper when it forks, nor later: to one that was, gVisor hands what a dead pid 1 leaves, and kills
        nothing of it.
        """
        told, tell = os.pipe()
        gate, opener = os.pipe()
        adopted, adopt = os.pipe()
        middle = os.fork()
        if middle == 0:
            os.close(adopt)
            try:
                syscalls.unshare(syscalls.CLONE_NEWPID)
                pid = os.fork()
            except OSError as error:
                os.write(tell, f"{error.errno} {error.strerror}".encode())
                os._exit(1)
            if pid:
                os.write(tell, str(pid).encode())
                os.read(adopted, 1)
                os._exit(0)
            os.close(opener)
            os.read(gate, 1)
            for fd in (told, tell, gate, adopted):
                os.close(fd)
            return 0
        os.close(tell)
        answer = os.read(told, 200).decode()
        syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
        os.close(adopted)
        os.close(adopt)
        _, status = os.waitpid(middle, 0)
        syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 0)
        for fd in (told, gate, opener):
            os.close(fd)
        if status:
            number, _, text = answer.partition(" ")
            raise OSError(int(number or 0), text or "the process between died")
        return int(answer)

    def missing(self, layers: list[str]) -> dict[str, str]:
        """Layer that this host does not offer -> why."""
        names = {name: name.replace("_", " ") for name in LAYERS} | {"private_root": "mount namespace"}
        there = " ".join(layers)
        return {layer: self.reasons.get(name, "it failed") for layer, name in names.items() if layer not in there}

    def sweeper_uid(self, uid: int) -> int:
        """The real uid of the process that kills all processes of `uid`: no program's."""
        return uid + self.sweepers if self.sweepers else self.uid_base + self.uid_span

    def uid_for(self, number: int) -> int:
        """A uid of its own for the number-th zygote of this template."""
        return self.uid_base + ((os.getpid() << 10) + number % 1024) % self.uid_span


def _enter_user_namespace() -> None:
    """A user namespace in which this uid has all capabilities and stays itself.

    All uids of the namespace before are mapped to themselves, where a process there may do that; otherwise this one.
    """
    uid, gid = os.geteuid(), os.getegid()
    gate, opener = os.pipe()
    mapper = os.fork()
    if mapper == 0:
        os.close(opener)
        _map_all_ids(gate)
    os.close(gate)
    try:
        syscalls.unshare(syscalls.CLONE_NEWUSER)
        os.write(opener, b"1")
    finally:
        os.close(opener)
        _, status = os.waitpid(mapper, 0)
    left = os.waitstatus_to_exitcode(status)
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)  # or these files of /proc are root's
    try:
        if left & _GIDS:
            with contextlib.suppress(FileNotFoundError):
                _write("/proc/self/setgroups", "deny")
            _write("/proc/self/gid_map", f"{gid} {gid} 1")
        if left & _UIDS:
            _write("/proc/self/uid_map", f"{uid} {uid} 1")
    finally:
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)


def _map_all_ids(gate: int) -> NoReturn:
    """In a child: once the parent is in its namespace, write its maps; exit with the bits of those that are left."""
    left, parent = _UIDS | _GIDS, os.getppid()
    try:
        maps = {name: _identity_map(name) for name in ("gid_map", "uid_map")}
        if os.read(gate, 1) and os.geteuid() == 0:
            for bit, (name, text) in zip((_GIDS, _UIDS), maps.items(), strict=True):
                with contextlib.suppress(OSError):
                    _write(f"/proc/{parent}/{name}", text)
                    left &= ~bit
    finally:
        os._exit(left)


def _identity_map(name: str) -> str:
    """A map of all ids of this user namespace to themselves."""
    with open(f"/proc/self/{name}") as file:
        lines = [line.split() for line in file]
    return "\n".join(f"{start} {start} {count}" for start, _, count in lines)


def _write(path: str, text: str) -> None:
    """Write to a file of /proc. (Where gVisor lacks it, open(path, "w") is EACCES, since that would create it.)"""
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _become(uid: int, effective: int | None = None) -> None:
    """Another user and group, no supplementary groups: from root this gives up every capability."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid if effective is None else effective, uid)


become = _become
