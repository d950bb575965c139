"""Processes that begin with torch, transformers, atroposlib, the trainer and vLLM's weight engine imported.

One server of forks imports them once for all workers of a session; a process then starts in milliseconds where a new
interpreter computes for five seconds. What a command does at import by its environment, the
hub's variables apart, needs an interpreter of its own.
"""

from __future__ import annotations

import array
import contextlib
import os
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from environments.launch.processes import free_port
from tests.support.fork_server import LENGTH, STATUS, streams_of

ROOT = Path(__file__).resolve().parents[2]
FOLDER = "TEST_FORKS"
"""Environment variable: the session's folder, for the server's socket and log; its name ends with the number of the
process whose end is the server's."""


class Forked(subprocess.Popen[Any]):
    """`subprocess.Popen` of a Python command line, forked by the server in a session of its own.

    It is killed when this object is closed or collected, so at the latest with this process.

    Args:
        call: a function and its arguments in place of a command line; both are pickled.
    """

    def __init__(self, argv: Sequence[Any] = (), *, call: tuple[Any, ...] | None = None, **options: Any) -> None:
        self._call = None if call is None else pickle.dumps((call[0], call[1:]))
        self._connection = connected()
        super().__init__([str(word) for word in argv], **options)

    def _execute_child(self, args: Any, *rest: Any) -> None:
        cwd, env = rest[4:6]
        request = {
            "argv": args,
            "call": self._call,
            "path": sys.path,
            "cwd": str(cwd or Path.cwd()),
        }
        body = pickle.dumps({**request, "env": dict(os.environ if env is None else env)})
        streams = array.array("i", streams_of(rest))
        self._connection.sendmsg([LENGTH.pack(len(body))], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
        self._connection.sendall(body)
        (self.pid,) = STATUS.unpack(self._connection.recv(STATUS.size, socket.MSG_WAITALL))
        self._child_created = True
        self._close_pipe_fds(*rest[9:15])  # type: ignore[attr-defined]  # not in the stubs

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        try:
            answer = self._connection.recv(STATUS.size, socket.MSG_DONTWAIT if wait_flags & os.WNOHANG else 0)
        except BlockingIOError:
            return 0, 0
        self._connection.close()
        assert answer, "the server of forks has ended"
        return self.pid, *STATUS.unpack(answer)

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        lock = self._waitpid_lock  # type: ignore[attr-defined]
        if self.returncode is None and lock.acquire(blocking=False):
            try:
                pid, status = self._try_wait(os.WNOHANG) if self.returncode is None else (0, 0)
                if pid:
                    self._handle_exitstatus(status)  # type: ignore[attr-defined]
            finally:
                lock.release()
        return self.returncode

    def join(self, timeout_s: float | None = None) -> None:
        """Waits for its end, at most so long."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(timeout_s)


def forked(target: Callable[..., Any], *arguments: Any) -> Forked:
    """A started process; its arguments and `target` are pickled, a number that it returns is the exit code."""
    return Forked(call=(target, *arguments))


def completed(
    target: Callable[..., int | None] | Sequence[object], *arguments: Any, **variables: str
) -> subprocess.CompletedProcess[str]:
    """What `subprocess.run` gives of a command line in the project's root, or of one whose function is `target`;
    `variables` are set for it."""
    options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    options |= {"call": (target, *arguments)} if callable(target) else {"argv": target, "cwd": ROOT}
    with Forked(**options, text=True, env={**os.environ, **variables}) as process:
        try:
            out, error = process.communicate(timeout=280.0)
        finally:
            process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, error)


class Ranks:
    """A started world of gloo ranks on CPUs, each running `target(*arguments)` with torchrun's variables.

    Args:
        folder: takes what each rank prints.
        target: its result, None or a number, is the rank's exit code.
    """

    def __init__(self, world: int, folder: Path, target: Callable[..., int | None], *arguments: Any) -> None:
        port = free_port()
        folder.mkdir(parents=True, exist_ok=True)
        self._printed = [folder / f"world-{world}-rank-{rank}.txt" for rank in range(world)]
        self._ranks = []
        for rank, printed in enumerate(self._printed):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1"}
            variables = {name: str(value) for name, value in {**place, "MASTER_PORT": port}.items()}
            with printed.open("wb") as file:
                options: dict[str, Any] = {"stdout": file, "stderr": file, "env": {**os.environ, **variables}}
                self._ranks.append(Forked(call=(_rank, target, arguments), **options))

    def wait(self, deadline_s: float = 280.0) -> list[str]:
        """What each rank printed; AssertionError with it where one fails or the deadline passes."""
        try:
            for rank in self._ranks:
                rank.join(deadline_s)
            codes = [rank.poll() for rank in self._ranks]
        finally:
            self.kill()
        printed = [path.read_text() for path in self._printed]
        assert set(codes) == {0}, "\n".join([f"exit codes {codes}", *printed])
        return printed

    def kill(self) -> None:
        """Ends what still runs."""
        for rank in self._ranks:
            rank.kill()
            rank.wait()


def connected() -> socket.socket:
    """A connection to the session's server, which the first call starts."""
    folder = Path(os.environ[FOLDER])
    path, log = folder / "socket", folder / "log"
    with FileLock(folder / "lock"):
        if not log.exists():
            quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
            words = [sys.executable, "-m", "tests.support.fork_server", str(path), folder.name.rpartition("-")[2]]
            with log.open("wb") as file:
                streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": file}
                process = subprocess.Popen(words, cwd=ROOT, env={**os.environ, **quiet}, **streams)
                process.returncode = 0  # it outlives this worker: nobody waits for it
    end = time.monotonic() + 280.0
    while True:
        connection = socket.socket(socket.AF_UNIX)
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
            connection.connect(str(path))
            return connection
        connection.close()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.05)


def _rank(target: Callable[..., int | None], arguments: tuple[Any, ...]) -> int | None:
    torch.set_num_threads(1)
    return target(*arguments)
