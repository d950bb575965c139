"""What happens to a loop, each a function that does it and, where it passes, ends it again."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable

from tests.faults.loop import Loop
from tests.support.proxy import State

Fault = Callable[[Loop], None]

KILLED = ("api", "policy", "environment", "trainer", "rank-0", "rank-1")
CUT = ("environment-api", "environment-policy", "trainer-api", "trainer-policy")


def named(name: str, do: Fault) -> Fault:
    """With a name for a failing test's message."""
    do.__name__ = do.__qualname__ = name.replace(" ", "_")
    return do


def kill(name: str, away_s: float = 0.2) -> Fault:
    """kill -9 of a process, which is started again after `away_s`."""
    return named(f"kill {name}", lambda loop: loop.kill(name, away_s=away_s))


def kill_judges(count: int | None = None) -> Fault:
    """kill -9 of so many judges, None: of the whole pool."""

    def do(loop: Loop) -> None:
        loop.until(lambda: bool(loop.judges()), "a judge")
        for pid in loop.judges()[:count]:
            os.kill(pid, signal.SIGKILL)

    return named("kill the pool" if count is None else f"kill {count} judge", do)


def hang(name: str, seconds: float) -> Fault:
    """A process that stands still and goes on."""

    def do(loop: Loop) -> None:
        loop.signal(name, signal.SIGSTOP)
        loop.wait(seconds)
        loop.signal(name, signal.SIGCONT)

    return named(f"hang {name}", do)


def hang_and_kill(name: str, seconds: float) -> Fault:
    """A process that stands still until somebody kills it."""

    def do(loop: Loop) -> None:
        loop.signal(name, signal.SIGSTOP)
        loop.wait(seconds)
        loop.kill(name)

    return named(f"hang and kill {name}", do)


def cut(pair: str, state: State, seconds: float) -> Fault:
    """The network between two processes, for a time."""

    def do(loop: Loop) -> None:
        loop.cuts[pair].set(state)
        loop.wait(seconds)
        loop.cuts[pair].set("open")

    return named(f"{state} {pair}", do)


def shuffled(faults: list[Fault], seed: int) -> list[Fault]:
    """In an order drawn by the seed."""
    random.Random(seed).shuffle(faults)
    return faults
