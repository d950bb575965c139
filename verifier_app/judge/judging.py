"""verify(request) -> verdict: the judge's side of a rollout. It owns the tests, the clock and the verdict."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from verifier_app.judge.checkers import Checker
from verifier_app.judge.host import TemplateHandle, ZygoteHandle
from verifier_app.judge.languages import registry
from verifier_app.judge.languages.language import Warm
from verifier_app.judge.layers import syscalls
from verifier_app.judge.loading import ProgramLoader
from verifier_app.judge.protocol import (
    JudgeError,
    Request,
    bad_request,
    check_code,
    judge_fault,
    parse_request,
    printable,
)
from verifier_app.judge.running import UNCHECKED, TestResult, run_test
from verifier_app.judge.store import TestStore
from verifier_app.judge.verdict import RanTest, Verdict

log = logging.getLogger(__name__)

MESSAGE_CHARS = 300
ONE_PROGRAMS = (
    "checker_failed",
    "judge_fault",
    "host_overloaded",
    "sandbox_failed",
)  # faults that the next program need not have


@dataclass
class Judging:
    """The verdict in the making."""

    request: Request
    results: list[TestResult] = field(default_factory=list)
    isolation: dict[str, Any] = field(default_factory=dict)
    attempts: dict[str, int] | None = None  # None: this kernel does not tell
    started: float = field(default_factory=time.monotonic)
    starved_s: float = 0.0  # of the time since, which is not the program's

    def tried(self, zygote: ZygoteHandle) -> None:
        """Add up what the kernel refused the program."""
        if zygote.refusals is not None:
            self.attempts = self.attempts or {}
            for kind, count in zygote.refusals.take().items():
                self.attempts[kind] = self.attempts.get(kind, 0) + count

    def late(self, index: int) -> str | None:
        """The message of a rollout whose own time is over before this test; None: it has time.

        Raises:
            JudgeError: host_overloaded.
        """
        deadline_s = self.request.deadline_s
        if deadline_s is None:
            return None
        spent = time.monotonic() - self.started
        if spent - self.starved_s > deadline_s:
            return f"the rollout's deadline of {deadline_s:g} s passed before test {index}"
        if spent > deadline_s * 10:
            raise JudgeError("host_overloaded", f"{spent:.0f} s passed, most of them waiting for a core")
        return None

    def check(self, result: TestResult, checker: Checker) -> None:
        """Have the checker decide about a test's output."""
        before = checker.seconds
        result.status, result.message = checker.check(result.index, result.output)
        self.starved_s += checker.seconds - before
        result.output = result.output[: self.request.keep_output_bytes]  # not those of all tests until the end

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
    """Warm templates and the settings of isolation. Threads may share one; after a fork it starts over.

    require_isolation: "strong" raises JudgeError weak_isolation on a host that offers less. deny: system calls that are
    refused to the sandbox's own setup, to see how it degrades.
    """

    def __init__(self, require_isolation: str | None = None, deny: tuple[str, ...] = ()) -> None:
        require_isolation = require_isolation or os.environ.get("VERIFIER_REQUIRE_ISOLATION") or "any"
        if require_isolation not in ("any", "strong"):
            raise bad_request("require_isolation", f"is {require_isolation!r}", "give any or strong")
        self.require_isolation = require_isolation
        self.deny = tuple(deny)
        self._templates: dict[Warm, TemplateHandle] = {}
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

        A fault that concerns one program alone takes its place, as {"error": {"kind", "message"}}.
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

    def template(self, warm: Warm | None = None) -> TemplateHandle:
        """A warm process, started at first use and again when it died; None: of the default language."""
        warm = warm or registry.find(None).usual()
        with self._lock:
            if self._owner != os.getpid():
                self._owner, self._templates = os.getpid(), {}
            found = self._templates.get(warm)
            if found is None or not found.alive:
                if found is not None:
                    found.close()
                syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
                found = self._templates[warm] = TemplateHandle(warm, self.deny)
            return found

    def _judge(self, request: Request) -> Verdict:
        rollout = Judging(request)
        zygote: ZygoteHandle | None = None
        loader = ProgramLoader(request, self._zygote)
        checker = None if request.checker is None else Checker(request, self._zygote, run_test)
        try:
            for index in request.order:
                message = rollout.late(index)
                if message is not None:
                    return rollout.verdict("time_limit_exceeded", message)
                for attempt in (1, 2):
                    if zygote is None or not zygote.open:
                        began = time.monotonic()
                        zygote, complaint = loader.load()
                        # all but compiling is not the program's time
                        rollout.starved_s += time.monotonic() - began - loader.compiled_s
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
                rollout.starved_s += result.wall_s - result.fair_s
                if checker is not None and result.status == UNCHECKED:
                    rollout.check(result, checker)
                rollout.results.append(result)
                if result.status != "accepted" and request.stop_at_first_failure:
                    break
        finally:
            if zygote is not None:
                zygote.close()
            if checker is not None:
                checker.close()
            loader.close()
        return rollout.verdict()

    def _zygote(self, warm: Warm, memory_mb: int) -> ZygoteHandle:
        try:
            zygote = self.template(warm).spawn({"memory_mb": memory_mb})
        except JudgeError:
            zygote = self.template(warm).spawn({"memory_mb": memory_mb})
        if self.require_isolation == "strong" and zygote.report["level"] != "strong":
            why = "; ".join(zygote.report.get("weak", []))
            zygote.close()
            raise JudgeError("weak_isolation", f"strong isolation is required and this host is weak: {why}")
        return zygote


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
