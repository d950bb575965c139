"""The zygote: one per rollout. It holds the compiled program and no expected output, and forks once per test.

It is forked by the template (template.py), which was started before any test arrived. Messages from the judge:
{"load": source, "fn_name": ..., "official": ...} once, then, for each test, its CPU limit in seconds, a bare number,
with the test's descriptors (stdin, stdout, stderr, result).

A page that zygote or child writes to after the fork is a page fault, mostly with a copy; so what runs between two tests
is kept to few calls on few objects.
"""

from __future__ import annotations

import _random
import _signal  # signal.signal wraps it in enums
import contextlib
import fcntl
import gc
import json
import os
import random
import resource
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

from verifier_app.judge.channel import Channel, ChannelClosed
from verifier_app.judge.languages.python import ending, respawn, runner
from verifier_app.judge.layers import syscalls
from verifier_app.judge.layers.limits import MAX_OPEN_FILES
from verifier_app.judge.layers.sandbox import PATH_FD

FILENAME = "solution.py"
FIRST_FREE = 64


def compile_program(compiler: Callable[[], types.CodeType]) -> tuple[types.CodeType | None, str]:
    """(code, "") or (None, what is wrong with the source)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a source may hold any number
            return compiler(), ""
    except SyntaxError as error:
        line = f" (line {error.lineno})" if error.lineno else ""
        return None, f"{type(error).__name__}: {error.msg}{line}"
    except (ValueError, RecursionError, MemoryError, OverflowError) as error:
        return None, f"{type(error).__name__}: {error}"


class Zygote:
    """The loop of one rollout's zygote."""

    def __init__(self, channel: Channel, main: types.ModuleType, box: Any) -> None:
        self.channel = channel
        self.main = main
        self.box = box
        self.code: types.CodeType | None = None
        self.fn_name: str | None = None
        self.writes_late = False
        self.official: Any = None  # an official.Program
        self.respawned: str | None = None  # the source, when processes may be started that read it again
        # a child that cannot be confined says so here; it closes the pipe before the program runs
        self.complaints, alarm = os.pipe()
        os.set_blocking(self.complaints, False)
        self.alarm = fcntl.fcntl(alarm, fcntl.F_DUPFD, FIRST_FREE)  # out of the way of a test's own descriptors
        os.close(alarm)

    def serve(self) -> None:
        """Answer the judge until it hangs up."""
        try:
            while True:
                body, fds = self.channel.recv_body()
                if fds:
                    self.channel.send_body(self._run(int(body), fds))
                else:
                    self.channel.send(self._load(json.loads(body)))
        except ChannelClosed:
            return

    def _load(self, message: dict[str, Any]) -> dict[str, Any]:
        self.fn_name = message["fn_name"]
        if message["official"]:
            return self._load_official(message["load"])
        if self.fn_name is not None:
            self.main.__name__ = self.main.__dict__["__name__"] = (
                "solution"  # a main guard does not run (LiveCodeBench)
            )
            sys.modules["solution"] = self.main
        source = message["load"].removeprefix("\ufeff")  # a byte order mark, as CPython reads a file
        self.code, problem = compile_program(lambda: compile(source, FILENAME, "exec", dont_inherit=True))
        self.writes_late = ending.may_write_late(source)
        self.respawned = source if respawn.may_start(source) else None
        gc.freeze()  # or a collection in a test's process would copy every page
        return {"compiled": self.code is not None, "message": problem[:300]}

    def _load_official(self, source: str) -> dict[str, Any]:
        from verifier_app.judge.languages.python import official  # loaded by the template for it alone

        self.main.__name__ = self.main.__dict__["__name__"] = official.MODULE
        self.code, problem = compile_program(lambda: official.compile_program(source, FILENAME, self.fn_name))
        if self.code is not None:
            self.official = official.Program(self.code, self.main, source, self.fn_name)
        gc.freeze()
        return {"compiled": self.code is not None, "message": problem[:300]}

    def _run(self, cpu_s: int, fds: list[int]) -> bytes:
        """Fork, wait, sweep. The answer: status, CPU seconds, peak KB, clean folders, complaint."""
        child = syscalls.fork()
        if child == 0:
            self._child(cpu_s, fds)
        for fd in fds:
            os.close(fd)
        status, cpu, peak_kb = 0, 0.0, 0
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
        clean = "true" if self.box.clean() else "false"
        return f"[{status},{cpu:.6f},{peak_kb},{clean},{complaint}]".encode()

    def _child(self, cpu_s: int, fds: list[int]) -> None:
        """In the forked child: descriptors, limits, identity, then the program. Never returns."""
        try:
            for target, fd in enumerate(fds):
                os.dup2(fd, target)
            # Nothing of ours is open in a test's process: an offset is shared by all that hold the description.
            os.closerange(len(fds), self.alarm)
            os.closerange(self.alarm + 1, PATH_FD)
            os.closerange(self.box.path_fds_end, MAX_OPEN_FILES)
            os.setsid()
            if self.box.limits_cpu:
                resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
            self.box.enter((0, 1, 2) if self.fn_name is None else (0, 2))
            _signal.signal(_signal.SIGINT, _signal.default_int_handler)  # the zygote ignores it
            _random.Random.seed(random._inst)  # as os.fork does
        except BaseException as error:
            os.write(self.alarm, f"{type(error).__name__}: {error}".encode()[:1000])
            os._exit(1)
        os.close(self.alarm)
        assert self.code is not None
        if self.official is not None:
            self.official.run()
        elif self.fn_name is None:
            runner.run_stdin(self.code, self.main, self.writes_late, self.respawned)
        else:
            runner.run_call(self.code, self.main, self.fn_name)
