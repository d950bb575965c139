"""One rollout's layers: set up in the zygote before the program is known, entered by every test's process."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time
from collections.abc import Iterator, Sequence
from typing import Any

from verifier_app.judge import paths
from verifier_app.judge.layers import cgroup, landlock, rootfs, seccomp, syscalls
from verifier_app.judge.layers.capabilities import HostCapabilities, become
from verifier_app.judge.layers.limits import MAX_OPEN_FILES, MAX_TASKS, ROOM_FOR_STACKS, Limits
from verifier_app.judge.procfs import tree

PATH_FD = 960  # from here on, descriptors of the interpreter's folders, where the program's uid cannot walk to them
SYSTEM_READABLE = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib64",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/proc",
    "/sys/devices",
]
PROC_READABLE = [f"/proc/self/{name}" for name in ("cmdline", "fd", "maps", "stat", "statm", "status")]
PROC_READABLE += [f"/proc/{name}" for name in ("cpuinfo", "loadavg", "meminfo", "stat", "uptime", "version")]
SWEEP_TIMEOUT_S = 5.0
SHARED_MEMORY = "/dev/shm"
SHARED = ("/tmp", "/var/tmp", SHARED_MEMORY)
DEVICES = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"]


def address_space_bytes() -> int:
    """VmSize of this process: what the interpreter itself needs of RLIMIT_AS."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


