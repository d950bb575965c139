"""The watchdog: CPU time, memory, processes and fair time of a running test, from /proc.

Fair time is wall time less the time in which the test waited for a core, or may have waited for the judge, which had
none itself or stood still: then nobody takes the test's output. /proc/PID/task/TID/schedstat says how long each task
waited; of one look the longest wait and the judge's count, and all together never more than has passed less what the
test itself ran: where its own crowd keeps it waiting, nobody took anything from it. The kernel books a wait when it
ends, so one that still lasts (a runnable task that did not move since) is added before time is called.

CPU time is a running total. What a process ran is in its own count as long as it is there, later in that of the parent
that waited for it, or in the zygote's for orphans. A parent that ignores SIGCHLD has it thrown away, so what was seen
of each process counts on; once time was lost so, what runs at the looks tells the rest.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Sequence

from verifier_app.judge.layers.cgroup import Usage
from verifier_app.judge.layers.memory_group import MemoryGroup
from verifier_app.judge.process_tree import (
    MAX_PROCESSES,
    TICK,
    ProcessTreeSample,
    TooManyProcesses,
    look,
    proportional_bytes,
)
from verifier_app.judge.shared_memory import Hidden, Loose, socket_bytes

FIRST_LOOK_S = 0.02
LOOK_EVERY_S = 0.05
LOOK_AT_LEAST_S = 0.3  # however long a look takes
PATIENCE = 10.0  # a starved test, or compiler, may take this many times its limit before the host counts as overloaded
READINGS = 3  # of the memory, before it is too much
CORES = len(os.sched_getaffinity(0))
SPIN_ROUNDS = 30_000  # about a millisecond
# gVisor counts a task that waits for one of its host's cores as running, so its CPU time grows while it is starved.
WAITS_AS_CPU = os.path.exists("/proc/sentry-meminfo")


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


def cpu_cap_s(time_limit_s: float) -> int:
    """RLIMIT_CPU for a test: above its limit, and where waits count as CPU time above the longest wait for a core."""
    return int(time_limit_s * (PATIENCE if WAITS_AS_CPU else 1)) + 2


_heartbeat: Heartbeat | None = None


def heartbeat() -> Heartbeat:
    """The process's heartbeat, calibrated at first use."""
    global _heartbeat
    if _heartbeat is None:
        _heartbeat = Heartbeat()
    return _heartbeat


class CpuTime:
    """CPU seconds of one test's tree, whoever reaped what. before_s: what the zygote had waited for until then."""

    def __init__(self, before_s: float) -> None:
        self.before_s = before_s
        self.total_s = 0.0
        self._seen: dict[tuple[int, bytes], float] = {}
        self._seen_s = 0.0  # their sum
        self._sampled_s = 0.0
        self._excess_s = 0.0
        self._lost = False
        self._running: dict[str, tuple[int, int]] = {}

    def add(self, seen: ProcessTreeSample, interval: float) -> None:
        """Count what this look shows."""
        for process, own_s in seen.own_s.items():
            more = own_s - self._seen.get(process, 0.0)
            if more > 0:
                self._seen[process] = own_s
                self._seen_s += more
        found_s = seen.cpu_s + max(0.0, seen.reaped_s - self.before_s)
        # Counts come in ticks, each rounded; a process that ends under the look is missing in this one only.
        excess_s = self._seen_s - found_s - (len(seen.own_s) + 2) / TICK
        self._lost |= min(excess_s, self._excess_s) > 0
        self._excess_s = excess_s
        self._sampled_s += self._sample(seen, interval)
        self.total_s = max(self.total_s, found_s, self._seen_s, self._sampled_s if self._lost else 0.0)

    def _sample(self, seen: ProcessTreeSample, interval: float) -> float:
        """What this interval cost, from the tasks that run or want to now and the share of time in which such ran."""
        ran = waited = 0
        now = {}
        for task, total in seen.running.items():
            now[task] = total, seen.waited_ns[task]
            before = self._running.get(task, (0, 0))
            ran += now[task][0] - before[0]
            waited += now[task][1] - before[1]
        self._running = now
        busy = len(now) * ran / (ran + waited) if ran > 0 and waited >= 0 else 0.0
        return min(busy, CORES) * interval


