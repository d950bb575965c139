"""What the kernel refuses a program, counted by kind: what a model tries is seen while it first tries it.

The filter's refusals come to the judge (seccomp's user notification), which counts each and answers with the error
that the filter would have given: a number that a program can raise by trying alone, and never lower. They cost
nothing where nothing is refused. After MOST of them in one sandbox the judge hangs up, and the kernel refuses the rest
by itself (ENOSYS), or a program could keep its judge busy.

Not seen are paths that are not there, since no call is refused for them, and calls that do not exist for programs
(ENOSYS).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct

from verifier_app.judge.layers.seccomp import CALLS, column

MOST = 256  # in one sandbox
KINDS = {
    "sockets": "socket socketpair",
    "namespaces": "chroot clone fsconfig fsmount fsopen fspick mount mount_setattr move_mount open_tree pivot_root "
    "setns umount2 unshare",
    "other_processes": "kcmp kill pidfd_getfd prctl prlimit64 process_madvise process_mrelease process_vm_readv "
    "process_vm_writev ptrace",
    "shared_memory": "mq_open msgget semget shmget",
    "priorities": "ioprio_set mbind migrate_pages mlock mlock2 mlockall move_pages sched_setaffinity sched_setattr "
    "sched_setparam sched_setscheduler set_mempolicy setpriority setrlimit",
}
OTHERS = "kernel"  # every other call of the deny-list: modules, clocks, tracing, keys, swap, ...
PROCESSES = "processes"  # more of them than a test may have: it was stopped for it
ALL_KINDS = (*KINDS, OTHERS, PROCESSES)
_RECEIVE, _SEND = 0xC0502100, 0xC0182101  # ioctl(2): SECCOMP_IOCTL_NOTIF_RECV, SECCOMP_IOCTL_NOTIF_SEND
_NOTICE, _ANSWER = struct.Struct("<QIIi60x"), struct.Struct("<QqiI")
_ACCESS = ("socket", "socketpair")  # refused with EACCES


def _numbers() -> dict[int, tuple[str, int]]:
    at = column()
    kinds = {name: kind for kind, names in KINDS.items() for name in names.split()}
    found: dict[int, tuple[str, int]] = {}
    for name, both in CALLS.items():
        number = None if at is None else both[at]
        if number is not None:
            found[number] = kinds.get(name, OTHERS), errno.EACCES if name in _ACCESS else errno.EPERM
    return found


class Refusals:
    """One sandbox's refusals. `fd` is the filter's listener; `counts`: kind -> calls, since they were last taken."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.counts: dict[str, int] = {}
        self._numbers = _numbers()
        self._left = MOST

    def answer(self) -> None:
        """Count and answer the call that waits. Hangs up after the last one that is counted."""
        notice = bytearray(_NOTICE.size)
        try:
            fcntl.ioctl(self.fd, _RECEIVE, notice)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EINTR):  # who called is gone
                self.close()
            return
        ident, _, _, number = _NOTICE.unpack(notice)
        kind, refusal = self._numbers.get(number, (OTHERS, errno.EPERM))
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self._left -= 1
        with contextlib.suppress(OSError):  # it is gone by now
            fcntl.ioctl(self.fd, _SEND, _ANSWER.pack(ident, 0, -refusal, 0))
        if self._left <= 0:
            self.close()

    def take(self) -> dict[str, int]:
        """The counts; they begin again."""
        counts, self.counts = self.counts, {}
        return counts

    def close(self) -> None:
        """Hang up: what waits and all that follows is refused by the kernel."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
