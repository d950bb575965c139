"""The watchdog: CPU time, memory, processes and fair time of a running test, from /proc."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field

FIRST_LOOK_S = 0.02
LOOK_EVERY_S = 0.05
PATIENCE = 10.0  # a starved test may take this many times its limit before the host counts as overloaded
MAX_PROCESSES = 128
_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGESIZE")


@dataclass
class Look:
    """One look at the tree."""

    cpu_s: float = 0.0
    rss_bytes: int = 0
    processes: int = 0
    waited: dict[str, int] = field(default_factory=dict)  # task -> ns waited for a core


def _read(path: str, dir_fd: int) -> bytes:
    fd = os.open(path, os.O_RDONLY, dir_fd=dir_fd)
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)


def tree(proc: int, root: int, own_namespace: bool) -> dict[int, list[bytes]]:
    """pid -> fields of stat after the name, of all processes below `root` (which is left out)."""
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
        below[pid] = found[pid]
        queue += children.get(pid, [])
    return below


def look(proc: int, root: int, own_namespace: bool) -> Look:
    """Sum up the tree; processes that end meanwhile count as far as they were seen."""
    result = Look()
    for pid, fields in tree(proc, root, own_namespace).items():
        if fields[0] == b"Z":
            continue
        result.processes += 1
        result.cpu_s += sum(map(int, fields[11:15])) / _TICK
        result.rss_bytes += int(fields[21]) * _PAGE
        try:
            for task in os.listdir(f"/proc/self/fd/{proc}/{pid}/task"):
                name = f"{pid}/task/{task}"
                result.waited[name] = int(_read(f"{name}/schedstat", proc).split()[1])
        except (OSError, IndexError, ValueError):
            continue
    return result


class Watch:
    """The clock of one test."""

    def __init__(self, proc: int, root: int, own_namespace: bool, time_limit_s: float, memory_bytes: int) -> None:
        self.proc, self.root, self.own_namespace = proc, root, own_namespace
        self.time_limit_s = time_limit_s
        self.memory_bytes = memory_bytes
        self.start = self.last = time.monotonic()
        self.next_look = self.start + FIRST_LOOK_S
        self.waited: dict[str, int] = {}
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
        seen = look(self.proc, self.root, self.own_namespace)
        now = time.monotonic()
        interval, self.last = now - self.last, now
        waited = sum(ns - self.waited.get(task, 0) for task, ns in seen.waited.items()) / 1e9
        self.starved_s += min(interval, max(0.0, waited))
        self.waited = seen.waited
        self.cpu_s = max(self.cpu_s, seen.cpu_s)
        self.peak_bytes = max(self.peak_bytes, seen.rss_bytes)
        self.next_look = now + LOOK_EVERY_S
        wall = now - self.start
        if seen.rss_bytes > self.memory_bytes:
            return "memory_limit_exceeded"
        if seen.processes > MAX_PROCESSES:
            return "runtime_error"
        if self.cpu_s > self.time_limit_s or wall - self.starved_s > self.time_limit_s:
            return "time_limit_exceeded"
        if wall > self.time_limit_s * PATIENCE:
            return "host_overloaded"
        return None
