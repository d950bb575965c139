"""One of several servers that do the same work: the least loaded one, and those that failed last."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar


@dataclass
class Endpoint:
    """One server: its address, the requests that are at it now, and until when (time.monotonic()) it is left alone."""

    url: str
    running: int = 0
    down_until: float = 0.0

    @property
    def is_down(self) -> bool:
        """Whether it failed just now."""
        return self.down_until > time.monotonic()

    def leave_alone(self, seconds: float) -> None:
        """For so long it is asked only where no other one is there."""
        self.down_until = time.monotonic() + seconds


E = TypeVar("E", bound=Endpoint)


def least_loaded(endpoints: Iterable[E], avoid: Callable[[E], Any] = lambda one: one.is_down) -> E | None:
    """The endpoint with the fewest requests among those to be avoided least; None where there is none.

    avoid: what is ordered by first, False before True.
    """
    return min(endpoints, key=lambda one: (avoid(one), one.running), default=None)
