"""One look at a test's processes in /proc: who is there, what they ran, how long they waited, what they hold."""

from __future__ import annotations

import os
from collections.abc import Iterable

from verifier_app.judge.procfs import below, everything, fields_of, listing, read
from verifier_app.judge.shared_memory import SHARES_KNOWN, own_bytes

MAX_PROCESSES = 128
TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGESIZE")


class ProcessTreeSample:
    """One look at the tree."""

    def __init__(
        self,
        pids: list[int] | None = None,
        cpu_s: float = 0.0,
        rss_bytes: int = 0,
        runnable: bool = False,
        waited_ns: dict[str, int] | None = None,
        ran_ns: int = 0,
        awake: bool = True,
    ) -> None:
        self.pids = pids or []
        self.cpu_s = cpu_s
        self.rss_bytes = rss_bytes
        self.runnable = runnable
        self.waited_ns = waited_ns or {}  # by task
        self.ran_ns = ran_ns  # of all tasks
        self.awake = awake  # the zygote is busy, or waits for a core
        self.sizes: dict[str, bytes] = {}  # address space by process, each as its path in /proc
        self.base_bytes = 0  # the zygote's own address space
        self.own_s: dict[tuple[int, bytes], float] = {}  # by process, zombies included
        self.reaped_s = 0.0  # of those that the zygote waited for, since it began
        self.running: dict[str, int] = {}  # tasks that run or want to: nanoseconds that each ran


def _living_thread(pid: int, proc: int) -> tuple[str, list[bytes]] | None:
    """Name and stat of a thread that outlives its process's main one, which looks like a zombie; None: it is one."""
    try:
        for task in listing(f"{pid}/task", proc):
            fields = fields_of(f"{pid}/task/{task}/stat", proc)
            if fields[0] not in (b"Z", b"X"):
                return task, fields
    except (OSError, IndexError):
        pass
    return None


def look(proc: int, root: int, own_namespace: bool, schedstat: bool = True) -> ProcessTreeSample:
    """Sum up the tree; processes that end meanwhile count as far as they were seen."""
    result = ProcessTreeSample()
    found = everything(proc)
    zygote = found.pop(1, None) if own_namespace else found.get(root)
    if not own_namespace:
        found = below(found, root)
    if zygote is not None:
        result.awake = zygote[0] in (b"R", b"D")
        result.reaped_s = sum(map(int, zygote[13:15])) / TICK
        result.base_bytes = int(zygote[20])
    for pid, fields in found.items():
        times = [int(ticks) / TICK for ticks in fields[11:15]]
        result.own_s[pid, fields[19]] = times[0] + times[1]
        result.cpu_s += sum(times)  # its own and that of the children it waited for
        where = str(pid)
        if fields[0] == b"Z":
            living = _living_thread(pid, proc)
            if living is None:
                continue
            where, fields = f"{pid}/task/{living[0]}", living[1]
        result.pids.append(pid)
        result.sizes[where] = fields[20]
        result.runnable |= fields[0] == b"R"
        result.rss_bytes += int(fields[21]) * _PAGE
        if schedstat:
            _add_tasks(result, pid, proc)
    return result


def _add_tasks(result: ProcessTreeSample, pid: int, proc: int) -> None:
    try:
        for task in listing(f"{pid}/task", proc):
            ran, waited = map(int, read(f"{pid}/task/{task}/schedstat", proc).split()[:2])
            result.waited_ns[task] = waited
            result.ran_ns += ran
            if fields_of(f"{pid}/task/{task}/stat", proc)[0] == b"R":
                result.runnable = True
                result.running[task] = ran
    except (OSError, IndexError, ValueError):
        return


class TooManyProcesses(Exception):
    """A test has more than MAX_PROCESSES processes."""


def proportional_bytes(
    proc: int, root: int, own_namespace: bool, paths: Iterable[int | str], enough: int, files: bool = True
) -> int | None:
    """The processes' memory without shared one, common pages divided among their sharers; None: it cannot be read.

    It is read as far as it is not above `enough`. A process that forks all the time gives its shares only between two
    forks, so those of a fork bomb are long to read on a busy host, and it grows meanwhile.

    Raises:
        Crowd: there are too many processes by now.
    """
    if not SHARES_KNOWN:
        return None
    total = 0
    for path in paths:
        try:
            total += own_bytes(path, proc, files)
        except (FileNotFoundError, ProcessLookupError, KeyError):  # it ended meanwhile
            continue
        except OSError:
            return None
        if total > enough:
            break
        entries = sum(name.isdigit() for name in listing(".", proc))
        if entries > MAX_PROCESSES and len(look(proc, root, own_namespace, schedstat=False).pids) > MAX_PROCESSES:
            raise TooManyProcesses
    return total
