"""The zygote: one per rollout. It holds the compiled program and no expected output, and forks once per test.

It is forked by the template (template.py), which was started before any test arrived. Messages from the judge:
{"load": source, "fn_name": ...} once, then {"run": 1} with the test's descriptors (stdin, stdout, stderr, result).
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import sys
import types
from typing import Any

from verifier_app.judge import runner
from verifier_app.judge.channel import Channel, ChannelClosed

FILENAME = "solution.py"


def compile_program(source: str) -> tuple[types.CodeType | None, str]:
    """(code, "") or (None, what is wrong with the source)."""
    try:
        return compile(source, FILENAME, "exec", dont_inherit=True), ""
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
        self.prelude_names = len(main.__dict__)
        self.box = box
        self.code: types.CodeType | None = None
        self.fn_name: str | None = None
        # a child that cannot be confined says so here; it closes the pipe before the program runs
        self.complaints, self.alarm = os.pipe()
        os.set_blocking(self.complaints, False)

    def serve(self) -> None:
        """Answer the judge until it hangs up."""
        try:
            while True:
                message, fds = self.channel.recv()
                if "load" in message:
                    self.channel.send(self._load(message))
                else:
                    self.channel.send(self._run(message, fds))
        except ChannelClosed:
            return

    def _load(self, message: dict[str, Any]) -> dict[str, Any]:
        self.fn_name = message["fn_name"]
        if self.fn_name is not None:
            self.main.__name__ = self.main.__dict__["__name__"] = (
                "solution"  # a main guard does not run (LiveCodeBench)
            )
            sys.modules["solution"] = self.main
        self.code, problem = compile_program(message["load"])
        gc.freeze()  # or a collection in a test's process would copy every page
        return {"compiled": self.code is not None, "message": problem[:300]}

    def _run(self, message: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        child = os.fork()
        if child == 0:
            self._child(message, fds)
        for fd in fds:
            os.close(fd)
        status, cpu, peak_kb = 0, 0.0, 0
        waiting = True
        while True:
            try:
                pid, code, usage = os.wait4(-1, 0)
            except ChildProcessError:
                break
            cpu += usage.ru_utime + usage.ru_stime
            peak_kb = max(peak_kb, usage.ru_maxrss)
            if pid == child:
                status, waiting = code, False
            if not waiting:
                self.box.sweep()
        try:
            complaint = os.read(self.complaints, 1000).decode()
        except BlockingIOError:
            complaint = ""
        return {"complaint": complaint, "status": status, "cpu_s": cpu, "peak_kb": peak_kb, "clean": self.box.clean()}

    def _child(self, message: dict[str, Any], fds: list[int]) -> None:
        """In the forked child: descriptors, limits, identity, then the program. Never returns."""
        try:
            self.channel.close()
            for target, fd in enumerate(fds):
                os.dup2(fd, target)
            for fd in fds:
                os.close(fd)
            os.close(self.complaints)
            os.setsid()
            resource.setrlimit(resource.RLIMIT_CPU, (message["cpu_s"], message["cpu_s"] + 1))
            self.box.enter((0, 1, 2) if self.fn_name is None else (0, 2))
            signal.signal(signal.SIGINT, signal.default_int_handler)  # the zygote ignores it
        except BaseException as error:
            os.write(self.alarm, f"{type(error).__name__}: {error}".encode()[:1000])
            os._exit(1)
        os.close(self.alarm)
        assert self.code is not None
        if self.fn_name is None:
            runner.run_stdin(self.code, self.main, self.prelude_names)
        else:
            runner.run_call(self.code, self.main, self.fn_name)
