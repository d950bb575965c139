"""Forks processes that have torch, transformers, atroposlib and this project imported: `python -m
tests.support.fork_server SOCKET OWNER`.

One for all workers of a test session. What it forks runs a command line, as a new interpreter would, or a function;
each has a session of its own and is killed when the connection that asked for it closes. It ends with process OWNER.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import ctypes
import gc
import importlib
import logging
import os
import pickle
import runpy
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import coverage
import huggingface_hub.constants
from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

LENGTH = struct.Struct("!I")
STATUS = struct.Struct("!i")
READY = b"ready"

_PRELOAD = (
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen3.modeling_qwen3",
    "environments.livecode.command",
    "environments.livecode.environment",
    "tests.support.gloo_nccl",
    "tests.trainer.masked_ranks",
    "tests.trainer.nccl_ranks",
    "tests.trainer.objective_ranks",
    "tests.trainer.two_ranks",
    "torch.distributed.run",
    "trainer.launch",
    "trainer.run",
    "vllm.distributed.weight_transfer.nccl_engine",
    "vllm.model_executor.model_loader.mtp_validation",  # which the engine imports as it receives
)
_PR_SET_NAME = 15


class Descendant(subprocess.Popen[Any]):
    """`subprocess.Popen` within a fork: a command of ours that imports torch is a fork too, of this process."""

    def _execute_child(self, args: Any, *rest: Any) -> None:
        if not _is_ours(args):
            super()._execute_child(args, *rest)  # type: ignore[misc]  # not in the stubs
            return
        request = {"argv": list(args), "cwd": rest[4], "env": rest[5], "same_session": not rest[20], "before": rest[1]}
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            atexit._clear()  # what this process has begun is not the fork's to end
            atexit.register(logging.shutdown)
            measuring = coverage.Coverage.current()
            if measuring is not None:
                atexit.register(measuring.save)
            become(request, streams_of(rest))
        self.pid, self._child_created = pid, True
        self._close_pipe_fds(*rest[9:15])  # type: ignore[attr-defined]  # not in the stubs


def _is_ours(argv: Any) -> bool:
    if isinstance(argv, (str, bytes)) or argv[0] != sys.executable:
        return False
    match [str(word) for word in argv[1:] if word != "-u"]:
        case ["-m", "torch.distributed.run" | "trainer.launch", *_] | ["-m", "environments.cli", "run-env", *_]:
            return True
        case [program, *_]:
            return program.endswith(("trainer/main.py", "trainer/replay_command.py"))
    return False


def streams_of(rest: Sequence[Any]) -> list[int]:
    """The child's standard streams, from what `Popen._execute_child` gets after its first argument."""
    given = (rest[9], rest[12], rest[14])
    return [own if stream == -1 else stream for own, stream in enumerate(given)]


def become(request: dict[str, Any], streams: Sequence[int]) -> NoReturn:
    """Turns this fork into the process that was asked for.

    Args:
        request: `argv`, or `path` and `call`: a pickled function and its arguments, found on that sys.path; `env` and
            `cwd`, None for this process's own; `same_session` as this process; `before`: a function to call last.
        streams: descriptors of its standard streams; any other is closed.
    """
    code = 1
    try:
        _leave_the_parent(request, streams)
        if request.get("call") is not None:
            sys.path[:] = request["path"]
            function, arguments = pickle.loads(request["call"])
            sys.exit(function(*arguments))
        _run(request["argv"])
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads as an interpreter does
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code & 0xFF)


def _leave_the_parent(request: dict[str, Any], streams: Sequence[int]) -> None:
    if not request.get("same_session"):
        os.setsid()
    gc.freeze()  # what is garbage here would close descriptors that are someone else's by then
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    copies = [os.dup(stream) for stream in streams]
    for stream, copy in enumerate(copies):
        os.dup2(copy, stream)
    os.closerange(3, 4096)
    # The parent's own know what kind of file theirs was.
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    if request.get("cwd") is not None:
        os.chdir(request["cwd"])
    if request.get("env") is not None:
        before = _of_the_hub()
        os.environ.clear()
        os.environ.update(request["env"])
        if _of_the_hub() != before:
            importlib.reload(huggingface_hub.constants)  # its client looks them up there
    if request.get("before") is not None:
        request["before"]()
    if "RANK" in os.environ:  # for those who look for it: the command line stays the server's
        ctypes.CDLL(None).prctl(_PR_SET_NAME, f"rank-{os.environ['RANK']}".encode())


