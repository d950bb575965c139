"""SIGTERM and Ctrl-C as a request: the step that runs is ended and saved, and the process leaves in a stated time."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

log = logging.getLogger(__name__)

TOO_LATE = 143
"""Exit code of a process that did not end in time: 128 + SIGTERM."""
AT_ONCE = 130
"""Exit code after a second Ctrl-C: 128 + SIGINT."""
SAME_PRESS_S = 0.3
"""One Ctrl-C may come twice: from the terminal, and from a parent that hands it on."""


_PR_SET_PDEATHSIG = 1


def end_with_launcher() -> None:
    """Has the kernel end this rank with the torchrun that started it; does nothing where none did.

    torchrun gives each rank a session of its own, so that a rank outlives a torchrun that is killed: it would train and
    publish beside the run that is started again.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    launcher = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != launcher or launcher == 1:  # it died before the kernel was asked
        os._exit(TOO_LATE)


class StopRequest:
    """While it is entered, SIGTERM or Ctrl-C sets `requested` instead of ending the process; main thread only.

    deadline_s: that long after the signal the process ends at once, and the checkpoint before counts. A second
    Ctrl-C ends it at once. torchrun kills its workers 30 s after a signal unless --shutdown-timeout says more.
    """

    def __init__(self, deadline_s: float) -> None:
        self.deadline_s = deadline_s
        self.requested = False
        self._before: dict[int, Any] = {}
        self._timer: threading.Timer | None = None
        self._since = 0.0

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._timer is not None:
            self._timer.cancel()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self.requested:
            self.requested, self._since = True, time.monotonic()
            name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
            again = "; Ctrl-C again leaves at once" if number == signal.SIGINT else ""
            log.warning("%s: ending the step and saving, at most %g s%s", name, self.deadline_s, again)
            self._timer = threading.Timer(self.deadline_s, self._leave)
            self._timer.daemon = True
            self._timer.start()
        elif number == signal.SIGINT and time.monotonic() - self._since >= SAME_PRESS_S:
            log.error("Ctrl-C again: leaving at once; the checkpoint before this step counts")
            os._exit(AT_ONCE)

    def _leave(self) -> None:
        log.error("not ended %g s after the signal: leaving; the checkpoint before this step counts", self.deadline_s)
        os._exit(TOO_LATE)
