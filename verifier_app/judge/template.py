"""The template: an interpreter with the prelude loaded, exec'ed before any test arrived, that forks zygotes.

Started by the judge as `python -I -S -X utf8 -c BOOT`, with one socket. Messages: {"spawn": {...}} with the zygote's
socket is answered by {"pid": n}; {"end": n} kills that zygote with all that it holds and is answered when it is gone.
When the judge hangs up the template leaves, and its zygotes die with it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import json
import os
import resource
import signal
import site
import sys
import threading
import time
from typing import Any

from verifier_app.judge.channel import Channel, ChannelClosed, channel_from_fd
from verifier_app.judge.languages.python import rendezvous, threads
from verifier_app.judge.languages.python.packages import path_hook
from verifier_app.judge.languages.python.prelude import RECURSION_LIMIT, STACK_BYTES, THREAD_STACK_BYTES, make_module
from verifier_app.judge.languages.python.warm_up import warm_up
from verifier_app.judge.layers import syscalls
from verifier_app.judge.layers.capabilities import HostCapabilities
from verifier_app.judge.layers.limits import Limits
from verifier_app.judge.layers.memory_group import MemoryGroups
from verifier_app.judge.layers.sandbox import Sandbox, descendants, make_scratch, remove_scratch, sweep_tree, sweep_uid
from verifier_app.judge.zygote import Zygote

BURY_TIMEOUT_S = 20.0
# The interpreter ignores SIGPIPE and SIGXFSZ in every program; the judge's side ignores SIGINT (sandbox.py).
_KEPT_SIGNALS = frozenset(
    int(number) for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ)
)


def _standard_streams() -> None:
    """Point 0 at a file, 1 and 2 at a pipe, and reopen Python's streams on them, as a program under a judge has them.

    A stream asks once whether it can seek; where a test's input comes by a pipe it finds out when it does.
    """
    reader, writer = os.pipe()
    try:
        file = os.memfd_create("stdin")
    except OSError:
        file = os.dup(reader)
    for fd, end in ((0, file), (1, writer), (2, writer)):
        os.dup2(end, fd)
    for fd in (reader, writer, file):
        os.close(fd)
    for name, fd, mode, errors in (
        ("stdin", 0, "r", "surrogateescape"),
        ("stdout", 1, "w", "surrogateescape"),
        ("stderr", 2, "w", "backslashreplace"),
    ):  # no newline is translated, as in CPython on Linux: a carriage return is data
        stream = io.open(fd, mode, encoding="utf-8", errors=errors, newline="\n", closefd=False)  # noqa: SIM115, UP020
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    null = os.open(os.devnull, os.O_RDWR)  # nobody reads the pipes: who fills one here would wait forever
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)


def _load(home: str, packages: list[str], entries: list[str], modules: list[str]) -> None:
    """Everything that programs use and that is slow to import, once."""
    site.setquit()
    site.setcopyright()
    site.sethelper()
    sys.path[:] = [path for path in sys.path if path not in ("", home)] + packages
    sys.path_hooks.insert(0, path_hook(packages, entries))
    sys.argv[:] = ["solution.py"]
    for name in modules:
        with contextlib.suppress(ImportError):  # numpy may not be installed: then the program's import fails
            importlib.import_module(name)
    sys.setrecursionlimit(RECURSION_LIMIT)
    threading.stack_size(THREAD_STACK_BYTES)
    threads.install()
    rendezvous.install()


class Template:
    """The template's loop."""

    def __init__(self, channel: Channel, ground: HostCapabilities) -> None:
        self.channel, self.ground = channel, ground
        self.zygotes: dict[int, tuple[int, str | None, str | None]] = {}  # pid -> uid, scratch folder, memory group
        self.count = 0

    def serve(self) -> None:
        """Answer until the judge hangs up, then leave with every zygote."""
        try:
            while True:
                message, fds = self.channel.recv()
                if "spawn" in message:
                    self.channel.send(self._spawn(message["spawn"], fds[0]))
                elif "end" in message:
                    self.channel.send({"status": self._end(message["end"])})
        except ChannelClosed:
            for pid in list(self.zygotes):
                self._end(pid)

    def _spawn(self, config: dict[str, Any], fd: int) -> dict[str, Any]:
        ground = self.ground
        self.count += 1
        uid = ground.uid_for(self.count)
        group = None if ground.groups is None else str(self.count)
        try:
            if group is not None:
                self._groups.make(group)
            scratch = None if ground.root else make_scratch()
            pid = ground.fork_in_namespace() if ground.pid else os.fork()
        except OSError as error:
            os.close(fd)
            if group is not None:
                self._groups.remove(group)
            return {"error": f"no zygote: {error}"}
        if pid == 0:
            try:
                self.channel.close()
                become_zygote(channel_from_fd(fd), ground, config, uid, scratch, group)
            finally:
                os._exit(1)
        os.close(fd)
        self.zygotes[pid] = uid, scratch, group
        return {"pid": pid}

    def _end(self, pid: int) -> int | None:
        """Kill a zygote and everything it holds; return when it is gone, with how it ended (as wait gives it)."""
        if pid not in self.zygotes:
            return None
        uid, scratch, group = self.zygotes.pop(pid)
        status = None
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            status = os.waitpid(pid, 0)[1]
        if not self.ground.pid:  # its children were handed to this process, the next subreaper
            self._bury(uid)
        if group is not None:
            self._groups.remove(group)
        if scratch is not None:
            remove_scratch(scratch, uid if self.ground.uid else None)
        return status

    @property
    def _groups(self) -> MemoryGroups:
        assert self.ground.groups is not None
        return self.ground.groups

    def _bury(self, uid: int) -> None:
        """Kill and collect every descendant that belongs to no living zygote; return when none is left."""
        give_up = time.monotonic() + BURY_TIMEOUT_S
        while time.monotonic() < give_up:
            left = descendants(os.getpid(), frozenset(self.zygotes))
            if not left:
                return
            if self.ground.uid:
                sweep_uid(uid, self.ground.sweeper_uid(uid))
            else:
                sweep_tree(os.getpid(), frozenset(self.zygotes))
            for pid in left:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            time.sleep(0.001)


