"""Why no batch comes for a while: an environment that keeps groups back says so, and the trainer's wait is not counted.

Kept in memory and bounded in time: an environment that dies while it holds groups back holds nobody up.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class Hold:
    """The reason that was given last, until its seconds are over."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._reason, self._until = "", clock()

    def say(self, reason: str, seconds: float) -> None:
        """Groups are kept back for this reason, for so long from now unless it is said again."""
        self._reason, self._until = reason, self._clock() + seconds

    @property
    def reason(self) -> str | None:
        """None where nobody holds groups back."""
        return self._reason if self._clock() < self._until else None
