"""The processes of a run, seen from outside: who belongs to it, what the judges cost, who is left in the end."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

TICK = os.sysconf("SC_CLK_TCK")


class Seen(NamedTuple):
    """A process as /proc shows it; `started` tells two with the same id apart."""

    pid: int
    started: int
    parent: int
    name: str
    state: str
    cpu_s: float  # its own and that of its children which it has waited for


def everyone() -> Iterator[Seen]:
    """The machine's processes."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as file:
                    head, _, rest = file.read().rpartition(")")
            except (FileNotFoundError, ProcessLookupError):
                continue
            fields = rest.split()
            cpu = sum(map(int, fields[11:15])) / TICK
            yield Seen(int(entry), int(fields[19]), int(fields[1]), head.partition("(")[2], fields[0], cpu)


def command(pid: int) -> str:
    """Its command line; empty for one that is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


class Tracker:
    """Everything that descends from some processes, or has the name that this run's leftovers give themselves.

    Args:
        roots: the ids of the run's own processes.
        mark: the name. It survives fork and setsid, so that a process which left the tree is found.
    """

    def __init__(self, roots: Sequence[int], mark: str) -> None:
        self.roots, self.mark = frozenset(roots), mark
        self.seen: set[tuple[int, int]] = set()  # (pid, started) of all that were looked at
        self.living = 0
        self.workers: list[int] = []  # judges
        self.templates: list[int] = []
        self._cpu: dict[tuple[int, int], float] = {}

    def look(self) -> None:
        """Who is there now."""
        processes = list(everyone())
        family, grew = set(self.roots), True
        while grew:
            more = {one.pid for one in processes if one.parent in family} - family
            family |= more
            grew = bool(more)
        members = [one for one in processes if one.pid in family or one.name == self.mark]
        self.living = len(members)
        self.workers, self.templates = [], []
        self.seen |= {(one.pid, one.started) for one in members}
        # A fork has its parent's command line: only a worker's own child is a template.
        for found, word, parents in (
            (self.workers, "verifier_app.judge.worker", self.roots),
            (self.templates, "verifier_app.judge.template", self.workers),
        ):
            for one in members:
                if one.parent in parents and word in command(one.pid):
                    found.append(one.pid)
                    self._cpu[one.pid, one.started] = one.cpu_s

    def cpu_s(self) -> float:
        """CPU seconds of judges and templates with all that they have waited for, those that are gone included."""
        return sum(self._cpu.values())

    def survivors(self) -> list[str]:
        """What of the run still lives, now that it has ended; a dead process that nobody has waited for does not."""
        return [
            f"{one.pid} {one.name}: {command(one.pid)[:120]}"
            for one in everyone()
            if ((one.pid, one.started) in self.seen or one.name == self.mark) and one.state not in "ZX"
        ]
