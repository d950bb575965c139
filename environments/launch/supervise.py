"""Processes that are started again when they die, with growing pauses and a limit: `atropos supervise -- COMMAND`.

What may be started again by the same command: the API server with its journal, vLLM (the trainer brings it the current
weights), the environment, the trainer with checkpoint.resume auto.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from environments.common.errors import BAD_INPUT, BAD_INPUT_NOTE, ConfigError


@dataclass
class Restarts:
    """How often a process may be started again, and how long to wait before.

    Args:
        limit: in a row. The count and the pause start over once the process has run for `steady_s` seconds.
        first_pause_s: before the first restart; doubled for each further one up to `longest_pause_s`.
    """

    name: str
    limit: int
    say: Callable[[str], None]
    first_pause_s: float = 2.0
    longest_pause_s: float = 60.0
    steady_s: float = 600.0
    failures: int = 0

    def after(self, code: int, ran_s: float) -> float | None:
        """The pause in seconds before the next start of a process that ended with `code`; None: not again."""
        if code == BAD_INPUT:
            self.say(f"{self.name}: exit code {code}: bad input, not started again; its log says what to fix")
            return None
        if ran_s >= self.steady_s:
            self.failures = 0
        self.failures += 1
        if self.failures > self.limit:
            self.say(
                f"{self.name}: ended {self.failures} times in a row, at last with {told(code)}; the limit is "
                f"{self.limit} restarts. Look into its log, fix the cause and start the run again: it resumes where "
                "it was"
            )
            return None
        pause = min(self.first_pause_s * 2 ** (self.failures - 1), self.longest_pause_s)
        self.say(f"{self.name}: ended with {told(code)}; restart {self.failures} of {self.limit} in {pause:g} s")
        return float(pause)


class Stop(threading.Event):
    """A request to stop, with the signals that the command is to get for it, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.signals: list[int] = []

    def ask(self, number: int = signal.SIGTERM) -> None:
        """Adds a signal: a second Ctrl-C means something else than the first."""
        self.signals.append(number)
        self.set()


def supervise(command: Sequence[str], allowed: Restarts, stop: Stop | None = None) -> int:
    """Runs the command until it ends well, fails once too often, or is asked to stop; its last exit code.

    Args:
        stop: asked by the caller: the command gets the signal and is not started again.
    """
    stop = stop or Stop()
    while True:
        started = time.monotonic()
        code = _run(command, stop)
        if code == 0 or stop.is_set():
            return code
        pause = allowed.after(code, time.monotonic() - started)
        if pause is None or stop.wait(pause):
            return code


def _run(command: Sequence[str], stop: Stop) -> int:
    """The command's exit code (negative: the signal that ended it); `stop`'s signals go to it as they come.

    BAD_INPUT also where a process below it, such as a rank below torchrun, has left the note that it was that.
    """
    with tempfile.TemporaryDirectory() as folder:
        note = Path(folder) / "bad-input"
        code = _wait(command, stop, {**os.environ, BAD_INPUT_NOTE: str(note)})
        return BAD_INPUT if code and note.exists() else code


def _wait(command: Sequence[str], stop: Stop, variables: dict[str, str]) -> int:
    try:
        # In a session of its own: a terminal's Ctrl-C would reach it twice, and the second one means "at once".
        process = subprocess.Popen(command, env=variables, start_new_session=True)
    except OSError as error:
        raise ConfigError(
            f"supervise: {command[0]}: cannot be started ({error.strerror}); give a program's name or path after --"
        ) from None
    handed = 0
    try:
        while True:
            try:
                return process.wait(0.1)
            except subprocess.TimeoutExpired:
                for number in stop.signals[handed:]:
                    process.send_signal(number)
                    handed += 1
    except BaseException:
        process.kill()
        process.wait()
        raise


def told(code: int) -> str:
    """An exit code in words: a signal's name where it is negative."""
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def main(name: str, command: Sequence[str], restarts: int) -> int:
    """The command line's: SIGTERM, SIGINT and a closed terminal are handed on, and end it; a shell's exit code."""
    stop = Stop()

    def asked(number: int, _: FrameType | None) -> None:
        stop.ask(signal.SIGTERM if number == signal.SIGHUP else number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, asked)
    code = supervise(command, Restarts(name, restarts, lambda line: print(line, file=sys.stderr, flush=True)), stop)
    return code if code >= 0 else 128 - code
