"""The processes of a run: started in order, watched, stopped together, and nothing else is touched.

Each child leads its own session, so that its whole family can be ended by group; a child also asks the
kernel to be told when this process dies, so that not even ``kill -9`` leaves a server behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

import httpx

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class ProcessError(RuntimeError):
    """A process of the run died, or was not ready in time; the message ends with its log's last lines."""


class Child:
    """One started process, its log and its name."""

    def __init__(self, name: str, argv: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log_file: IO[bytes] = log.open("ab")
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=self._log_file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )

    @property
    def returncode(self) -> int | None:
        """Exit status, or None while it runs."""
        return self.process.poll()

    def check(self) -> None:
        """Raises ProcessError when the process has ended by itself with an error."""
        if self.returncode not in (None, 0):
            raise ProcessError(self.report(f"{self.name} ended with exit code {self.returncode}"))

    def report(self, what: str, lines: int = 15) -> str:
        """`what`, the log's path and its last lines."""
        return f"{what}. Last lines of {self.log}:\n{tail(self.log, lines)}"

    def wait_ready(self, url: str, deadline_s: float, tick: Callable[[], None] = lambda: None) -> float:
        """Seconds from the start until GET `url` answered 200.

        Raises:
            ProcessError: the process ended, or the deadline passed.
        """
        with httpx.Client(timeout=5.0, trust_env=False) as client:
            while time.monotonic() - self.started < deadline_s:
                if self.returncode is not None:
                    raise ProcessError(self.report(f"{self.name} ended at start with exit code {self.returncode}"))
                try:
                    if client.get(url).status_code == httpx.codes.OK:
                        return time.monotonic() - self.started
                except httpx.TransportError:  # not listening yet
                    pass
                tick()
                time.sleep(0.2)
        raise ProcessError(self.report(f"{self.name} was not ready after {deadline_s:.0f} s ({url})"))

    def stop(self, grace_s: float = 15.0) -> None:
        """SIGTERM to the child, then SIGKILL to what is left of its group."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(grace_s)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._log_file.close()


class Family:
    """All children of a run; stops them in reverse order of their start."""

    def __init__(self) -> None:
        self.children: list[Child] = []

    def start(self, name: str, argv: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> Child:
        """Starts one more child."""
        child = Child(name, argv, log, env)
        self.children.append(child)
        return child

    def check(self) -> None:
        """Raises ProcessError as soon as any child has ended with an error."""
        for child in self.children:
            child.check()

    def stop(self) -> None:
        """Ends every child; safe to call twice."""
        while self.children:
            self.children.pop().stop()


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nothing listens on at the moment."""
    with socket.socket() as sock:
        sock.bind((host, 0))
        return int(sock.getsockname()[1])


def tail(path: Path, lines: int) -> str:
    """The last lines of a text file, indented; a note when it is empty."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 64_000))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return "  (no log)"
    kept = [line for line in text.splitlines() if line.strip()][-lines:]
    return "\n".join(f"  {line}" for line in kept) or "  (the log is empty)"


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
