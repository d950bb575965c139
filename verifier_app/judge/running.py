"""One test in a zygote: fed, watched, and what it came to."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from verifier_app.judge import compare, value_codec
from verifier_app.judge.channel import ChannelClosed
from verifier_app.judge.host import ZygoteHandle
from verifier_app.judge.plain_json import is_deep
from verifier_app.judge.process_io import OUTPUT_CAP, ProcessIO
from verifier_app.judge.protocol import JudgeError, Request
from verifier_app.judge.refusals import PROCESSES
from verifier_app.judge.watchdog import Watchdog, cpu_cap_s

CHECKED_RESULT = 4 << 20  # bytes of a call's result for a checker, and eight times the expected one's
UNCHECKED = "unchecked"  # a test that ended well and whose output a checker has to see


@dataclass
class TestResult:
    """What one test came to."""

    __test__ = False

    index: int
    status: str
    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_mb: float = 0.0
    message: str = ""
    fair_s: float = 0.0
    killed: bool = False  # by a SIGKILL that was not the judge's: the program's own, or the kernel's for want of memory
    exit_code: int | None = None  # None: it did not end by itself, or by a signal
    output: bytes | bytearray = b""  # where it is asked for, or a checker is to see it
    value: str | None = None  # a call's result, likewise


class Ended(NamedTuple):
    """What the zygote saw of a test that ended by itself: wait4's status, and the tree's CPU time and peak."""

    status: int
    cpu_s: float
    peak_kb: int
    clean: bool  # the scratch folders are as before
    complaint: str | None  # the child could not be confined


def run_test(
    zygote: ZygoteHandle, request: Request, index: int, more: Sequence[bytes | bytearray] = ()
) -> TestResult | None:
    """Run one test; None when the zygote died under it. Leaves a dirty or stopped zygote closed.

    more: what follows the test's input on standard input.
    """
    call = request.fn_name is not None
    limit = request.time_limit_s
    cap = OUTPUT_CAP
    if call and request.checker is not None:  # all of it is read here, whatever the expected value is
        cap = min(cap, CHECKED_RESULT + 8 * len(request.tests.outputs[index]))
    elif call:  # the answer's JSON is at most so long: a digit may stand for a number of 309 digits
        cap = min(cap, 400 * len(request.tests.outputs[index]) + value_codec.MAX_INT_BITS // 2)
    waits = request.language.waits_for_input(request.code)
    pump = ProcessIO(request.tests.inputs[index].encode("utf-8", "surrogatepass"), call, cap, waits, more)
    try:
        memory, forked = request.memory_limit_mb << 20, not request.language.own_processes
        tests = len(request.tests) if zygote.template.one_process else 1
        ran = run_process(zygote, pump, limit, memory, forked, tests)
        if ran is None:
            return None
        reason, ended, watch = ran
        wall = watch.wall_s
        result = TestResult(index, reason or "", wall, fair_s=max(0.0, wall - watch.starved_s))
        if ended is None:
            assert reason is not None
            _stopped(result, reason, zygote, request, watch)
            return result
        result.cpu_s = max(ended.cpu_s, watch.cpu_s)  # what nobody waited for is in the second only
        result.peak_mb = max(ended.peak_kb / 1024, watch.peak_bytes / 2**20)
        result.status, result.message = conclude(request, index, pump, watch, ended)
        result.exit_code = os.WEXITSTATUS(ended.status) if os.WIFEXITED(ended.status) else None
        if result.status == UNCHECKED:
            to_check(result, pump.data, call)
        elif request.keep_output_bytes:
            result.output = bytes(pump.data[: request.keep_output_bytes])
            result.value = shown_result(request, index, pump.data) if call else None
        signalled = os.WIFSIGNALED(ended.status) and os.WTERMSIG(ended.status) == signal.SIGKILL
        if signalled and zygote.outgrown():
            result.status, result.message = (
                "memory_limit_exceeded",
                stop_message("memory_limit_exceeded", watch, limit, request.memory_limit_mb),
            )
        result.killed = signalled and result.status == "runtime_error"
        return result
    finally:
        pump.close()


class Ran(NamedTuple):
    """A process in a zygote: why the judge stopped it, or how it ended by itself; and what was seen of it."""

    reason: str | None
    ended: Ended | None
    watch: Watchdog


def run_process(
    zygote: ZygoteHandle, pump: ProcessIO, limit_s: float, memory: int, forked: bool, tests: int = 1
) -> Ran | None:
    """Run what the zygote holds once, fed and watched; None when the zygote died under it.

    Leaves a dirty or stopped zygote closed. memory: bytes. forked: as in Watchdog.
    tests: how many the process runs one after the other.

    Raises:
        JudgeError: sandbox_failed: the process could not be confined, or its program not be started.
    """
    watch = zygote.watch(limit_s, memory, forked, tests > 1)
    try:
        zygote.channel.send_body(b"%d" % (cpu_cap_s(limit_s) * tests), pump.child_fds)
        pump.release_child()
        reason = pump.run(zygote.channel.fileno(), watch.seconds_left, watch.check, zygote.refusals)
        ended = None if reason else Ended(*zygote.channel.recv()[0])
    except ChannelClosed:
        if not zygote.outgrown():
            return None
        reason, ended = "memory_limit_exceeded", None
        watch.peak_bytes = max(watch.peak_bytes, memory)  # at least
    if ended is None:
        zygote.close()
        return Ran(reason, ended, watch)
    if ended.complaint:
        raise JudgeError("sandbox_failed", ended.complaint)
    if not ended.clean:
        zygote.close()
    if tests == 1:
        zygote.reaped_s += ended.cpu_s
    pump.drain()
    return Ran(None, ended, watch)


def _stopped(result: TestResult, reason: str, zygote: ZygoteHandle, request: Request, watch: Watchdog) -> None:
    """Fill in the result of a test that the judge stopped. JudgeError host_overloaded."""
    result.cpu_s, result.peak_mb = watch.cpu_s, watch.peak_bytes / 2**20
    result.message = stop_message(reason, watch, request.time_limit_s, request.memory_limit_mb)
    if reason == "too_many_processes":
        result.status = "runtime_error"
        if zygote.refusals is not None:
            zygote.refusals.counts[PROCESSES] = 1
    if reason == "host_overloaded":
        raise JudgeError(reason, f"test {result.index}: {result.message}")


def to_check(result: TestResult, data: bytes | bytearray, call: bool) -> None:
    """Give a test that ended well what its checker reads, or the verdict where that is no value of JSON."""
    if not call:
        result.output = data
        return
    try:
        text = value_codec.as_json(value_codec.decode(data))
        problem = "the returned value is of a type that JSON does not have"
    except value_codec.Malformed as error:
        text, problem = None, f"the returned value cannot be read: {error}"
    if text is None:
        result.status, result.message = "wrong_answer", problem
    else:
        result.output = text.encode("utf-8", "surrogatepass")


def stop_message(reason: str, watch: Watchdog, limit_s: float, memory_mb: int) -> str:
    """What a person should know of a test, or a compiler, that the judge stopped."""
    if reason == "time_limit_exceeded":
        return f"stopped after {watch.wall_s:.2f} s ({watch.cpu_s:.2f} s CPU); the limit is {limit_s:g} s"
    if reason == "memory_limit_exceeded":
        return f"the processes hold {watch.peak_bytes >> 20} MB; the limit is {memory_mb} MB"
    if reason == "output_limit_exceeded":
        return "more output than the judge reads"
    if reason == "host_overloaded":
        return f"{watch.wall_s:.1f} s passed, {watch.starved_s:.1f} s of them waiting for a core"
    return "too many processes"


def signal_name(number: int) -> str:
    """SIGSEGV and the like; of the real-time signals only the first and the last have a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def conclude(request: Request, index: int, pump: ProcessIO, watch: Watchdog, ended: Ended) -> tuple[str, str]:
    """(status, message) of a test that ended by itself."""
    if pump.over_cap:
        return "output_limit_exceeded", "more output than the judge reads"
    status = ended.status
    cpu_s = max(ended.cpu_s, watch.cpu_s) - watch.lent_s
    if cpu_s > request.time_limit_s or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU):
        return "time_limit_exceeded", f"{cpu_s:.2f} s CPU; the limit is {request.time_limit_s:g} s"
    last = pump.last_error_line()
    if status and request.language.out_of_memory(status, last):
        return "memory_limit_exceeded", f"{last} (limit {request.memory_limit_mb} MB)"
    if os.WIFSIGNALED(status):
        name = signal_name(os.WTERMSIG(status))
        return "runtime_error", f"killed by {name}" + (f": {last}" if last else "")
    if os.WEXITSTATUS(status):
        return "runtime_error", last or f"exit status {os.WEXITSTATUS(status)}"
    if request.checker is not None:
        return UNCHECKED, ""
    if request.fn_name is None:
        difference = compare.output_difference(pump.data, request.tests.outputs[index], request.decimal_tolerance)
    else:
        try:
            expected, deep = request.tests.values()[index], is_deep(request.tests.outputs[index])
            got = value_codec.decode(pump.data, expected)
            difference = compare.value_difference(got, expected, deep, request.decimal_tolerance)
        except value_codec.Malformed as error:
            difference = f"the returned value cannot be read: {error}"
    return ("accepted", "") if difference is None else ("wrong_answer", difference)


def shown_result(request: Request, index: int, data: bytes | bytearray) -> str:
    """A call's result as text, empty where it cannot be read."""
    try:
        return compare.shown_value(value_codec.decode(data, request.tests.values()[index]), request.keep_output_bytes)
    except value_codec.Malformed:
        return ""
