"""Where programs are judged. A fault on our side is an error here, never a verdict.

VerifierError            no verdict: a request that no judge can take, or retries that did not help
├── JudgeFault           the judge failed at this one program, as it would again
├── Unreachable          the judge cannot be reached or cannot start
└── DeadlineExceeded     no verdict in time

VerifierUnusable         no further verdict is to be had, or none to be trusted: the run ends
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

from environments.dataset.stored import TESTS, StoredTests, is_built
from environments.errors import ConfigError, LivecodeError
from environments.livecode.problems import Problem, ProblemError, TestCase
from environments.livecode.test_sets import LargeSets
from verifier_app.container import CALL_MARGIN_S
from verifier_app.judge import JudgeError
from verifier_app.judge.pool import JudgePool
from verifier_app.judge.store import TestStore

if TYPE_CHECKING:
    from environments.livecode.config import LivecodeEnvConfig

logger = logging.getLogger(__name__)

Verdict = dict[str, Any]
PERMANENT = frozenset({"bad_request", "test_set_missing", "test_set_corrupt", "weak_isolation", "closed"})
_ATTEMPTS = 5
_FIRST_PAUSE_S = 0.25


class VerifierError(LivecodeError, RuntimeError):
    """There is no verdict; the message says why."""


class Unreachable(VerifierError):
    """The judge cannot be reached, or cannot start."""


class DeadlineExceeded(VerifierError):
    """There was no verdict within the deadline."""


class JudgeFault(VerifierError):
    """The judge itself failed at this program. It would again, and it says nothing of any other program."""


class VerifierUnusable(LivecodeError, RuntimeError):
    """Every further verification would end like this one: the run ends, and the message says what to do."""


class Verifier(Protocol):
    """Judges one program. Used as an async context manager, so that nothing of it outlives the environment."""

    async def verify(self, request: dict[str, Any]) -> Verdict:
        """The verdict on a request (verifier_app.judge.verify's form); VerifierError where there is none."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@runtime_checkable
class ManyVerifier(Protocol):
    """Judges the programs of one problem in one call."""

    async def verify_many(self, requests: Sequence[dict[str, Any]]) -> list[Verdict | VerifierError]:
        """The verdicts in order; an error where there is none."""
        ...


@runtime_checkable
class SelfTested(Protocol):
    """Judges elsewhere, which may be of another version, or in a place where nothing can be judged."""

    async def self_test(self) -> None:
        """Judges known programs; VerifierError or VerifierUnusable where the verdicts are not what they must be."""
        ...


class LocalVerifier:
    """The judge on this machine: a pool of judge processes.

    Args:
        workers: judges at the same time.
        deadline_s: longest wait for one verdict, queue and retries included; None: by the request (`wait_s`).
        tests_dir: folder for test sets above 1 MiB, written once and read by the judges; None: they travel inline.
    """

    def __init__(self, *, workers: int, deadline_s: float | None = None, tests_dir: str | Path | None = None) -> None:
        self.deadline_s = deadline_s
        self.retries = 0
        self._pool = JudgePool(workers=workers, tests_dir=tests_dir)
        self._store = None if tests_dir is None else TestStore(tests_dir)
        self._sets = LargeSets()

    async def __aenter__(self) -> Self:
        await self._pool.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._pool.__aexit__(kind, error, trace)

    @property
    def busy_s(self) -> float:
        """Seconds that judges had a request, summed over the judges."""
        return self._pool.busy_s

    async def verify(self, request: dict[str, Any]) -> Verdict:
        def count(error: JudgeError) -> None:
            self.retries += 1
            logger.warning("verification is tried again: %s", error)

        request = await self._by_reference(request)
        return await with_retries(lambda: self._pool.verify(request), wait_s(request, self.deadline_s), count)

    async def _by_reference(self, request: dict[str, Any]) -> dict[str, Any]:
        store = self._store
        if store is None and isinstance(request.get("tests"), list):
            return request
        try:
            referring, large = await self._sets.refer(request)
        except ProblemError as error:
            raise VerifierError(str(error)) from error
        if large is None:
            return referring
        if store is None:
            raise VerifierError("env.tests_dir: needed for test sets that are on disk")

        async def write() -> None:
            if not store.path(large.sha256).exists():
                await asyncio.to_thread(lambda: store.put_bytes(large.sha256, large.read()))

        try:
            await self._sets.upload("", large, 0, write)
        except ProblemError as error:
            raise VerifierError(str(error)) from error
        except OSError as error:
            raise VerifierError(f"env.tests_dir = {store.folder}: cannot be written ({error.strerror})") from error
        return referring


async def with_retries(
    call: Callable[[], Awaitable[Verdict]], deadline_s: float, on_retry: Callable[[JudgeError], None]
) -> Verdict:
    """Repeats a verification that failed on our side, with growing pauses that differ between callers.

    Raises:
        JudgeFault: the judge failed at this program.
        VerifierError: a fault that repeating cannot mend, or that five tries did not mend.
        DeadlineExceeded: `deadline_s` passed.
    """
    try:
        async with asyncio.timeout(deadline_s):
            for attempt in range(_ATTEMPTS):
                try:
                    return await call()
                except JudgeError as error:
                    if error.kind == "judge_fault":
                        raise JudgeFault(str(error)) from error
                    if error.kind in PERMANENT:
                        raise VerifierError(str(error)) from error
                    if attempt == _ATTEMPTS - 1:
                        raise Unreachable(f"{_ATTEMPTS} tries, the last: {error}") from error
                    on_retry(error)
                await asyncio.sleep(_FIRST_PAUSE_S * 2**attempt * random.uniform(0.5, 1.5))
    except TimeoutError:
        raise DeadlineExceeded(f"no verdict within {deadline_s:g} s") from None
    raise AssertionError("unreachable: the last try returns or raises")


_forms: OrderedDict[int, tuple[Any, list[dict[str, str]]]] = OrderedDict()
_KEPT_FORMS = 256


def _judge_tests(problem: Problem) -> list[dict[str, str]]:
    """The tests in the judge's form: one list object for a problem's requests, by which `LargeSets` knows it again."""
    key = id(problem.tests)
    if key not in _forms:
        form = [{"input": test.input, "output": test.output} for test in problem.tests]
        _forms[key] = (problem.tests, form)  # the tests are kept with it: their id stays their own
        while len(_forms) > _KEPT_FORMS:
            _forms.popitem(last=False)
    return _forms[key][1]


LEAST_WAIT_S = 600.0
BESIDE_S = 300.0  # of a wait, beside the judging itself: a container's start, the way there and back, another try
TEST_OVERHEAD_S = 1.0  # beside a test's own limit; some 0.1 s even in gVisor
COMPILE_S = 30.0


def judging_s(tests: int, time_limit_s: float) -> float:
    """Longest fair time in which a program may still pass: every test takes its limit."""
    return tests * (time_limit_s + TEST_OVERHEAD_S) + COMPILE_S


def wait_s(request: dict[str, Any], deadline_s: float | None) -> float:
    """How long to wait for a request's verdict: `deadline_s`, or longer than a slow right program may take."""
    if deadline_s is not None:
        return deadline_s
    return max(LEAST_WAIT_S, (request.get("deadline_s") or 0.0) + BESIDE_S)


def check_deadlines(config: LivecodeEnvConfig, problems: Sequence[Problem], call_s: float | None) -> None:
    """Whether every right program gets its verdict in time, however slow.

    Args:
        call_s: after so long a call is ended where the judges are; None: never.

    Raises:
        ConfigError: a problem's tests may take longer.
    """
    longest = max(problems, key=lambda problem: len(problem.tests), default=None)
    if longest is None or config.verifier == "local":
        return
    tests = len(longest.tests)
    needed = judging_s(tests, config.time_limit_s)
    what = (
        f"problem {longest.id} has {tests} tests of env.time_limit_s = {config.time_limit_s:g}, {needed:.0f} s in all"
    )
    deadline_s = config.verifier_deadline_s
    if deadline_s is not None and deadline_s < needed:
        raise ConfigError(f"env.verifier_deadline_s = {deadline_s:g}: {what}; leave it empty, or give at least that")
    if call_s is not None and call_s < needed + CALL_MARGIN_S:
        at_least = math.ceil(needed + CALL_MARGIN_S)
        raise ConfigError(
            f"env.modal_app = {config.modal_app}: its calls end after {call_s:g} s, and {what}. Run: "
            f"VERIFIER_TIMEOUT_S={at_least} modal deploy -m verifier_app"
        )


def judge_request(
    problem: Problem,
    code: str,
    *,
    time_limit_s: float,
    memory_limit_mb: int,
    decimal_tolerance: float | None = None,
    semantics: str | None = None,
    order: list[int] | None = None,
) -> dict[str, Any]:
    """A verifier's request for one program: all tests, stop at the first that fails.

    `semantics` is a field only where it is given: a verifier of an earlier version knows none.
    """
    tests: Sequence[TestCase] = problem.tests
    return {
        "code": code,
        "fn_name": problem.fn_name,
        "tests": tests if isinstance(tests, StoredTests) else _judge_tests(problem),
        "tests_ref": None,
        "order": order,
        "time_limit_s": time_limit_s,
        "memory_limit_mb": memory_limit_mb,
        "deadline_s": judging_s(len(tests), time_limit_s),
        "stop_at_first_failure": True,
        "decimal_tolerance": decimal_tolerance,
        **({} if semantics is None else {"semantics": semantics}),
    }


class GroupVerifier:
    """Collects the programs of one group; when the last rollout has one, or has ended, all are judged in one call.

    Args:
        judge: the call; an error stands in the place of a program without a verdict.
        members: rollouts of the group. Each enters `verify` as often as it likes and ends with `leave`.
    """

    def __init__(
        self, judge: Callable[[Sequence[dict[str, Any]]], Awaitable[list[Verdict | VerifierError]]], members: int
    ) -> None:
        self._judge, self._members = judge, members
        self._waiting: list[tuple[dict[str, Any], asyncio.Future[Verdict]]] = []
        self._calls: set[asyncio.Task[None]] = set()

    async def verify(self, request: dict[str, Any]) -> Verdict:
        """The verdict on this member's program, once all members are here or gone."""
        future: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        self._call_when_complete()
        return await future

    def leave(self) -> None:
        """This member hands in nothing more."""
        self._members -= 1
        self._call_when_complete()
        if self._members == 0:  # nobody waits for a call that is still under way
            for call in self._calls:
                call.cancel()

    def _call_when_complete(self) -> None:
        waiting = [(request, future) for request, future in self._waiting if not future.done()]
        if waiting and len(waiting) >= self._members:
            self._waiting = []
            task = asyncio.create_task(self._call(waiting))
            self._calls.add(task)
            task.add_done_callback(self._calls.discard)

    async def _call(self, waiting: list[tuple[dict[str, Any], asyncio.Future[Verdict]]]) -> None:
        try:
            results: Sequence[Verdict | BaseException] = await self._judge([request for request, _ in waiting])
        except Exception as error:
            results = [error] * len(waiting)
        for (_, future), result in zip(waiting, results, strict=True):
            if future.done():
                continue
            if isinstance(result, BaseException):
                future.set_exception(result)
            else:
                future.set_result(result)


def build_verifier(config: LivecodeEnvConfig) -> Verifier:
    """The verifier that `env.verifier` names. What only one kind needs is imported only for it."""
    if config.verifier == "http":
        from environments.livecode.http_verifier import HttpVerifier

        return HttpVerifier(
            config.verifier_urls, concurrency=config.verifier_concurrency, deadline_s=config.verifier_deadline_s
        )
    if config.verifier == "modal":
        from environments.livecode.modal_verifier import ModalVerifier

        return ModalVerifier(
            app=config.modal_app,
            volume=config.modal_volume,
            environment=config.modal_environment,
            concurrency=config.verifier_concurrency,
            deadline_s=config.verifier_deadline_s,
        )
    return LocalVerifier(
        workers=config.verifier_workers,
        deadline_s=config.verifier_deadline_s,
        tests_dir=_tests_dir(config),
    )


def _tests_dir(config: LivecodeEnvConfig) -> Path:
    """Built problems bring their test sets; other large ones are written into the run's folder."""
    if config.tests_dir:
        return Path(config.tests_dir)
    problems = Path(config.problems)
    if is_built(problems):
        return (problems if problems.is_dir() else problems.parent).parent / TESTS
    return Path(config.run_dir) / "tests"