def become_zygote(
    channel: Channel, ground: HostCapabilities, config: dict[str, Any], uid: int, scratch: str | None, group: str | None
) -> None:
    """The forked half of spawn: confine, tell the judge, serve."""
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        box = Sandbox(ground, config["memory_mb"], uid, scratch, group)
    except Exception as error:  # whatever it is, the judge's answer must name it
        channel.send({"error": f"the sandbox does not close: {type(error).__name__}: {error}"})
        return
    fds = [box.proc] if box.own_proc else []
    counts = next((name for name in ("group", "usage") if getattr(box, name) >= 0), None)
    fds += [getattr(box, counts)] if counts else []
    fds += [box.notices] if box.notices >= 0 else []
    ready = {"ready": box.report, "own_namespace": box.own_proc, "counts": counts, "loose": box.loose}
    channel.send(ready | {"notices": box.notices >= 0}, fds + box.tmpfs)
    if box.notices >= 0:  # the judge's alone: when it hangs up, nobody listens
        os.close(box.notices)
    Zygote(channel, sys.modules["__main__"], box).serve()


def main(argument: str) -> None:
    """Entry point of the exec'ed interpreter; the argument is JSON: fd, packages, entries, modules, deny."""
    config = json.loads(argument)
    channel = channel_from_fd(config["fd"])
    try:
        ground = _start(config)
    except Exception as error:  # whatever it is, the judge's answer must name it
        channel.send({"failed": f"{type(error).__name__}: {error}"})
        return
    channel.send({"started": os.getpid()})
    Template(channel, ground).serve()


def _start(config: dict[str, Any]) -> HostCapabilities:
    """Everything before the first zygote; with a stack that is too small this becomes a new interpreter."""
    _, hard = resource.getrlimit(resource.RLIMIT_STACK)
    stack = STACK_BYTES if hard == resource.RLIM_INFINITY else min(STACK_BYTES, hard)
    if resource.getrlimit(resource.RLIMIT_STACK)[0] != stack:  # counts from the next exec on
        resource.setrlimit(resource.RLIMIT_STACK, (stack, hard))
        os.set_inheritable(config["fd"], True)
        os.execv(sys.executable, sys.orig_argv)
    os.environ.pop("LD_BIND_NOW", None)  # it is the loader's, which has read it
    syscalls.default_signals(_KEPT_SIGNALS)
    Limits(["rlimits"]).lower(resource.RLIMIT_CORE, 0)
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    _standard_streams()
    _load(sys.argv[1], config["packages"], config["entries"], config["modules"])
    warm_up()
    sys.modules["__main__"] = make_module("__main__")
    ground = HostCapabilities(config["packages"], config["entries"], config["deny"])
    ground.prepare()
    gc.collect()
    gc.freeze()
    return ground
