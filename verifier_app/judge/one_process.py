"""One process for all tests of a rollout, one after the other, as some graders run them: the zygote's half.

The process is forked for the first test and confined as any other. When a test has ended it says so by a byte on a
socket and gets the next one's descriptors there. All that a program can do with its end is to call a test ended that
has not: then that test's output is what came until then. What a byte says beyond that is not believed.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from verifier_app.judge.zygote import Zygote

MAX_FDS = 4
_CPUCLOCK_SCHED = 2


class OneProcess:
    """The process of the tests, as its zygote sees it."""

    def __init__(self, zygote: Zygote, ours: socket.socket, theirs: socket.socket) -> None:
        self._zygote, self._ours, self._theirs = zygote, ours, theirs
        self._pid = 0  # it has not begun
        self._earlier_s = 0.0  # CPU time of the tests before

    def run(self, cpu_s: int, fds: list[int]) -> bytes:
        """Run one test; the answer, as `Zygote.gather` gives it. cpu_s: the CPU limit of all tests together."""
        if not self._pid:
            self._start(cpu_s, fds)
        else:
            with contextlib.suppress(OSError):  # it is gone: how it ended is this test's end
                self._ours.sendmsg([b"."], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
        for fd in fds:
            os.close(fd)
        return self._answer()

    def _start(self, cpu_s: int, fds: list[int]) -> None:
        zygote = self._zygote
        self._pid = os.fork()
        if self._pid == 0:
            end = fcntl.fcntl(self._theirs.fileno(), fcntl.F_DUPFD_CLOEXEC, zygote.kept_end)
            zygote.enter(cpu_s, fds, end + 1)
            zygote.program.run(zygote.alarm, next_test(socket.socket(fileno=end)))
        self._theirs.close()

    def _answer(self) -> bytes:
        """Wait until the test or the process has ended."""
        pid, zygote, earlier_s = self._pid, self._zygote, self._earlier_s
        try:
            ended = not os.read(self._ours.fileno(), 1)
        except OSError:
            ended = True
        if ended:
            return zygote.gather(pid, earlier_s, lasting=True)
        self._earlier_s = max(earlier_s, cpu_time_s(pid))
        named_so = zygote.box.own_proc or not zygote.box.ground.pid  # or /proc has another process under this number
        clean = "true" if zygote.box.clean() else "false"
        return f"[0,{self._earlier_s - earlier_s:.6f},{peak_kb(pid) if named_so else 0},{clean},null]".encode()


def cpu_time_s(pid: int) -> float:
    """CPU seconds of all threads of a process, from its clock (clock_getcpuclockid(3)); 0.0 where there is none."""
    try:
        return time.clock_gettime(~pid << 3 | _CPUCLOCK_SCHED)
    except OSError:
        return 0.0  # what the judge's watch counts decides then


def peak_kb(pid: int) -> int:
    """The largest resident size that a process ever had, in KB; 0 where it cannot be read."""
    try:
        with open(f"/proc/{pid}/status", "rb", buffering=0) as file:
            for line in file.read().splitlines():
                if line.startswith(b"VmHWM:"):
                    return int(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    return 0


def next_test(end: socket.socket) -> Callable[[], bool]:
    """What the test's process calls when a test has ended: wait for the next one's descriptors and take them over.

    It answers False when there is no other. What it uses is bound here: a program may replace the modules' names.
    """
    send, receive, dup2, close = end.send, end.recvmsg, os.dup2, os.close
    room = socket.CMSG_SPACE(4 * MAX_FDS)

    def another() -> bool:
        try:
            send(b".")
            data, ancillary, _, _ = receive(1, room)
        except OSError:
            return False
        if not data or not ancillary:
            return False
        fds = memoryview(ancillary[0][2]).cast("i").tolist()
        for target, fd in enumerate(fds):  # they ascend, so none is overwritten before its turn
            dup2(fd, target)
        for fd in fds:
            if fd >= len(fds):  # else the program had closed a standard descriptor, and it came in that place
                close(fd)
        return True

    return another
