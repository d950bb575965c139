"""verify(request) -> verdict: the judge's side of a rollout. It owns the tests, the clock and the verdict."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from verifier_app.judge import compare, value_codec
from verifier_app.judge.channel import ChannelClosed
from verifier_app.judge.checkers import Checker
from verifier_app.judge.host import MODULES, TemplateHandle, ZygoteHandle
from verifier_app.judge.layers import syscalls
from verifier_app.judge.plain_json import is_deep
from verifier_app.judge.process_io import OUTPUT_CAP, ProcessIO
from verifier_app.judge.protocol import (
    JudgeError,
    Request,
    bad_request,
    check_code,
    judge_fault,
    parse_request,
    printable,
)
from verifier_app.judge.refusals import PROCESSES
from verifier_app.judge.store import TestStore
from verifier_app.judge.verdict import RanTest, Verdict
from verifier_app.judge.watchdog import Watchdog, cpu_cap_s

log = logging.getLogger(__name__)

COMPILE_LIMIT_S = 15.0
OFFICIAL = "verifier_app.judge.languages.python.official"
WAITING = ("epoll", "add_reader", "connect_read_pipe", "Selector")  # with these a program may wait for its input
MESSAGE_CHARS = 300
CHECKED_RESULT = 4 << 20  # bytes of a call's result for a checker, and eight times the expected one's
UNCHECKED = "unchecked"  # a test that ended well and whose output a checker has to see
ONE_PROGRAMS = (
    "checker_failed",
    "judge_fault",
    "host_overloaded",
    "sandbox_failed",
)  # faults that the next program need not have


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


@dataclass
class Judging:
    """The verdict in the making."""

    request: Request
    results: list[TestResult] = field(default_factory=list)
    isolation: dict[str, Any] = field(default_factory=dict)
    attempts: dict[str, int] | None = None  # None: this kernel does not tell

    def tried(self, zygote: ZygoteHandle) -> None:
        """Add up what the kernel refused the program."""
        if zygote.refusals is not None:
            self.attempts = self.attempts or {}
            for kind, count in zygote.refusals.take().items():
                self.attempts[kind] = self.attempts.get(kind, 0) + count

    def verdict(self, status: str | None = None, message: str = "") -> Verdict:
        """Plain JSON types. The first failure in running order decides, unless `status` says otherwise."""
        failed = next((result for result in self.results if result.status != "accepted"), None)
        if status is None:
            status = failed.status if failed else "accepted"
        if not message and failed:
            message = failed.message
        return {
            "status": status,
            "passed": sum(result.status == "accepted" for result in self.results),
            "ran": len(self.results),
            "total": len(self.request.tests),
            "failed_test": failed.index if failed else None,
            "tests": [self._test(result) for result in self.results],
            "message": printable(message[:MESSAGE_CHARS])[:MESSAGE_CHARS],
            "attempts": self.attempts,
            "isolation": self.isolation,
        }

    def _test(self, result: TestResult) -> RanTest:
        test: RanTest = {
            "index": result.index,
            "status": result.status,
            "wall_s": round(result.wall_s, 4),
            "cpu_s": round(result.cpu_s, 4),
            "peak_mb": round(result.peak_mb, 1),
        }
        if most := self.request.keep_output_bytes:
            text = result.output[:most].decode("utf-8", "replace") if result.value is None else result.value[:most]
            test["output"] = text
        return test


class Judge:
    """Warm templates and the settings of isolation. Threads may share one; after a fork it starts anew.

    require_isolation: "strong" raises JudgeError weak_isolation on a host that offers less. deny: system calls that are
    refused to the sandbox's own setup, to see how it degrades.
    """

    def __init__(self, require_isolation: str | None = None, deny: tuple[str, ...] = ()) -> None:
        require_isolation = require_isolation or os.environ.get("VERIFIER_REQUIRE_ISOLATION") or "any"
        if require_isolation not in ("any", "strong"):
            raise bad_request("require_isolation", f"is {require_isolation!r}", "give any or strong")
        self.require_isolation = require_isolation
        self.deny = tuple(deny)
        self._templates: dict[tuple[bool, bool], TemplateHandle] = {}
        self._lock = threading.Lock()
        self._owner = os.getpid()

    def verify(self, request: dict[str, Any], store: Any = None) -> Verdict:
        """Judge one rollout. Raises JudgeError for faults on our side and nothing else."""
        try:
            return self._judge(parse_request(request, default_store() if store is None else store))
        except JudgeError:
            raise
        except Exception as error:  # the net: what nobody foresaw costs this request alone
            log.exception("the judge failed at a request")
            raise judge_fault(error) from error

    def verify_many(self, tests_ref: dict[str, Any], codes: list[str], store: Any = None, **fields: Any) -> list[Any]:
        """Judge several programs against one stored set, one after the other; `fields` are the request's others.

        A fault that concerns one program alone stands in its place, as {"error": {"kind", "message"}}.
        """
        if not isinstance(codes, list):
            raise bad_request("codes", f"is {type(codes).__name__}", "give a list of sources")
        for index, code in enumerate(codes):
            check_code(code, f"codes[{index}]")
        return [self._one_of_many({"tests_ref": tests_ref, "code": code, **fields}, store) for code in codes]

    def _one_of_many(self, request: dict[str, Any], store: Any) -> Verdict | dict[str, Any]:
        try:
            return self.verify(request, store)
        except JudgeError as error:
            if error.kind not in ONE_PROGRAMS:
                raise
            return {"error": {"kind": error.kind, "message": error.message}}

    def close(self) -> None:
        """End every process of this judge."""
        with self._lock:
            templates, self._templates = self._templates, {}
        if self._owner == os.getpid():
            for template in templates.values():
                template.close()

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def template(self, numpy: bool, official: bool = False) -> TemplateHandle:
        """The warm interpreter, with or without numpy and what the official semantics need; started at first use and
        again when it died."""
        kind = numpy, official
        with self._lock:
            if self._owner != os.getpid():
                self._owner, self._templates = os.getpid(), {}
            found = self._templates.get(kind)
            if found is None or not found.alive:
                if found is not None:
                    found.close()
                syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
                modules = [*MODULES, *(["numpy"] if numpy else []), *([OFFICIAL] if official else [])]
                found = self._templates[kind] = TemplateHandle(modules, self.deny)
            return found

    def _judge(self, request: Request) -> Verdict:
        rollout = Judging(request)
        started = time.monotonic()
        starved = 0.0
        zygote: ZygoteHandle | None = None
        checker = None if request.checker is None else Checker(request, self._loaded, run_test)
        try:
            for index in request.order:
                if request.deadline_s is not None:
                    spent = time.monotonic() - started
                    if spent - starved > request.deadline_s:
                        message = f"the rollout's deadline of {request.deadline_s:g} s passed before test {index}"
                        return rollout.verdict("time_limit_exceeded", message)
                    if spent > request.deadline_s * 10:
                        raise JudgeError("host_overloaded", f"{spent:.0f} s passed, most of them waiting for a core")
                for attempt in (1, 2):
                    if zygote is None or not zygote.open:
                        began = time.monotonic()
                        zygote, complaint = self._loaded(request)
                        starved += time.monotonic() - began - zygote.cpu_s()  # of this only compiling is the program's
                        rollout.isolation = zygote.report
                        rollout.tried(zygote)
                        if complaint is not None:
                            return rollout.verdict("compile_error", complaint)
                    result = run_test(zygote, request, index)
                    if result is not None and (attempt == 2 or not result.killed):
                        break
                    # What killed it may have come from outside: what the program does, it does again.
                    own_namespace = zygote.own_namespace
                    zygote.close()
                    if attempt == 2 and own_namespace:  # no program reaches out of it
                        raise JudgeError("sandbox_failed", f"the sandbox was killed twice under test {index}")
                    if attempt == 2:
                        result = TestResult(index, "runtime_error", message="the program broke its sandbox down")
                assert zygote is not None
                assert result is not None
                rollout.tried(zygote)
                starved += result.wall_s - result.fair_s
                if checker is not None and result.status == UNCHECKED:
                    before = checker.seconds
                    result.status, result.message = checker.check(index, result.output)
                    starved += checker.seconds - before
                    result.output = result.output[: request.keep_output_bytes]  # not those of all tests until the end
                rollout.results.append(result)
                if result.status != "accepted" and request.stop_at_first_failure:
                    break
        finally:
            if zygote is not None:
                zygote.close()
            if checker is not None:
                checker.close()
        return rollout.verdict()

    def _loaded(self, request: Request) -> tuple[ZygoteHandle, str | None]:
        """A zygote with the compiled program, or with what is wrong with its source."""
        for _ in range(2):
            zygote = self._zygote(request)
            try:
                official = request.semantics == "official"
                loaded = zygote.load(request.code, request.fn_name, COMPILE_LIMIT_S, official)
            except BaseException:
                zygote.close()
                raise
            if loaded is not None:
                if loaded["compiled"]:
                    zygote.settle(request.memory_limit_mb << 20)
                return zygote, None if loaded["compiled"] else loaded["message"]
        raise JudgeError("sandbox_failed", "the sandbox was killed twice while it compiled the program")

    def _zygote(self, request: Request) -> ZygoteHandle:
        kind = "numpy" in request.code, request.semantics == "official"
        try:
            zygote = self.template(*kind).spawn({"memory_mb": request.memory_limit_mb})
        except JudgeError:
            zygote = self.template(*kind).spawn({"memory_mb": request.memory_limit_mb})
        if self.require_isolation == "strong" and zygote.report["level"] != "strong":
            why = "; ".join(zygote.report.get("weak", []))
            zygote.close()
            raise JudgeError("weak_isolation", f"strong isolation is required and this host is weak: {why}")
        return zygote


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
    waits = any(word in request.code for word in WAITING)
    pump = ProcessIO(request.tests.inputs[index].encode("utf-8", "surrogatepass"), call, cap, waits, more)
    try:
        memory = request.memory_limit_mb << 20
        watch = zygote.watch(limit, memory)
        try:
            zygote.channel.send_body(b"%d" % cpu_cap_s(limit), pump.child_fds)
            pump.release_child()
            reason = pump.run(zygote.channel.fileno(), watch.seconds_left, watch.check, zygote.refusals)
            ended = None if reason else Ended(*zygote.channel.recv()[0])
        except ChannelClosed:
            if not zygote.outgrown():
                return None
            reason, ended = "memory_limit_exceeded", None
            watch.peak_bytes = max(watch.peak_bytes, memory)  # at least
        wall = watch.wall_s
        result = TestResult(index, reason or "", wall, fair_s=max(0.0, wall - watch.starved_s))
        if reason is not None:
            zygote.close()
            result.cpu_s, result.peak_mb = watch.cpu_s, watch.peak_bytes / 2**20
            result.message = stop_message(reason, request, watch)
            if reason == "too_many_processes":
                result.status = "runtime_error"
                if zygote.refusals is not None:
                    zygote.refusals.counts[PROCESSES] = 1
            if reason == "host_overloaded":
                raise JudgeError(reason, f"test {index}: {result.message}")
            return result
        assert ended is not None
        if ended.complaint:
            raise JudgeError("sandbox_failed", ended.complaint)
        if not ended.clean:
            zygote.close()
        zygote.reaped_s += ended.cpu_s
        result.cpu_s = max(ended.cpu_s, watch.cpu_s)  # what nobody waited for is in the second only
        result.peak_mb = max(ended.peak_kb / 1024, watch.peak_bytes / 2**20)
        pump.drain()
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
                stop_message("memory_limit_exceeded", request, watch),
            )
        result.killed = signalled and result.status == "runtime_error"
        return result
    finally:
        pump.close()


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


def stop_message(reason: str, request: Request, watch: Watchdog) -> str:
    """What a person should know of a test that the judge stopped."""
    if reason == "time_limit_exceeded":
        return f"stopped after {watch.wall_s:.2f} s ({watch.cpu_s:.2f} s CPU); the limit is {request.time_limit_s:g} s"
    if reason == "memory_limit_exceeded":
        return f"the processes hold {watch.peak_bytes >> 20} MB; the limit is {request.memory_limit_mb} MB"
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
        return "output_limit_exceeded", stop_message("output_limit_exceeded", request, watch)
    status = ended.status
    cpu_s = max(ended.cpu_s, watch.cpu_s) - watch.lent_s
    if cpu_s > request.time_limit_s or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU):
        return "time_limit_exceeded", f"{cpu_s:.2f} s CPU; the limit is {request.time_limit_s:g} s"
    last = pump.last_error_line()
    if os.WIFSIGNALED(status):
        name = signal_name(os.WTERMSIG(status))
        return "runtime_error", f"killed by {name}" + (f": {last}" if last else "")
    if os.WEXITSTATUS(status):
        if last.startswith("MemoryError"):
            return "memory_limit_exceeded", f"{last} (limit {request.memory_limit_mb} MB)"
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


_default: Judge | None = None
_default_store: TestStore | None = None
_default_lock = threading.Lock()


def default_store() -> TestStore | None:
    """The store under VERIFIER_TESTS_DIR, if that is set."""
    global _default_store
    folder = os.environ.get("VERIFIER_TESTS_DIR")
    if not folder:
        return None
    if _default_store is None or str(_default_store.folder) != folder:
        _default_store = TestStore(folder)
    return _default_store


def default_judge() -> Judge:
    """The judge behind the module's functions, ended with the process."""
    global _default
    with _default_lock:
        if _default is None:
            _default = Judge()
            atexit.register(_default.close)
        return _default


def verify(request: dict[str, Any], store: Any = None) -> Verdict:
    """Judge one program (see the README for request and verdict). Raises JudgeError for faults on our side only."""
    return default_judge().verify(request, store)


def verify_many(tests_ref: dict[str, Any], codes: list[str], store: Any = None, **fields: Any) -> list[Any]:
    """Judge several programs against one stored set, nothing shared between them."""
    return default_judge().verify_many(tests_ref, codes, store, **fields)
