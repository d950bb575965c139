"""A call that may hang forever, waited for by those that must not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class RouteCall(Generic[T]):
    """A function in a daemon thread: what hangs in it keeps neither the caller nor the process's end waiting."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._value: T | None = None
        self.error: BaseException | None = None
        self._done = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            self._value = self._work()
        except BaseException as error:  # raised again by `result`
            self.error = error
        self._done.set()

    @property
    def done(self) -> bool:
        """Whether it has returned or raised."""
        return self._done.is_set()

    def wait(self, seconds: float) -> bool:
        """Whether it is done within this many seconds."""
        return self._done.wait(max(seconds, 0.0))

    def result(self, seconds: float) -> T:
        """What it returned or raised; TimeoutError after this many seconds."""
        if not self.wait(seconds):
            raise TimeoutError
        if self.error is not None:
            raise self.error
        return self._value  # type: ignore[return-value]
