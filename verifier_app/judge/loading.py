"""From a request's source to zygotes that hold its program: built once for a rollout, loaded into each of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from verifier_app.judge.languages.language import Compiler
from verifier_app.judge.process_io import ProcessIO, sealed_file
from verifier_app.judge.protocol import JudgeError, Request
from verifier_app.judge.running import Ended, run_process, signal_name, stop_message

if TYPE_CHECKING:
    from verifier_app.judge.host import ZygoteHandle
    from verifier_app.judge.languages.language import Warm

COMPILE_LIMIT_S = 15.0  # of CPU time, for the guest's `load`
TWICE = "the sandbox was killed twice while it compiled the program"


class ProgramLoader:
    """One rollout's program. Close it in every case.

    spawn: gives a confined zygote without a program: what its template has ready, and its memory in MiB.
    compiled_s: what compiling took in the last call of `load`, as far as it counts as the program's time.
    """

    def __init__(self, request: Request, spawn: Callable[[Warm, int], ZygoteHandle]) -> None:
        self.request, self._spawn = request, spawn
        self._compiler = request.language.compiler()
        self._file = -1  # what the compiler made
        self.compiled_s = 0.0

    def load(self) -> tuple[ZygoteHandle, str | None]:
        """A zygote with the compiled program, or with what is wrong with its source.

        Raises:
            JudgeError: sandbox_failed, host_overloaded, weak_isolation.
        """
        self.compiled_s = 0.0
        if self._compiler is not None and self._file < 0:
            zygote, complaint = self._build(self._compiler)
            if complaint is not None:
                return zygote, complaint
            zygote.close()
        for _ in range(2):
            zygote = self._spawn(self.request.language.warm(self.request), self.request.memory_limit_mb)
            files = [self._file] if self._file >= 0 else []
            loaded = self._told(zygote, "" if files else self.request.code, files)
            if loaded is not None:
                self.compiled_s += zygote.cpu_s()
                if loaded["compiled"]:
                    zygote.settle(self.request.memory_limit_mb << 20)
                return zygote, None if loaded["compiled"] else loaded["message"]
        raise JudgeError("sandbox_failed", TWICE)

    def close(self) -> None:
        """Let go of the built file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _told(self, zygote: ZygoteHandle, source: str, files: list[int]) -> dict[str, Any] | None:
        message = {"load": source, "fn_name": self.request.fn_name, "semantics": self.request.semantics}
        try:
            return zygote.load(message, COMPILE_LIMIT_S, files)
        except BaseException:
            zygote.close()
            raise

    def _build(self, compiler: Compiler) -> tuple[ZygoteHandle, str | None]:
        """Run the compiler in a sandbox of its own: the sandbox, and what is wrong with the source."""
        for attempt in (1, 2):
            zygote = self._spawn(self.request.language.warm(self.request), compiler.memory_mb)
            if self._told(zygote, "", []) is None:
                continue
            zygote.settle(compiler.memory_mb << 20)
            source = self.request.code.encode("utf-8", "surrogatepass")
            pump = ProcessIO(source, call=True, cap=compiler.most_bytes)
            try:
                ran = run_process(zygote, pump, compiler.time_limit_s, compiler.memory_mb << 20, forked=False)
                if ran is None:
                    zygote.close()
                    continue
                reason, ended, watch = ran
                self.compiled_s = max(0.0, watch.wall_s - watch.starved_s)
                if reason is not None:
                    message = stop_message(reason, watch, compiler.time_limit_s, compiler.memory_mb)
                    if reason == "host_overloaded":
                        raise JudgeError(reason, f"compiling: {message}")
                    return zygote, f"compiling: {message}"
                assert ended is not None
                errors = pump.errors.decode("utf-8", "replace")
                if attempt == 1 and self._killed(ended, errors) and not zygote.outgrown():
                    zygote.close()
                    continue
                return zygote, self._built(ended, pump, errors)
            except BaseException:
                zygote.close()
                raise
            finally:
                pump.close()
        raise JudgeError("sandbox_failed", TWICE)

    def _killed(self, ended: Ended, errors: str) -> bool:
        """By a SIGKILL that may have come from outside."""
        if os.WIFSIGNALED(ended.status):
            return os.WTERMSIG(ended.status) == signal.SIGKILL
        return ended.status != 0 and self.request.language.interrupted(errors)

    def _built(self, ended: Ended, pump: ProcessIO, errors: str) -> str | None:
        """Take over what the compiler made; what it complains about."""
        if os.WIFSIGNALED(ended.status):
            return f"the compiler was killed by {signal_name(os.WTERMSIG(ended.status))}"
        if ended.status:
            return self.request.language.complaint(errors, pump.last_error_line())
        file = sealed_file(pump.data, "program")
        if file is None:
            raise JudgeError("sandbox_failed", "the compiled program finds no place in memory (memfd_create)")
        self._file = file
        return None