def _of_the_hub() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("HF_")}


def _run(argv: Sequence[str]) -> None:
    """Python's own reading of `python [-u] (-m MODULE | -c CODE | FILE) ARGUMENTS`."""
    words = [word for word in argv[1:2] if word != "-u"] + list(argv[2:])
    sys.path[:1] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    subprocess.Popen = Descendant  # type: ignore[misc]
    subprocess_handler.Popen = Descendant  # type: ignore[misc]
    if words[0] == "-c":
        sys.argv, sys.path[:0] = ["-c", *words[2:]], [""]
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    elif words[0] == "-m":
        sys.argv, sys.path[:0] = words[1:], [os.getcwd()]
        sys.modules.pop(words[1], None)  # it runs as __main__
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[:0] = words, [str(Path(words[0]).resolve().parent)]
        runpy.run_path(words[0], run_name="__main__")


class Server:
    """Forks what comes over the socket, and answers with the process's number, then with how it ended."""

    def __init__(self, listening: socket.socket, owner: int) -> None:
        self._listening = listening
        self._selector = selectors.DefaultSelector()
        self._running: dict[int, socket.socket] = {}
        woken, wakes = os.pipe()
        os.set_blocking(wakes, False)
        os.set_blocking(woken, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wakes)
        self._woken = woken
        self._owner = os.pidfd_open(owner)
        for file, what in ((listening, self._accept), (woken, self._reap), (self._owner, self._end)):
            self._selector.register(file, selectors.EVENT_READ, what)

    def serve(self) -> NoReturn:
        """Until the owner ends."""
        while True:
            for key, _ in self._selector.select():
                key.data()

    def _accept(self) -> None:
        connection, _ = self._listening.accept()
        with contextlib.suppress(EOFError, OSError):
            request, streams = _received(connection)
            pid = os.fork()
            if pid == 0:
                become(request, streams)
            for stream in streams:
                os.close(stream)
            self._running[pid] = connection
            self._selector.register(connection, selectors.EVENT_READ, lambda: self._left(pid))
            connection.sendall(STATUS.pack(pid))

    def _left(self, pid: int) -> None:
        """Nobody waits for the process any more."""
        connection = self._running.get(pid)
        if connection is not None:
            self._selector.unregister(connection)
            connection.close()
            self._running[pid] = socket.socket(socket.AF_UNIX)
            _kill(pid)

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._woken, 4096)
        while self._running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            connection = self._running.pop(pid)
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(connection)
            with contextlib.suppress(OSError):
                connection.sendall(STATUS.pack(status))
            connection.close()

    def _end(self) -> None:
        for pid in self._running:
            _kill(pid)
        shutil.rmtree(Path(self._listening.getsockname()).parent, ignore_errors=True)
        os._exit(0)  # what it did itself is no part of what is measured


def _kill(pid: int) -> None:
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError):
            kill(pid, signal.SIGKILL)


def _received(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    head, ancillary, _, _ = connection.recvmsg(LENGTH.size, socket.CMSG_SPACE(3 * 4), socket.MSG_WAITALL)
    streams = array.array("i")
    for _, _, data in ancillary:
        streams.frombytes(data)
    if len(head) < LENGTH.size:
        raise EOFError
    with connection.makefile("rb") as file:
        request: dict[str, Any] = pickle.loads(file.read(*LENGTH.unpack(head)))
    return request, list(streams)


def main() -> None:
    """Imports first, so that the first connection already gets a quick fork."""
    path, owner = sys.argv[1:]
    os.setsid()
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen(64)
    for module in _PRELOAD:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()
    Server(listening, int(owner)).serve()


if __name__ == "__main__":
    main()
