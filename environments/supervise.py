"""A process that is started again when it dies, with growing pauses and a limit: `atropos supervise -- COMMAND`.

What may be started again by the same command: the API server with its journal, vLLM (the trainer brings it the current
weights), the environment, the trainer with checkpoint.resume auto.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType

BAD_INPUT = 2
"""Exit code of our commands for what the user must mend: starting again cannot help."""


def supervise(
    name: str,
    command: Sequence[str],
    *,
    restarts: int,
    first_pause_s: float = 2.0,
    longest_pause_s: float = 60.0,
    steady_s: float = 600.0,
    stop: threading.Event | None = None,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> int:
    """Runs the command until it ends well, fails once too often, or is asked to stop; its last exit code.

    Args:
        restarts: how often it may be started again in a row. The count and the pause begin anew once it has run for
            `steady_s` seconds.
        first_pause_s: before the first restart; doubled for each further one up to `longest_pause_s`.
        stop: set by the caller: the command gets SIGTERM and is not started again.
    """
    stop = stop or threading.Event()
    failures = 0
    while True:
        started = time.monotonic()
        code = _run(command, stop)
        if code == 0 or stop.is_set():
            return code
        if code == BAD_INPUT:
            say(f"{name}: exit code {code}: bad input, not started again; its log says what to mend")
            return code
        if time.monotonic() - started >= steady_s:
            failures = 0
        failures += 1
        if failures > restarts:
            say(
                f"{name}: ended {failures} times in a row, at last with {_told(code)}; the limit is {restarts} "
                "restarts. Look into its log, mend the cause and start the run again: it goes on where it was"
            )
            return code
        pause = min(first_pause_s * 2 ** (failures - 1), longest_pause_s)
        say(f"{name}: ended with {_told(code)}; restart {failures} of {restarts} in {pause:g} s")
        if stop.wait(pause):
            return code


def _run(command: Sequence[str], stop: threading.Event) -> int:
    """The command's exit code (negative: the signal that ended it); SIGTERM goes to it as soon as `stop` is set."""
    process = subprocess.Popen(command)
    try:
        while True:
            try:
                return process.wait(0.1)
            except subprocess.TimeoutExpired:
                if stop.is_set():
                    process.terminate()
                    return process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise


def _told(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def main(name: str, command: Sequence[str], restarts: int) -> int:
    """The command line's: SIGTERM and SIGINT are handed on, and end it; a shell's exit code."""
    stop = threading.Event()

    def asked(_: int, __: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, asked)
    code = supervise(name, command, restarts=restarts, stop=stop)
    return code if code >= 0 else 128 - code
