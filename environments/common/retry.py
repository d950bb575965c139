"""Trying again with growing pauses: the one back-off of all clients, on tenacity."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from tenacity import AsyncRetrying, RetryCallState, Retrying, retry_if_exception_type, wait_exponential

T = TypeVar("T")

logger = logging.getLogger(__name__)


class RetryLater(RuntimeError):
    """This try failed on the other side; another one may succeed. Anything else that a try raises ends the tries.

    busy: the other side is there and says that it has too much to do. wait_s: for so long it wants to be left alone.
    tries: how many had failed when they were given up.
    """

    def __init__(self, message: str, *, busy: bool = False, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.busy, self.wait_s = busy, wait_s
        self.tries = 0


@dataclass(frozen=True)
class Failure:
    """A failed try: its error, how many failed so far, seconds since the first began, and the pause before the next."""

    error: RetryLater
    tries: int
    elapsed_s: float
    pause_s: float


def never(_: Failure) -> bool:
    """The tries end with the deadline, or not at all."""
    return False


def log_reason(failure: Failure) -> None:
    """One line for each failed try."""
    logger.warning("%s; trying again in %.1f s", failure.error, failure.pause_s)


@dataclass(frozen=True)
class Retry:
    """How a call is repeated for as long as it raises RetryLater; the last one is raised in the end.

    Args:
        first_s: the first pause in seconds, doubled for each further one up to `longest_s`.
        jitter: each pause is multiplied by a number drawn from this range, so that callers which failed together do
            not come back together. What the error's `wait_s` asks for is waited at least.
        give_up: whether no further try is made.
        deadline_s: seconds from the first try; no try begins later, and none is waited for that would.
        on_retry: called before each pause.
    """

    first_s: float
    longest_s: float
    jitter: tuple[float, float] = (0.5, 1.0)
    give_up: Callable[[Failure], bool] = never
    deadline_s: float | None = None
    on_retry: Callable[[Failure], None] = log_reason
    clock: Callable[[], float] = time.monotonic
    draw: Callable[[float, float], float] = random.uniform

    def call(self, attempt: Callable[[], T], *, sleep: Callable[[float], None] | None = None) -> T:
        """The first result of `attempt`. Raises RetryLater where there is none."""
        tries, pause = _Tries(self), sleep or time.sleep

        def paused(seconds: float) -> None:
            pause(seconds)
            tries.still_in_time()

        return Retrying(sleep=paused, **tries.strategy())(attempt)

    async def call_async(
        self, attempt: Callable[[], Awaitable[T]], *, sleep: Callable[[float], Awaitable[None]] | None = None
    ) -> T:
        """The first result of `attempt`. Raises RetryLater where there is none."""
        tries, pause, task = _Tries(self), sleep or asyncio.sleep, asyncio.current_task()
        cancelled = task.cancelling() if task else 0

        async def paused(seconds: float) -> None:
            if task and task.cancelling() > cancelled:  # a try may answer its cancellation with an error of its own
                raise asyncio.CancelledError
            await pause(seconds)
            tries.still_in_time()

        async def awaited() -> T:  # tenacity awaits only what it sees to be a coroutine function
            return await attempt()

        result: T = await AsyncRetrying(sleep=paused, **tries.strategy())(awaited)
        return result


class _Tries:
    """The tries of one call, as tenacity's strategy."""

    def __init__(self, retry: Retry) -> None:
        self._retry = retry
        self._began = retry.clock()
        self._growing = wait_exponential(multiplier=retry.first_s, max=retry.longest_s)
        self._last: Failure | None = None

    def strategy(self) -> dict[str, Any]:
        """Tenacity's arguments."""
        return {
            "retry": retry_if_exception_type(RetryLater),
            "wait": self._pause_s,
            "stop": self._ends,
            "before_sleep": lambda _: self._retry.on_retry(self._failure),
            "reraise": True,
        }

    @property
    def _failure(self) -> Failure:
        assert self._last is not None
        return self._last

    def _pause_s(self, state: RetryCallState) -> float:
        outcome = state.outcome
        error = outcome.exception() if outcome is not None else None
        assert isinstance(error, RetryLater)
        pause_s = max(self._growing(state) * self._retry.draw(*self._retry.jitter), error.wait_s)
        self._last = Failure(error, state.attempt_number, self._retry.clock() - self._began, pause_s)
        return pause_s

    def _ends(self, _: RetryCallState) -> bool:
        failure, deadline_s = self._failure, self._retry.deadline_s
        failure.error.tries = failure.tries
        late = deadline_s is not None and failure.elapsed_s + failure.pause_s >= deadline_s
        return late or self._retry.give_up(failure)

    def still_in_time(self) -> None:
        """Raises the last failure where the pause took longer than it should, beyond the deadline."""
        failure, self._last = self._failure, None  # its traceback keeps the frames of the try, and what they hold
        deadline_s = self._retry.deadline_s
        if deadline_s is not None and self._retry.clock() - self._began >= deadline_s:
            raise failure.error