class Sandbox:
    """One rollout's sandbox. `uid` is its own, `pid` the zygote's number outside its namespace."""

    def __init__(
        self, ground: HostCapabilities, memory_mb: int, uid: int, scratch: str | None, group: str | None = None
    ) -> None:
        self.ground, self.uid = ground, uid
        self.layers = ["rlimits"]
        self.missing: dict[str, str] = {}  # what this host lacks -> why, or what covers for it
        self.own_proc = False
        self.notices = -1  # descriptor on which refused calls wait for an answer
        self.usage = self.group = -1  # descriptors: of what its cgroup has allocated; of its group of version 2
        self.path_fds_end = PATH_FD
        self.memory_bytes = memory_mb << 20
        self.address_space = address_space_bytes() + self.memory_bytes
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if group is not None and ground.groups is not None:
            self.group = ground.groups.join(group)
            os.close(ground.groups.folder)
            self.layers.append("cgroup2")
        self._namespaces(memory_mb, scratch)
        self.proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
        self.folders = [os.open(folder, os.O_RDONLY | os.O_DIRECTORY) for folder in self.scratch]
        self._confine()
        self._limits()
        self.missing |= ground.missing(self.layers)
        if ground.uid and not ground.root:
            self.path_fds_end = paths.by_descriptor(PATH_FD)
            problem = paths.executable()
            if problem is not None:
                self.missing["executable"] = problem
        for folder in self.folders:
            os.utime(folder, ns=(0, 0))  # a change shows, however soon it comes
        self.state_at_start = self._state()

    @property
    def report(self) -> dict[str, Any]:
        """The layers in force, what is missing, "strong" or "weak", and why it is weak."""
        ground, weak = self.ground, []
        if not ground.pid and not ground.uid:
            weak.append(self._because("a program can signal the judge's own user's processes", "pid namespace", "uid"))
        if not (ground.root or ground.landlock or ground.uid):
            weak.append(self._because("a program reads what this user can", "mount namespace", "landlock", "uid"))
        if not (ground.net or ground.seccomp):
            weak.append(self._because("a program reaches the network", "net namespace", "seccomp"))
        if not ground.seccomp:
            weak.append(self._because("no system call is refused", "seccomp"))
        level = "weak" if weak else "strong"
        report: dict[str, Any] = {"level": level, "layers": self.layers}
        return report | ({"missing": self.missing} if self.missing else {}) | ({"weak": weak} if weak else {})

    @property
    def tmpfs(self) -> list[int]:
        """Descriptors of the folders that are file systems of this rollout alone."""
        return self.folders if self.ground.root else []

    @property
    def loose(self) -> tuple[str, list[str], int] | None:
        """Without a private root: the scratch folder, the host's folders where else it can write, and who writes."""
        if self.ground.root:
            return None
        shared = [SHARED_MEMORY] if self.ground.landlock else list(SHARED)
        return self.scratch[0], shared, self.uid if self.ground.uid else os.getuid()

    def _because(self, what: str, *names: str) -> str:
        reasons = [f"{name}: {self.ground.reasons[name]}" for name in names if name in self.ground.reasons]
        return f"{what} ({', '.join(reasons) or 'no ' + ' and no '.join(names)})"

    def _namespaces(self, memory_mb: int, scratch: str | None) -> None:
        ground = self.ground
        if ground.user_namespace:
            self.layers.append("user_namespace")
        if ground.pid:
            self.layers.append("pid_namespace")
        flags = 0
        for name, there, flag in (
            ("net_namespace", ground.net, syscalls.CLONE_NEWNET),
            ("ipc_namespace", ground.ipc, syscalls.CLONE_NEWIPC),
            ("private_root", ground.root, syscalls.CLONE_NEWNS),
        ):
            if there:
                flags |= flag
                self.layers.append(name)
        if flags:
            syscalls.unshare(flags)
        if ground.cgroup and self.group < 0:
            self.usage = cgroup.join(f"rollout-{self.uid}-{os.urandom(4).hex()}", MAX_TASKS + 1)
            self.layers.append("cgroup")
        elif "cgroup" in ground.reasons:
            self.missing["cgroup"] = f"{ground.reasons['cgroup']}; a page counts for each of its sharers"
        if ground.root:
            self.scratch = rootfs.mount_scratch(memory_mb, ground.interpreter)
            self.own_proc = ground.pid and rootfs.mount_proc(hide=ground.uid)
        else:
            assert scratch is not None
            self.scratch = [scratch]
            if ground.uid:  # its group's, not its own: who owns a folder can leave marks on it
                os.chown(scratch, -1, self.uid)
                os.chmod(scratch, 0o1770)  # noqa: S103
            os.environ["TMPDIR"] = scratch
        os.environ["HOME"] = self.scratch[0]
        os.chdir(self.scratch[0])

    def _limits(self) -> None:
        """After the layers that stand in for a limit which this kernel refuses."""
        limits = Limits(self.layers)
        for which, value in (
            (resource.RLIMIT_AS, self.address_space),
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_MEMLOCK, 0),
            (resource.RLIMIT_MSGQUEUE, 0),
            (resource.RLIMIT_FSIZE, self.memory_bytes),  # files count as memory
            (resource.RLIMIT_NOFILE, MAX_OPEN_FILES),
        ):
            limits.lower(which, value, ROOM_FOR_STACKS if which == resource.RLIMIT_AS else 0)
        # these two are for the tests' processes: the zygote's own time, and its user's processes, are not theirs
        self.limits_cpu = limits.settable(resource.RLIMIT_CPU)
        self.limits_tasks = (self.ground.uid or self.ground.user_namespace) and limits.settable(resource.RLIMIT_NPROC)
        self.missing |= limits.missing

    def _confine(self) -> None:
        """What the tests' processes inherit: no new privileges, Landlock, the filter."""
        ground = self.ground
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
        if not ground.pid:
            syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
        if ground.uid:
            self.layers.append("uid")
        self.layers.append("no_new_privs")
        if ground.landlock:
            readable = ["/"] if ground.root else SYSTEM_READABLE + ground.interpreter
            landlock.restrict(readable, [*self.scratch, *DEVICES, "/dev/shm"])
            self.layers.append(f"landlock{ground.landlock}")
        if ground.seccomp:
            rules = seccomp.program_rules(protect_judge=not ground.pid and not ground.uid)
            self.notices = seccomp.install(seccomp.with_notices(rules) if ground.notices else rules, ground.notices)
            self.layers.append("seccomp")

    def enter(self, pipes: Sequence[int]) -> None:
        """In the test's process, before the program: the last limits, then the program's identity and its pipes."""
        if self.ground.landlock and not self.ground.root:
            # One layer more, here since it names this process: of the host's /proc its own files, no list, no sockets.
            readable = [path for path in SYSTEM_READABLE if path != "/proc"] + PROC_READABLE + self.ground.interpreter
            landlock.restrict(readable, [*self.scratch, *DEVICES, SHARED_MEMORY])
        if self.limits_tasks:
            resource.setrlimit(resource.RLIMIT_NPROC, (MAX_TASKS, MAX_TASKS))
        if self.ground.uid:
            for fd in pipes:  # or the program could not open /dev/stdin, which asks the pipe's owner
                os.fchown(fd, self.uid, self.uid)
            become(self.uid)  # gives up root's capabilities too
        else:
            syscalls.drop_capabilities()
        if not self.ground.pid:  # after the change of user, which clears it
            syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)  # or /dev/stdin and /proc/self are closed to the program

    def sweep(self) -> bool:
        """Kill everything that the program left behind. True: there was nothing, not even a zombie."""
        if self.ground.pid:
            try:
                os.kill(-1, signal.SIGKILL)
            except ProcessLookupError:
                return True
        elif self.ground.uid:
            sweep_uid(self.uid, self.ground.sweeper_uid(self.uid))
        else:
            sweep_tree(os.getpid())
        return False

    def _state(self) -> list[object]:
        """What a program can change of the scratch folders: entries, times and attributes, and files in shared ones."""
        state: list[object] = []
        for folder in self.folders:
            status = os.fstat(folder)
            state += [status.st_mtime_ns, status.st_ctime_ns]
            if not self.ground.uid:  # the folder is the program's own
                with contextlib.suppress(OSError):
                    state += os.listxattr(folder)
        if self.ground.uid and not self.ground.root:
            state += [entry.path for entry in left_behind(self.uid)]
        return state

    def clean(self) -> bool:
        """Whether the scratch folders are as at the start; a zygote with dirty ones ends."""
        return self._state() == self.state_at_start


