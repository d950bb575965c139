"""The end of a process in which something waits that nothing can wake, as a collective without a peer."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import TracebackType

EXIT_CODE = 1
_LAST_RESORT_S = 1.0


def end_process(message: str) -> None:
    """Logs it and ends the process at once; torchrun ends the other ranks."""
    print(f"error {message}", file=sys.stderr, flush=True)
    os._exit(EXIT_CODE)


def end_process_in(seconds: float, message: str) -> None:
    """Ends the process after this many seconds unless it has ended by itself, whatever it waits in by then."""
    timer = threading.Timer(seconds, end_process, [message])
    timer.daemon = True
    timer.start()
    if threading.current_thread() is threading.main_thread():
        # A thread of Python's no longer runs while the interpreter is being taken down, where a GPU that is still
        # busy may be waited for; the kernel's alarm does.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds + _LAST_RESORT_S)


class Watchdog:
    """While it is entered: the process ends when the block has not been left within `seconds`.

    For collectives: a rank cannot leave one that another rank does not come to.
    """

    def __init__(self, seconds: float, message: str) -> None:
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True
        self._message = message
        self.cause: BaseException | None = None
        """What went wrong on this rank before, if something did."""

    def _end(self) -> None:
        end_process(f"{self._message}{f' after {self.cause}' if self.cause is not None else ''}")

    def __enter__(self) -> Watchdog:
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
