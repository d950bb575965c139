"""The watchdog: CPU time, memory, processes and fair time of a running test, from /proc.

Fair time is wall time less the time in which the test waited for a core, or may have waited for the judge, which had
none itself or stood still: then nobody takes the test's output. /proc/PID/task/TID/schedstat says how long each task
waited; of one look the longest wait and the judge's count, and all together never more than has passed. The kernel
books a wait when it ends, so one that still lasts (a runnable task that did not move since) is added before time is
called.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

FIRST_LOOK_S = 0.02
LOOK_EVERY_S = 0.05
PATIENCE = 10.0  # a starved test, or compiler, may take this many times its limit before the host counts as overloaded
MAX_PROCESSES = 128
SPIN_ROUNDS = 30_000  # about a millisecond
TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGESIZE")


class Look:
    """One look at the tree."""

    def __init__(
        self,
        pids: list[int] | None = None,
        cpu_s: float = 0.0,
        rss_bytes: int = 0,
        runnable: bool = False,
        waited_ns: dict[str, int] | None = None,
        ran_ns: int = 0,
        headless_bytes: int = 0,
    ) -> None:
        self.pids = pids or []
        self.cpu_s = cpu_s
        self.rss_bytes = rss_bytes
        self.runnable = runnable
        self.waited_ns = waited_ns or {}  # by task
        self.ran_ns = ran_ns  # of all tasks
        self.headless_bytes = headless_bytes  # of rss_bytes: of processes whose main thread has ended


def _read(path: str, dir_fd: int, size: int = 4096) -> bytes:
    fd = os.open(path, os.O_RDONLY, dir_fd=dir_fd)
    try:
        return os.read(fd, size)
    finally:
        os.close(fd)


def _list(path: str, dir_fd: int) -> list[str]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=dir_fd)
    try:
        return os.listdir(fd)
    finally:
        os.close(fd)


def tree(proc: int, root: int, own_namespace: bool, spare: frozenset[int] = frozenset()) -> dict[int, list[bytes]]:
    """pid -> fields of stat after the name, of all processes below `root` (left out, as are `spare`'s).

    proc: descriptor of /proc; in a pid namespace of its own that is everything but pid 1.
    """
    found: dict[int, list[bytes]] = {}
    for name in os.listdir(proc):
        if name.isdigit():
            try:
                found[int(name)] = _read(f"{name}/stat", proc).rpartition(b")")[2].split()
            except OSError:
                continue
    if own_namespace:
        found.pop(1, None)
        return found
    children: dict[int, list[int]] = {}
    for pid, fields in found.items():
        children.setdefault(int(fields[1]), []).append(pid)
    below, queue = {}, children.get(root, [])[:]
    while queue:
        pid = queue.pop()
        if pid in spare:
            continue
        below[pid] = found[pid]
        queue += children.get(pid, [])
    return below


def _living_thread(pid: int, proc: int) -> list[bytes] | None:
    """stat of a thread that outlives its process's main one, which looks like a zombie then; None: it is one."""
    try:
        for task in _list(f"{pid}/task", proc):
            fields = _read(f"{pid}/task/{task}/stat", proc).rpartition(b")")[2].split()
            if fields[0] not in (b"Z", b"X"):
                return fields
    except (OSError, IndexError):
        pass
    return None


def look(proc: int, root: int, own_namespace: bool, schedstat: bool = True) -> Look:
    """Sum up the tree; processes that end meanwhile count as far as they were seen."""
    result = Look()
    for pid, fields in tree(proc, root, own_namespace).items():
        result.cpu_s += sum(map(int, fields[11:15])) / TICK  # its own and that of the children it waited for
        if fields[0] == b"Z":
            living = _living_thread(pid, proc)
            if living is None:
                continue
            fields = living
            result.headless_bytes += int(fields[21]) * _PAGE
        result.pids.append(pid)
        result.runnable |= fields[0] == b"R"
        result.rss_bytes += int(fields[21]) * _PAGE
        if schedstat:
            try:
                for task in _list(f"{pid}/task", proc):
                    ran, waited = _read(f"{pid}/task/{task}/schedstat", proc).split()[:2]
                    result.waited_ns[task] = int(waited)
                    result.ran_ns += int(ran)
                    state = _read(f"{pid}/task/{task}/stat", proc).rpartition(b")")[2].split()[0]
                    result.runnable |= state == b"R"
            except (OSError, IndexError, ValueError):
                continue
    return result


class Crowd(Exception):
    """A test has more than MAX_PROCESSES processes."""


def proportional_bytes(proc: int, root: int, own_namespace: bool, pids: list[int], enough: int) -> int | None:
    """The processes' memory, shared pages divided among their sharers (PSS); None where that cannot be read.

    It is read as far as it is not above `enough`. A process that forks all the time gives its shares only between two
    forks, so those of a fork bomb are long to read on a busy host, and it grows meanwhile.

    Raises:
        Crowd: there are too many processes by now.
    """
    total = 0
    for pid in pids:
        try:
            for line in _read(f"{pid}/smaps_rollup", proc).splitlines():
                if line.startswith(b"Pss:"):
                    total += int(line.split()[1]) << 10
        except ProcessLookupError:
            continue
        except OSError:
            return None
        if total > enough:
            break
        entries = sum(name.isdigit() for name in os.listdir(proc))
        if entries > MAX_PROCESSES and len(look(proc, root, own_namespace, schedstat=False).pids) > MAX_PROCESSES:
            raise Crowd
    return total


def own_wait_ns() -> int:
    """How long this thread has waited for a core since it began; 0 where the kernel does not say."""
    try:
        with open("/proc/thread-self/schedstat", "rb", buffering=0) as file:
            return int(file.read().split()[1])
    except (OSError, IndexError, ValueError):
        return 0


class Heartbeat:
    """How much slower a fixed piece of work runs than at its best: starvation, where schedstat is missing."""

    def __init__(self) -> None:
        self.best_s = min(self._spin() for _ in range(20))

    @staticmethod
    def _spin() -> float:
        start = time.perf_counter()
        for _ in range(SPIN_ROUNDS):
            pass
        return time.perf_counter() - start

    def starved_share(self) -> float:
        """0 for a free core to 1 for none; small delays are noise."""
        now = self._spin()
        self.best_s = min(self.best_s, now)
        share = 1 - self.best_s / now
        return share if share > 0.2 else 0.0


_heartbeat: Heartbeat | None = None


def heartbeat() -> Heartbeat:
    """The process's heartbeat, calibrated at first use."""
    global _heartbeat
    if _heartbeat is None:
        _heartbeat = Heartbeat()
    return _heartbeat


class Watch:
    """The clock of one test. `scratch`: descriptors of its tmpfs folders, whose contents count as memory."""

    def __init__(
        self,
        proc: int,
        root: int,
        own_namespace: bool,
        time_limit_s: float,
        memory_bytes: int,
        scratch: Sequence[int] = (),
        schedstat: bool = True,
    ) -> None:
        self.proc, self.root, self.own_namespace = proc, root, own_namespace
        self.time_limit_s, self.memory_bytes, self.scratch = time_limit_s, memory_bytes, scratch
        self.schedstat = schedstat
        self.start = self.last = time.monotonic()
        self.next_look = self.start + FIRST_LOOK_S
        self.waited_ns: dict[str, int] = {}
        self.own_wait_ns = own_wait_ns()
        self.there = False  # a process of the test was seen
        self.progress: tuple[int, int] = (0, 0)
        self.moved = self.start
        self.starved_s = 0.0
        self.cpu_s = 0.0
        self.peak_bytes = 0

    @property
    def wall_s(self) -> float:
        return time.monotonic() - self.start

    def seconds_left(self) -> float:
        """Until the next look is due."""
        return self.next_look - time.monotonic()

    def check(self) -> str | None:
        """Look once; the status to stop the test with, "host_overloaded", or None to let it run."""
        late = max(0.0, time.monotonic() - self.next_look)
        seen = look(self.proc, self.root, self.own_namespace, self.schedstat)
        now = time.monotonic()
        interval, self.last = now - self.last, now
        wall = now - self.start
        own_before, self.own_wait_ns = self.own_wait_ns, own_wait_ns()
        away = max(late, (self.own_wait_ns - own_before) / 1e9)
        self.starved_s = min(wall, self.starved_s + self._starved(seen, interval) + away)
        progress = seen.ran_ns, sum(seen.waited_ns.values())
        if progress != self.progress or not seen.runnable:
            self.progress, self.moved = progress, now
        self.waited_ns = seen.waited_ns
        self.cpu_s = max(self.cpu_s, seen.cpu_s)
        if len(seen.pids) > MAX_PROCESSES:
            return "too_many_processes"
        files = sum(usage.f_frsize * (usage.f_blocks - usage.f_bfree) for usage in map(os.fstatvfs, self.scratch))
        held = seen.rss_bytes + files
        if held > self.memory_bytes:  # resident sizes count a shared page once for every sharer
            try:
                shares = proportional_bytes(self.proc, self.root, self.own_namespace, seen.pids, self.memory_bytes)
            except Crowd:
                return "too_many_processes"
            # Of a process without its main thread no shares can be read.
            held = held if shares is None else shares + seen.headless_bytes + files
        self.peak_bytes = max(self.peak_bytes, held)
        self.next_look = time.monotonic() + LOOK_EVERY_S
        if held > self.memory_bytes:
            return "memory_limit_exceeded"
        pending = now - self.moved if seen.waited_ns else 0.0  # a wait that is not booked yet
        if self.cpu_s > self.time_limit_s or wall - self.starved_s - pending > self.time_limit_s:
            return "time_limit_exceeded"
        if wall > self.time_limit_s * PATIENCE:
            return "host_overloaded"
        return None

    def _starved(self, seen: Look, interval: float) -> float:
        """Seconds of this interval in which the test wanted a core and had none, or was not there at all."""
        if not (seen.pids and self.there):  # a slow host is starting it, or clears up after it
            self.there = bool(seen.pids)
            return interval
        if seen.waited_ns:
            waits = [ns - self.waited_ns.get(task, 0) for task, ns in seen.waited_ns.items()]
            return max(waits, default=0) / 1e9
        idle = interval - max(0.0, seen.cpu_s - self.cpu_s) if seen.runnable else 0.0  # runnable, and yet no CPU time
        return max(idle, interval * heartbeat().starved_share())
