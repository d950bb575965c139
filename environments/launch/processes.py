"""The processes of a run: started in order, watched, started again, stopped together, and nothing else is touched.

A child that has been ready once and dies is started again by the same command, with growing pauses and a limit; one
that fails before is an error at once. Each child leads its own session, so that its whole family can be ended by
group; a child also asks the kernel for a signal when this process dies, so that not even ``kill -9`` leaves a server
behind.
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
from typing import IO, Any

import httpx

from environments.common.errors import LivecodeError
from environments.launch.supervise import Restarts

RESTARTS = 5
"""How often in a row a child may be started again."""

_BY_SIGTERM = (-signal.SIGTERM, 128 + signal.SIGTERM)
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class ProcessError(LivecodeError, RuntimeError):
    """A process of the run died, or was not ready in time; the message ends with its log's last lines."""


class Child:
    """One started process, its log and its name.

    Args:
        restarts: what it may be started again by once it has been ready; None: its death is an error.
        ready: a file that the process writes when it is ready (one of an earlier run does not count); None:
            `wait_ready` finds out.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        log: Path,
        env: Mapping[str, str] | None = None,
        *,
        restarts: Restarts | None = None,
        ready: Path | None = None,
    ) -> None:
        self.name = name
        self.log = log
        self._argv, self._env = list(argv), {**os.environ, **(env or {})}
        self._restarts, self._ready_file, self._ready = restarts, ready, False
        self._asked = False
        self._due: float | None = None  # when it is started again
        self._not_before = _written(ready) if ready is not None else 0
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log_file: IO[bytes] = log.open("ab")
        self._start()

    def _start(self) -> None:
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            self._argv,
            stdin=subprocess.DEVNULL,
            stdout=self._log_file,
            stderr=subprocess.STDOUT,
            env=self._env,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )

    @property
    def returncode(self) -> int | None:
        """Exit status, or None while it runs or is to be started again."""
        code = self.process.poll()
        return None if code not in (None, 0) and self._may_be_started_again() else code

    def _may_be_started_again(self) -> bool:
        if self._restarts is None:
            return False
        return self._ready or (self._ready_file is not None and _written(self._ready_file) > self._not_before)

    def check(self) -> None:
        """Starts a process again that has died; raises ProcessError where it may not be."""
        code = self.process.poll()
        if code in (None, 0) or (self._asked and code in _BY_SIGTERM):
            return
        if self._may_be_started_again() and self._started_again(code):
            return
        self._restarts = None
        raise ProcessError(self.report(f"{self.name} ended with exit code {code}"))

    def _started_again(self, code: int) -> bool:
        """False when it has failed once too often; else it is started, or will be when its pause is over."""
        assert self._restarts is not None
        if self._due is None:
            _end_group(self.process.pid)  # what it left would hold its port
            pause = self._restarts.after(code, time.monotonic() - self.started)
            if pause is None:
                return False
            self._due = time.monotonic() + pause
        elif time.monotonic() >= self._due:
            self._due = None
            self._start()
        return True

    def ask_to_end(self) -> None:
        """SIGTERM: it may take its time to end, and is not started again."""
        self._restarts, self._asked = None, True
        if self.process.poll() is None:
            self.process.terminate()

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
                        self._ready = True
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
        _end_group(self.process.pid)
        self.process.wait()
        self._log_file.close()


class Family:
    """All children of a run; stops them in reverse order of their start."""

    def __init__(self) -> None:
        self.children: list[Child] = []

    def start(
        self, name: str, argv: Sequence[str], log: Path, env: Mapping[str, str] | None = None, **options: Any
    ) -> Child:
        """Starts one more child; options as of `Child`."""
        child = Child(name, argv, log, env, **options)
        self.children.append(child)
        return child

    def check(self) -> None:
        """Starts again what has died; ProcessError as soon as a child has ended with an error for good."""
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


def _written(path: Path) -> int:
    """When a file was written, in nanoseconds; 0 where there is none."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _end_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
