"""The template: an interpreter with what a language needs loaded, exec'ed before any test arrived, that forks zygotes.

Started by the judge as `python -I -S -X utf8 -c BOOT`, with one socket. Messages: {"spawn": {...}} with the zygote's
socket is answered by {"pid": n}; {"end": n} kills that zygote with all that it holds and is answered when it is gone.
When the judge hangs up the template leaves, and its zygotes die with it.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import signal
import socket
import sys
import time
from importlib import import_module
from typing import Any

from verifier_app.judge.channel import Channel, ChannelClosed, channel_from_fd
from verifier_app.judge.layers import syscalls
from verifier_app.judge.layers.capabilities import HostCapabilities
from verifier_app.judge.layers.limits import Limits
from verifier_app.judge.layers.memory_group import MemoryGroups
from verifier_app.judge.layers.sandbox import Sandbox, descendants, make_scratch, remove_scratch, sweep_tree, sweep_uid
from verifier_app.judge.layers.setup import Setup
from verifier_app.judge.zygote import Zygote

BURY_TIMEOUT_S = 20.0
# The interpreter ignores SIGPIPE and SIGXFSZ in every program; the judge's side ignores SIGINT (sandbox.py).
_KEPT_SIGNALS = frozenset(
    int(number) for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ)
)


class Template:
    """The template's loop."""

    def __init__(self, channel: Channel, ground: HostCapabilities, guest: Any, one_process: bool = False) -> None:
        self.channel, self.ground, self.guest, self.one_process = channel, ground, guest, one_process
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
                self._become_zygote(channel_from_fd(fd), config, uid, scratch, group)
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

    def _become_zygote(
        self, channel: Channel, config: dict[str, Any], uid: int, scratch: str | None, group: str | None
    ) -> None:
        """The forked half of spawn: confine, tell the judge, serve."""
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        ends = socket.socketpair() if self.one_process else None  # here, or the sandbox's network would list it
        try:
            box = Sandbox(self.ground, config["memory_mb"], uid, scratch, group)
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
        Zygote(channel, self.guest.Program(), box, ends).serve()

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


def main(argument: str) -> None:
    """Entry point of the exec'ed interpreter; the argument is JSON: fd, and what Setup has."""
    config = json.loads(argument)
    channel = channel_from_fd(config["fd"])
    try:
        setup = Setup(config)
        sys.path[1:1] = setup.homes[1:]
        guest = import_module(setup.guest)
        ground = _start(setup, guest, config["fd"])
    except Exception as error:  # whatever it is, the judge's answer must name it
        channel.send({"failed": f"{type(error).__name__}: {error}"})
        return
    channel.send({"started": os.getpid()})
    Template(channel, ground, guest, setup.one_process).serve()


def _start(setup: Setup, guest: Any, fd: int) -> HostCapabilities:
    """Everything before the first zygote; with a stack that is too small this becomes a new interpreter."""
    _, hard = resource.getrlimit(resource.RLIMIT_STACK)
    stack = guest.STACK_BYTES if hard == resource.RLIM_INFINITY else min(guest.STACK_BYTES, hard)
    if stack and resource.getrlimit(resource.RLIMIT_STACK)[0] != stack:  # counts from the next exec on
        resource.setrlimit(resource.RLIMIT_STACK, (stack, hard))
        os.set_inheritable(fd, True)
        os.execv(sys.executable, sys.orig_argv)
    os.environ.pop("LD_BIND_NOW", None)  # it is the loader's, which has read it
    syscalls.default_signals(_KEPT_SIGNALS)
    Limits(["rlimits"]).lower(resource.RLIMIT_CORE, 0)
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    guest.preload(setup)
    ground = HostCapabilities(setup.folders, setup.packages, setup.deny, setup.readable)
    ground.prepare()
    if not ground.pid:
        syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    gc.collect()
    gc.freeze()
    return ground
