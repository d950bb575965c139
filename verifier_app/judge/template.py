"""The template: an interpreter with the prelude loaded, exec'ed before any test arrived, that forks zygotes.

Started by the judge as `python -I -S -X utf8 -c BOOT`, with one socket. Messages: {"spawn": {...}} with the zygote's
socket is answered by {"pid": n}; {"end": n} kills that zygote with all that it holds and is answered when it is gone.
When the judge hangs up the template leaves, and its zygotes die with it.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import os
import resource
import signal
import site
import sys
import threading
from typing import Any

from verifier_app.judge import kernel
from verifier_app.judge.channel import Channel, ChannelClosed, channel_from_fd
from verifier_app.judge.prelude import RECURSION_LIMIT, THREAD_STACK_BYTES, make_module
from verifier_app.judge.sandbox import Box
from verifier_app.judge.zygote import Zygote


def _standard_streams() -> None:
    """Point 0, 1 and 2 at pipes and reopen Python's streams on them, so that they behave as a program's under a judge."""
    reader, writer = os.pipe()
    for fd, end in ((0, reader), (1, writer), (2, writer)):
        os.dup2(end, fd)
    os.close(reader)
    os.close(writer)
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # type: ignore[misc]


def _load(home: str, packages: list[str], modules: list[str]) -> None:
    """Everything that programs use and that is slow to import, once."""
    site.setquit()
    site.setcopyright()
    site.sethelper()
    sys.path[:] = [path for path in sys.path if path not in ("", home)] + packages
    sys.argv[:] = ["solution.py"]
    for name in modules:
        with contextlib.suppress(ImportError):  # numpy may not be installed: then the program's import fails
            importlib.import_module(name)
    sys.setrecursionlimit(RECURSION_LIMIT)
    threading.stack_size(THREAD_STACK_BYTES)


class Template:
    """The template's loop."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.zygotes: set[int] = set()

    def serve(self) -> None:
        """Answer until the judge hangs up, then leave with every zygote."""
        try:
            while True:
                message, fds = self.channel.recv()
                if "spawn" in message:
                    self.channel.send(self._spawn(message["spawn"], fds[0]))
                elif "end" in message:
                    self._end(message["end"])
                    self.channel.send({})
        except ChannelClosed:
            for pid in list(self.zygotes):
                self._end(pid)

    def _spawn(self, config: dict[str, Any], fd: int) -> dict[str, Any]:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                self.channel.close()
                become_zygote(fd, config)
                status = 0
            finally:
                os._exit(status)
        os.close(fd)
        self.zygotes.add(pid)
        return {"pid": pid}

    def _end(self, pid: int) -> None:
        if pid in self.zygotes:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            self.zygotes.discard(pid)


def become_zygote(fd: int, config: dict[str, Any]) -> None:
    """The forked half of spawn: confine, tell the judge, serve."""
    channel = channel_from_fd(fd)
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    main = make_module("__main__")
    sys.modules["__main__"] = main
    box = Box(config["memory_mb"])
    channel.send({"ready": box.report, "own_namespace": False})
    Zygote(channel, main, box).serve()


def main(argument: str) -> None:
    """Entry point of the exec'ed interpreter; the argument is a literal dict of fd, packages, modules, deny."""
    config = ast.literal_eval(argument)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    channel = channel_from_fd(config["fd"])
    _standard_streams()
    _load(sys.argv[1], config["packages"], config["modules"])
    channel.send({"started": os.getpid()})
    Template(channel).serve()
