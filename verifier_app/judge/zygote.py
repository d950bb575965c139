"""The zygote: one per rollout. It holds the compiled program and no expected output, and forks once per test.

It is forked by the template (template.py), which was started before any test arrived. Messages from the judge:
{"load": source, "fn_name": ..., "semantics": ...} once, with the file that was built of the source, if one was; then,
for each test, its CPU limit in seconds, a bare number, with the test's descriptors (stdin, stdout, stderr, result).
A program that runs all tests in one process gets the later ones' descriptors there (one_process.py).

A page that zygote or child writes to after the fork is a page fault, mostly with a copy; so what runs between two tests
is kept to few calls on few objects.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import os
import resource
from typing import Any

from verifier_app.judge.channel import Channel, ChannelClosed
from verifier_app.judge.layers import syscalls
from verifier_app.judge.layers.limits import MAX_OPEN_FILES
from verifier_app.judge.layers.sandbox import PATH_FD
from verifier_app.judge.one_process import OneProcess

FIRST_FREE = 64


class Zygote:
    """The loop of one rollout's zygote.

    program: a guest's Program (languages/language.py). ends: of the socket to the process of all tests, where one runs
    them.
    """

    def __init__(self, channel: Channel, program: Any, box: Any, ends: Any = None) -> None:
        self.channel = channel
        self.ends = ends
        self.program = program
        self.box = box
        self.pipes: tuple[int, ...] = ()  # descriptors that a test's process has to own
        # a child that cannot be confined says so here; it closes the pipe before the program runs
        self.complaints, alarm = os.pipe()
        os.set_blocking(self.complaints, False)
        # out of the way of a test's own descriptors
        self.alarm = fcntl.fcntl(alarm, fcntl.F_DUPFD_CLOEXEC, FIRST_FREE)
        os.close(alarm)
        self.kept_end = self.alarm + 1  # behind the last descriptor that a test's process keeps until its program runs

    def serve(self) -> None:
        """Answer the judge until it hangs up."""
        try:
            body, fds = self.channel.recv_body()
            self.channel.send(self._load(json.loads(body), fds))
            run = OneProcess(self, *self.ends).run if self.ends else self._run
            while True:
                body, fds = self.channel.recv_body()
                self.channel.send_body(run(int(body), fds))
        except ChannelClosed:
            return

    def _load(self, message: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        file = -1
        for fd in fds:
            file = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, self.kept_end)
            os.close(fd)
            self.kept_end = file + 1
        problem = self.program.load(message, file)
        self.pipes = (0, 2) if self.program.call else (0, 1, 2)
        gc.freeze()  # or a collection in a test's process would copy every page
        return {"compiled": problem is None, "message": (problem or "")[:300]}

    def _run(self, cpu_s: int, fds: list[int]) -> bytes:
        """Fork, wait, sweep, answer."""
        child = syscalls.fork()
        if child == 0:
            self.enter(cpu_s, fds, self.kept_end)
            self.program.run(self.alarm)
        for fd in fds:
            os.close(fd)
        return self.gather(child)

    def gather(self, child: int, earlier_s: float = 0.0, lasting: bool = False) -> bytes:
        """Wait for a test's process, sweep. The answer: status, CPU seconds, peak KB, clean folders, complaint.

        earlier_s: CPU time of its tests before; lasting: it should have gone on.
        """
        status, cpu, peak_kb = 0, -earlier_s, 0
        waiting = True
        while True:
            pid, code, child_cpu, child_peak_kb = syscalls.wait_any()
            if pid < 0:
                break
            cpu += child_cpu
            peak_kb = max(peak_kb, child_peak_kb)
            if pid == child:
                status, waiting = code, False
            if not waiting and self.box.sweep():
                break
        complaint = "null"
        if status:
            with contextlib.suppress(BlockingIOError):
                complaint = json.dumps(os.read(self.complaints, 1000).decode())
        clean = "true" if not lasting and self.box.clean() else "false"
        return f"[{status},{cpu:.6f},{peak_kb},{clean},{complaint}]".encode()

    def enter(self, cpu_s: int, fds: list[int], kept_end: int) -> None:
        """In the forked child: descriptors, limits, identity."""
        try:
            for target, fd in enumerate(fds):
                os.dup2(fd, target)
            # Nothing of ours is open in a test's process: an offset is shared by all that hold the description.
            os.closerange(len(fds), self.alarm)
            os.closerange(kept_end, PATH_FD)
            os.closerange(self.box.path_fds_end, MAX_OPEN_FILES)
            os.setsid()
            if self.box.limits_cpu:
                resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
            self.box.enter(self.pipes)
        except BaseException as error:
            os.write(self.alarm, f"{type(error).__name__}: {error}".encode()[:1000])
            os._exit(1)
