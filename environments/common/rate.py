"""A bound on how often something begins."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable


class Rate:
    """Beginnings in the order they were asked for: at most `per_s` a second, and one second's worth at once.

    Args:
        per_s: above 0.
        clock, sleep: for tests.
    """

    def __init__(
        self,
        per_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._every, self._clock, self._sleep = 1 / per_s, clock, sleep
        self._ahead = max(0.0, 1.0 - self._every)  # how long before its even time one may begin
        self._next = clock()

    async def turn(self) -> None:
        """Returns when the next one may begin; a turn that is given up while it is waited for is lost."""
        now = self._clock()
        due = max(self._next, now)
        self._next = due + self._every
        if (wait_s := due - self._ahead - now) > 0:
            await self._sleep(wait_s)
