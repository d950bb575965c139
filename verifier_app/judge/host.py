"""The judge's handles on what runs beside it: the template process and one rollout's zygote."""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from verifier_app.judge.channel import Channel, ChannelClosed
from verifier_app.judge.languages.language import Warm
from verifier_app.judge.layers.cgroup import Usage
from verifier_app.judge.layers.memory_group import MemoryGroup
from verifier_app.judge.process_tree import TICK
from verifier_app.judge.procfs import fields_of
from verifier_app.judge.protocol import JudgeError
from verifier_app.judge.refusals import Refusals
from verifier_app.judge.shared_memory import Loose
from verifier_app.judge.watchdog import PATIENCE, Watchdog

log = logging.getLogger(__name__)

START_TIMEOUT_S = 60.0  # a cold disk and a loaded machine; importing takes 0.1 s
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "LD_BIND_NOW": "1",  # or each test's process looks the same symbols up again; programs do not see it
}
BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from verifier_app.judge.template import main; main(sys.argv[2])"


def receive(channel: Channel, timeout_s: float) -> tuple[Any, list[int]]:
    """The next message, or TimeoutError."""
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    if not poll.poll(max(0.0, timeout_s) * 1000):
        raise TimeoutError
    return channel.recv()


class TemplateHandle:
    """An exec'ed interpreter that forks zygotes. Its requests are serialised, so threads may share it."""

    def __init__(self, warm: Warm, deny: tuple[str, ...] = ()) -> None:
        ours, theirs = socket.socketpair()
        self.channel = Channel(ours)
        self.one_process = warm.one_process
        self._lock = threading.Lock()
        self.broken = False  # it did not answer in time: what it does now is not known
        home = str(Path(__file__).resolve().parents[2])
        folders = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
        config = {
            "fd": theirs.fileno(),
            "guest": warm.guest,
            "homes": [home, *warm.homes],
            "folders": folders,
            "packages": warm.packages(folders),
            "readable": list(warm.readable),
            "modules": list(warm.modules),
            "one_process": warm.one_process,
            "deny": list(deny),
        }
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-X", "utf8", "-c", BOOT, home, json.dumps(config)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=ENVIRONMENT | dict(warm.environment),
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                cwd="/",
            )
        except OSError as error:
            ours.close()
            raise JudgeError("sandbox_failed", f"the template does not start: {error}") from None
        finally:
            theirs.close()
        try:
            message, fds = receive(self.channel, START_TIMEOUT_S)
        except (ChannelClosed, TimeoutError):
            self.close()
            raise JudgeError("sandbox_failed", "the template does not start (its stderr says why)") from None
        except BaseException:  # a signal that ends this process must not leave the template behind
            self.close()
            raise
        for fd in fds:
            os.close(fd)
        if "failed" in message:
            self.close()
            raise JudgeError("sandbox_failed", f"the template does not start: {message['failed']}")

    def spawn(self, config: dict[str, Any]) -> ZygoteHandle:
        """Fork a zygote. JudgeError sandbox_failed when it cannot be confined."""
        ours, theirs = socket.socketpair()
        channel = Channel(ours)
        try:
            with self._lock:
                self.channel.send({"spawn": config}, [theirs.fileno()])
                answer, _ = receive(self.channel, START_TIMEOUT_S)
        except BaseException as error:
            self.broken = True
            ours.close()
            if not isinstance(error, (ChannelClosed, TimeoutError, ValueError)):
                raise
            raise JudgeError("sandbox_failed", f"the template is gone ({type(error).__name__})") from None
        finally:
            theirs.close()
        if "error" in answer:
            ours.close()
            raise JudgeError("sandbox_failed", answer["error"])
        zygote = ZygoteHandle(self, answer["pid"], channel)
        zygote.greet()
        return zygote

    def end(self, pid: int) -> int | None:
        """Kill a zygote with all that it holds; returns when nothing is left, with wait's status where it is known."""
        try:
            with self._lock:
                self.channel.send({"end": pid})
                answer, _ = receive(self.channel, START_TIMEOUT_S)
        except BaseException as error:  # an answer that comes later would be taken for the next one's
            self.broken = True
            if not isinstance(error, (ChannelClosed, TimeoutError, ValueError)):
                raise
            log.warning("the template did not confirm the end of zygote %d", pid)
            return None
        status: int | None = answer["status"]
        return status

    @property
    def alive(self) -> bool:
        return not self.broken and self.process.poll() is None

    def close(self) -> None:
        """Hang up; the template ends its zygotes and leaves."""
        self.channel.close()
        try:
            self.process.wait(5.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class ZygoteHandle:
    """One rollout's zygote. Close it in every case."""

    def __init__(self, template: TemplateHandle, pid: int, channel: Channel) -> None:
        self.template, self.pid, self.channel = template, pid, channel
        self.report: dict[str, Any] = {}
        self.proc = -1
        self.scratch: list[int] = []  # descriptors of the zygote's tmpfs folders
        self.usage: Usage | MemoryGroup | None = None  # its cgroup's count
        self.refusals: Refusals | None = None  # None: this kernel does not tell
        self.own_namespace = False
        self.loose: Loose | None = None  # its files, where it has no folders of its own
        self.reaped_s = 0.0  # CPU time of the processes that it waited for
        self._watchdog: Watchdog | None = None  # of the process of all tests, once it has begun
        self.open = True
        self.status: int | None = None  # how it ended, where that is known

    def greet(self) -> None:
        """Wait until it is confined."""
        try:
            message, fds = receive(self.channel, START_TIMEOUT_S)
        except (ChannelClosed, TimeoutError) as error:
            self.close()
            raise JudgeError("sandbox_failed", f"the zygote does not start ({type(error).__name__})") from None
        if "error" in message:
            self.close()
            raise JudgeError("sandbox_failed", message["error"])
        self.report = message["ready"]
        self.own_namespace = message["own_namespace"]
        self.proc = fds.pop(0) if self.own_namespace else os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
        if message["counts"]:
            self.usage = MemoryGroup(fds.pop(0)) if message["counts"] == "group" else Usage(fds.pop(0))
        self.refusals = Refusals(fds.pop(0)) if message["notices"] else None
        self.scratch = fds
        if message["loose"] is not None:
            folder, shared, uid = message["loose"]
            self.loose = Loose(folder, shared, uid, since=time.time() - 1)

    def watch(self, time_limit_s: float, memory_bytes: int, forked: bool = True, lasting: bool = False) -> Watchdog:
        """The clock of the next test, which begins now.

        forked: its processes are forks of the zygote's interpreter. lasting: this one runs the next tests, too.
        """
        if self._watchdog is not None:
            self._watchdog.next_test()
            return self._watchdog
        own = self.own_namespace
        if not own and (fields := self._stat()):  # here it waits for its sweepers, too
            self.reaped_s = sum(map(int, fields[13:15])) / TICK
        watch = Watchdog(
            self.proc,
            self.pid,
            own,
            time_limit_s,
            memory_bytes,
            self.scratch,
            loose=self.loose,
            own_network="net_namespace" in self.report["layers"],
            control=self.channel.fileno(),
            reaped_s=self.reaped_s,
            usage=self.usage,
            forked=forked,
        )
        self._watchdog = watch if lasting else None
        return watch

    def load(self, message: dict[str, Any], limit_s: float, files: Sequence[int] = ()) -> dict[str, Any] | None:
        """Have it compile the program: {"compiled", "message"}; a crash and too much CPU time are the source's.

        message: {"load": source, "fn_name", "semantics"}; files: the one that was built of the source, if one was.

        None: it was killed, as by the kernel when memory is short, or waits for something that never comes, and is
        closed. What the source does, it does again.

        Raises:
            JudgeError: host_overloaded.
        """
        started = time.monotonic()
        try:
            self.channel.send(message, files)
            left, spent = limit_s, -1.0
            while True:
                try:
                    answer: dict[str, Any] = receive(self.channel, left)[0]
                    return answer
                except TimeoutError:
                    # Compiling waits for nothing but a core, so its own time is what it took.
                    before, spent, passed = spent, self.cpu_s(), time.monotonic() - started
                if spent >= limit_s:
                    return {"compiled": False, "message": f"compiling took more than {limit_s:g} s"}
                if spent == before and self._stat()[:1] == [b"S"]:  # stuck: it will not answer any more
                    self.close()
                    return None
                if passed > limit_s * PATIENCE:
                    raise JudgeError("host_overloaded", f"compiling: {passed:.0f} s passed, {spent:.1f} s of CPU time")
                left = min(max(limit_s - spent, 0.05), 1.0)
        except ChannelClosed:
            self.close()
            if self.status is None or self.status == signal.SIGKILL:
                return None
            return {"compiled": False, "message": "the compiler crashed on this source"}

    def settle(self, memory_bytes: int) -> None:
        """It is ready for its tests, which may hold so much together; where the kernel counts it sees to that too."""
        if isinstance(self.usage, MemoryGroup):
            self.usage.settle(memory_bytes)

    def outgrown(self) -> bool:
        """Whether the kernel killed it with its test, for what they held together."""
        return isinstance(self.usage, MemoryGroup) and self.open and self.usage.outgrown()

    def cpu_s(self) -> float:
        """CPU time of the zygote itself; 0 for one that is gone."""
        return sum(map(int, self._stat()[11:13])) / TICK

    def _stat(self) -> list[bytes]:
        """Its own stat, empty for one that is gone."""
        try:
            return fields_of(f"{1 if self.own_namespace else self.pid}/stat", self.proc) if self.open else []
        except OSError:
            return []

    def close(self) -> None:
        """Kill it with all its processes."""
        if self.open:
            self.open = False
            self.channel.close()
            for held in (self.usage, self.refusals):
                if held is not None:
                    held.close()
            for fd in [self.proc, *self.scratch]:
                if fd >= 0:
                    os.close(fd)
            self.status = self.template.end(self.pid)