class Watchdog:
    """The clock of one test.

    scratch: descriptors of its tmpfs folders, whose contents count as memory; loose: its files where it has none of its
    own; control: descriptor on which the zygote answers; reaped_s: CPU time of what the zygote waited for before;
    usage: its cgroup's count, where there is one; forked: its processes begin with the zygote's address space.
    """

    def __init__(
        self,
        proc: int,
        root: int,
        own_namespace: bool,
        time_limit_s: float,
        memory_bytes: int,
        scratch: Sequence[int] = (),
        schedstat: bool = True,
        *,
        loose: Loose | None = None,
        own_network: bool = False,
        control: int = -1,
        reaped_s: float = 0.0,
        usage: Usage | MemoryGroup | None = None,
        forked: bool = True,
    ) -> None:
        self.proc, self.root, self.own_namespace = proc, root, own_namespace
        self.time_limit_s, self.memory_bytes, self.scratch = time_limit_s, memory_bytes, scratch
        self.schedstat, self.loose, self.own_network, self.control = schedstat, loose, own_network, control
        self.usage, self.forked = usage, forked
        self.start = self.last = time.monotonic()
        self.next_look = self.start + FIRST_LOOK_S
        self.waited_ns: dict[str, int] = {}
        self.own_wait_ns = own_wait_ns()
        self.there = False  # a process of the test was seen
        self.progress: tuple[int, int] = (0, 0)
        self.moved = self.start
        self.starved_s = 0.0
        self.cpu = CpuTime(reaped_s)
        self.lent_s = 0.0  # of the CPU time: counted while others had the core
        self.hidden = Hidden()
        self.peak_bytes = 0
        self.earlier_s = 0.0  # CPU time of the same processes in the tests before

    def next_test(self) -> None:
        """The next test of the same process begins now."""
        seen = look(self.proc, self.root, self.own_namespace, self.schedstat)
        self.start = self.last = self.moved = time.monotonic()
        self.next_look = self.start + FIRST_LOOK_S
        self.waited_ns, self.own_wait_ns = seen.waited_ns, own_wait_ns()
        self.starved_s = self.lent_s = 0.0
        self.peak_bytes = 0
        self.cpu.add(seen, 0.0)
        self.earlier_s = self.cpu.total_s

    @property
    def wall_s(self) -> float:
        return time.monotonic() - self.start

    @property
    def cpu_s(self) -> float:
        return self.cpu.total_s - self.earlier_s

    def seconds_left(self) -> float:
        """Until the next look is due."""
        return self.next_look - time.monotonic()

    def check(self) -> str | None:
        """Look once; the status to stop the test with, "host_overloaded", or None to let it run."""
        began = time.monotonic()
        late = max(0.0, began - self.next_look)
        if self._answered():  # there is nothing to see any more
            self.next_look = began + LOOK_EVERY_S
            return None
        seen = look(self.proc, self.root, self.own_namespace, self.schedstat)
        now = time.monotonic()
        self._clock(seen, now, late)
        if len(seen.pids) > MAX_PROCESSES:
            return "too_many_processes"
        try:
            held = self._held(seen)
        except TooManyProcesses:
            return "too_many_processes"
        self.peak_bytes = max(self.peak_bytes, held)
        ended = time.monotonic()
        self.next_look = ended + min(max(LOOK_EVERY_S, 4 * (ended - began)), LOOK_AT_LEAST_S)
        if held > self.memory_bytes:
            return "memory_limit_exceeded"
        wall = now - self.start
        pending = now - self.moved if seen.waited_ns else 0.0  # a wait that is not booked yet
        if self.cpu_s - self.lent_s > self.time_limit_s or wall - self.starved_s - pending > self.time_limit_s:
            return "time_limit_exceeded"
        if wall > self.time_limit_s * PATIENCE:
            return "host_overloaded"
        return None

    def _answered(self) -> bool:
        """Whether the zygote has reported how the test ended."""
        if self.control < 0:
            return False
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        return bool(poll.poll(0))

    def _clock(self, seen: ProcessTreeSample, now: float, late: float) -> None:
        """CPU time and starved time until now."""
        interval, self.last = now - self.last, now
        wall = now - self.start
        own_before, self.own_wait_ns = self.own_wait_ns, own_wait_ns()
        away = max(late, (self.own_wait_ns - own_before) / 1e9)
        before_s = self.cpu_s
        self.cpu.add(seen, interval)
        ran_s = self.cpu_s - before_s
        blind = bool(seen.pids) and self.there and not seen.waited_ns
        share = heartbeat().starved_share() if blind else 0.0
        if WAITS_AS_CPU and CORES > 1 and ran_s <= interval + 2 / TICK:  # one task's: more would slow the judge itself
            self.lent_s += ran_s * share
        starved_s = self.starved_s + self._starved(seen, interval, ran_s, share) + away
        # On all cores nothing more could have run than the test itself did not run.
        self.starved_s = max(0.0, min(starved_s, wall - (self.cpu_s - self.lent_s) / CORES))
        progress = seen.ran_ns, sum(seen.waited_ns.values())
        if progress != self.progress or not seen.runnable:
            self.progress, self.moved = progress, now
        self.waited_ns = seen.waited_ns

    def _starved(self, seen: ProcessTreeSample, interval: float, ran_s: float, share: float) -> float:
        """Seconds of this interval in which the test wanted a core and had none, or was not there at all."""
        if not (seen.pids and self.there):  # a slow host is starting it, or clears up after it
            first, self.there = not self.there, self.there or bool(seen.pids)
            # A zygote that sleeps has a test to wait for. That none is to be seen is then no fault of the host's.
            return interval if first or seen.awake else 0.0
        if seen.waited_ns:
            waits = [ns - self.waited_ns.get(task, 0) for task, ns in seen.waited_ns.items()]
            return max(waits, default=0) / 1e9
        idle = interval - ran_s if seen.runnable else 0.0  # runnable, and yet no CPU time
        return max(idle, interval * share)

    def _held(self, seen: ProcessTreeSample) -> int:
        """Bytes that the test's processes and files hold. What is shared counts once where that decides."""
        if self.usage is not None:
            return self.usage.used_bytes(self.memory_bytes)
        usages = map(os.fstatvfs, self.scratch)
        files = sum(usage.f_frsize * (usage.f_blocks - usage.f_bfree) for usage in usages)
        if self.loose is not None and seen.sizes:
            files += self.loose.bytes(self.proc, seen.sizes)
        files += socket_bytes(self.proc, seen.sizes, self.own_network) if self.proc >= 0 else 0
        base = seen.base_bytes if self.forked else 0
        spaces = sum(max(0, int(size) - base) for size in seen.sizes.values())
        if spaces + files > self.memory_bytes:  # more is mapped than may be held
            files += self.hidden.bytes(self.proc, seen.sizes)
        held = seen.rss_bytes + files
        # Resident sizes count a shared page once for every sharer and a mapped file as a file too. Shares, read one
        # after the other while sharers end, add up to too much at times, but not again and again.
        for _ in range(READINGS if held > self.memory_bytes else 0):
            # Files that lie on the host's disks are counted there, mapped or not.
            where, limit, mapped = (self.proc, self.root, self.own_namespace), self.memory_bytes, self.loose is None
            shares = proportional_bytes(*where, seen.sizes, limit, files=mapped)
            held = min(held, held if shares is None else shares + files)
            if held <= self.memory_bytes:
                break
        return held