def sweep_uid(uid: int, sweeper_uid: int) -> None:
    """Kill all processes of this uid.

    A process signals those whose real or saved uid is its real or effective one: with the effective one alone the
    sweeper reaches the program's processes, and they do not reach it.
    """
    pid = os.fork()
    if pid == 0:
        try:
            become(sweeper_uid, uid)
            os.kill(-1, signal.SIGKILL)
        finally:
            os._exit(0)
    give_up = time.monotonic() + SWEEP_TIMEOUT_S
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        if time.monotonic() > give_up:
            os.kill(pid, signal.SIGKILL)  # a stopped one ends by it too
            os.waitpid(pid, 0)
            return
        time.sleep(0.0002)


def descendants(root: int, spare: frozenset[int] = frozenset()) -> dict[int, list[bytes]]:
    """pid -> fields of stat, of all processes below `root` but the subtrees of `spare`."""
    proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    try:
        return tree(proc, root, False, spare)
    finally:
        os.close(proc)


def sweep_tree(root: int, spare: frozenset[int] = frozenset()) -> None:
    """Kill all descendants of `root` but the subtrees of `spare`, stopping them first so that none forks away."""
    for _ in range(100):
        found = descendants(root, spare)
        if all(fields[0] == b"Z" for fields in found.values()):
            return
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in found:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)


def left_behind(uid: int) -> Iterator[os.DirEntry[str]]:
    """What a uid owns in the host's shared folders."""
    for shared in SHARED:
        with contextlib.suppress(OSError):
            for entry in list(os.scandir(shared)):
                with contextlib.suppress(OSError):
                    if entry.stat(follow_symlinks=False).st_uid == uid:
                        yield entry


def make_scratch() -> str:
    """A private folder, where there is no private root."""
    path = os.path.join(os.environ.get("TMPDIR", "/tmp"), f"judge-{os.getpid()}-{os.urandom(8).hex()}")
    os.mkdir(path, 0o700)
    return path


def remove_scratch(folder: str, uid: int | None) -> None:
    """Remove a scratch folder, and what this uid left in the host's shared folders."""
    import shutil  # its compressors are a megabyte that a strong host never needs

    shutil.rmtree(folder, ignore_errors=True)
    for entry in left_behind(uid) if uid is not None else ():
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                os.unlink(entry.path)
