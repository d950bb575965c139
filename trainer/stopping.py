"""SIGTERM as a request: the step that runs is ended, a checkpoint is written, the process leaves in a stated time."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

log = logging.getLogger(__name__)

TOO_LATE = 143
"""Exit code of a process that did not end in time: 128 + SIGTERM."""


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
    """While it is entered, SIGTERM sets `requested` instead of ending the process; main thread only.

    deadline_s: that long after the signal the process ends where it stands, and the checkpoint before counts.
    torchrun kills its workers 30 s after a SIGTERM unless --shutdown-timeout says more.
    """

    def __init__(self, deadline_s: float) -> None:
        self.deadline_s = deadline_s
        self.requested = False
        self._before: Any = None
        self._timer: threading.Timer | None = None

    def __enter__(self) -> StopRequest:
        self._before = signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGTERM, self._before)
        if self._timer is not None:
            self._timer.cancel()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            return
        self.requested = True
        log.warning("SIGTERM: ending the step and saving, at most %g s", self.deadline_s)
        self._timer = threading.Timer(self.deadline_s, self._leave)
        self._timer.daemon = True
        self._timer.start()

    def _leave(self) -> None:
        log.error("not ended %g s after SIGTERM: leaving; the checkpoint before this step counts", self.deadline_s)
        os._exit(TOO_LATE)
