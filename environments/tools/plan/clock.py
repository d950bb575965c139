"""Simulated time, and places that work waits for."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable
from typing import Any


class Clock:
    """Calls in the order of their time, those of the same time in the order in which they were asked for.

    Own code instead of SimPy: its processes cost ten times as much for an event, and a request whose speed changes
    with its neighbours' number has to be timed again and again, which is an interrupt there and a number here.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._calls: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0

    def at(self, when: float, call: Callable[..., None], *arguments: Any) -> None:
        """Calls at this second, or now where it is over."""
        self._count += 1
        heapq.heappush(self._calls, (max(when, self.now), self._count, call, arguments))

    def after(self, seconds: float, call: Callable[..., None], *arguments: Any) -> None:
        """Calls after this many seconds."""
        self.at(self.now + seconds, call, *arguments)

    def run(self, until: Callable[[], bool]) -> bool:
        """Goes from call to call until `until` holds; whether it does, False where nothing is left to be called."""
        while not until():
            if not self._calls:
                return False
            self.now, _, call, arguments = heapq.heappop(self._calls)
            call(*arguments)
        return True


class Level:
    """A number that changes now and then: its integral over time and its maximum, from `restart` on."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.value = 0.0
        self.restart()

    def restart(self) -> None:
        """Forgets what was, not what is."""
        self.area, self.most, self._since = 0.0, self.value, self._clock.now

    def add(self, change: float) -> None:
        """Changes the number."""
        self.total()
        self.value += change
        self.most = max(self.most, self.value)

    def total(self) -> float:
        """The integral up to now."""
        now = self._clock.now
        self.area += self.value * (now - self._since)
        self._since = now
        return self.area


class Pool:
    """Places where work is done in the order it came: judges, containers, or one process (one place).

    Args:
        starts_per_s: most beginnings in a second, after a first `burst`; None: no limit.
    """

    def __init__(self, clock: Clock, places: int, *, starts_per_s: float | None = None, burst: int = 1) -> None:
        self.places = places
        self.busy, self.queue = Level(clock), Level(clock)
        self.done = 0
        self._clock = clock
        self._waiting: deque[tuple[float, Callable[..., None], tuple[Any, ...]]] = deque()
        self._starts_per_s, self._burst = starts_per_s, burst
        self._allowed = -math.inf

    def submit(self, seconds: float, call: Callable[..., None], *arguments: Any) -> None:
        """Work of this many seconds; then `call`."""
        if self.busy.value < self.places:
            self._begin(seconds, call, arguments)
        else:
            self.queue.add(1)
            self._waiting.append((seconds, call, arguments))

    def _begin(self, seconds: float, call: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        self.busy.add(1)
        self._clock.after(self._delay() + seconds, self._end, call, arguments)

    def _delay(self) -> float:
        """Seconds until one more may begin: a bucket of `burst` beginnings that fills at `starts_per_s`."""
        if self._starts_per_s is None:
            return 0.0
        now, every = self._clock.now, 1 / self._starts_per_s
        self._allowed = max(self._allowed, now - (self._burst - 1) * every)
        delay = max(0.0, self._allowed - now)
        self._allowed += every
        return delay

    def _end(self, call: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        self.busy.add(-1)
        self.done += 1
        if self._waiting:
            self.queue.add(-1)
            self._begin(*self._waiting.popleft())
        call(*arguments)
