"""What judges on other machines have in common: tries until a deadline, and answers that are data."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeGuard, TypeVar

from environments.common.retry import Failure, Retry, RetryLater
from environments.livecode.verification.base import (
    DeadlineExceeded,
    JudgeFault,
    Verdict,
    VerifierError,
    VerifierUnusable,
)
from environments.livecode.verification.local import PERMANENT
from verifier_app.judge.default_limits import TIME_LIMIT_S
from verifier_app.judge.protocol import STATUSES
from verifier_app.judge.refusals import ALL_KINDS

T = TypeVar("T")

logger = logging.getLogger(__name__)

BACKOFF_S = (0.1, 5.0)  # first and longest pause between two tries
SANDBOXES_IN_A_ROW = 12  # that did not start, and no verdict between them: the place cannot judge
# faults that every further request meets too
UNUSABLE = frozenset({"unauthorized", "weak_isolation", "language_missing"})


class RetryVerification(RetryLater):
    """This try failed on the service's side.

    Args:
        kind: what is counted.
        broken: better ask another service.
        wait_s: for so long the service wants to be left alone.
    """

    def __init__(self, kind: str, message: str, *, broken: bool = False, wait_s: float = 0.0) -> None:
        super().__init__(message, wait_s=wait_s)
        self.kind, self.broken = kind, broken


class NoVerdict(VerifierError):
    """The service answered, and not with a verdict on the request."""


class TestSetMissing(VerifierError):
    """The service lacks the test set that the request names."""

    __test__ = False  # not a pytest class


class Streak:
    """Sandboxes that failed in a row, over all requests of one verifier."""

    def __init__(self, limit: int = SANDBOXES_IN_A_ROW) -> None:
        self.limit, self.length = limit, 0

    def judged(self) -> None:
        """There was a verdict."""
        self.length = 0

    def failed(self, error: RetryVerification) -> None:
        """Raises VerifierUnusable when it was one too many."""
        if error.kind != "sandbox_failed":
            return
        self.length += 1
        if self.length >= self.limit:
            raise VerifierUnusable(f"{self.length} sandboxes in a row failed, the last: {error}")


async def until_deadline(
    attempt: Callable[[], Awaitable[T]], deadline_s: float, causes: Counter[str], streak: Streak
) -> T:
    """The first result of `attempt`, tried again with growing pauses after each RetryVerification.

    Raises:
        DeadlineExceeded: none in time; the message ends with the last failure. Counted as "deadline".
        VerifierUnusable: too many sandboxes failed.
    """
    last: str | None = None
    asked, began = 0, time.monotonic()

    async def one() -> T:
        nonlocal last, asked, began
        asked, began = asked + 1, time.monotonic()
        try:
            result = await attempt()
        except RetryVerification as error:
            last = str(error)
            causes[error.kind] += 1
            streak.failed(error)
            raise
        except JudgeFault:
            causes["judge_fault"] += 1
            raise
        streak.judged()
        return result

    try:
        async with asyncio.timeout(deadline_s):
            return await Retry(*BACKOFF_S, jitter=(0.5, 1.5), on_retry=_note).call_async(one)
    except TimeoutError:
        causes["deadline"] += 1
        waited = f"call {asked} had no answer for {time.monotonic() - began:.1f} s"
        raise DeadlineExceeded(
            f"no verdict within {deadline_s:g} s: {f'{last}; {waited}' if last else waited}"
        ) from None


def _note(failure: Failure) -> None:
    """At this level, since they are counted by their cause: a busy service refuses thousands."""
    logger.debug("%s; trying again in %.1f s", failure.error, failure.pause_s)


def tests_of(request: dict[str, Any]) -> int:
    """The number of tests that a request names."""
    return len(request["tests"]) if request.get("tests") is not None else int(request["tests_ref"]["count"])


def read_verdict(answer: Any, where: str, tests: int | None) -> Verdict:
    """The verdict in {"verdict": ...} on `tests` tests; {"error": {"kind", "message"}} and anything else raise.

    tests: None where the answer does not name its request.

    Raises:
        TestSetMissing, RetryVerification, VerifierError: by the error's kind; an answer of another form is NoVerdict.
        VerifierUnusable: no request will be judged there.
    """
    fault = answer.get("error") if isinstance(answer, dict) else None
    if isinstance(fault, dict):
        raise_fault(str(fault.get("kind")), f"{where}: {fault.get('message')}")
    verdict = answer.get("verdict") if isinstance(answer, dict) else None
    if not isinstance(verdict, dict) or not _is_verdict(verdict):
        raise NoVerdict(f"{where}: an answer without a verdict; is it of this version?")
    if tests is not None and verdict["total"] != tests:
        raise NoVerdict(f"{where}: a verdict on {verdict['total']} tests, and the request has {tests}")
    return verdict


def _are_attempts(attempts: Any) -> bool:
    """Whether it is what a judge counts of the calls that were refused; None where it cannot."""
    if not isinstance(attempts, dict):
        return attempts is None
    return attempts.keys() <= set(ALL_KINDS) and all(type(count) is int and count > 0 for count in attempts.values())


def _is_verdict(verdict: dict[str, Any]) -> TypeGuard[Verdict]:
    """Whether status, failed test and the tests' results are what a judge says; what is read later must be there."""
    status, failed, tests = verdict.get("status"), verdict.get("failed_test"), verdict.get("tests", [])
    if not _are_attempts(verdict.get("attempts")):
        return False
    passed, total = verdict.get("passed"), verdict.get("total")
    if not isinstance(status, str) or status not in STATUSES:
        return False
    if type(passed) is not int or type(total) is not int or not 0 <= passed <= total:
        return False
    if status == "accepted" and passed != total:
        return False
    if failed is not None and (type(failed) is not int or status == "accepted"):
        return False
    if failed is not None and not 0 <= failed < total:
        return False
    return isinstance(tests, list) and all(
        isinstance(test, dict)
        and type(test.get("index")) is int
        and test.get("status") in STATUSES
        and isinstance(test.get("cpu_s"), int | float)
        for test in tests
    )


def raise_fault(kind: str, message: str) -> NoReturn:
    """Raises what a judge's fault means to its caller: upload, give up, or try again."""
    if kind == "test_set_missing":
        raise TestSetMissing(f"{kind}: {message}")
    if kind == "judge_fault":
        raise JudgeFault(f"{kind}: {message}")
    if kind in UNUSABLE:
        raise VerifierUnusable(f"{kind}: {message}")
    if kind in PERMANENT - {"closed"} or kind in ("too_large", "deadline_too_short"):
        raise VerifierError(f"{kind}: {message}")
    raise RetryVerification(
        kind, f"{kind}: {message}", broken=kind not in ("busy", "host_overloaded", "judge_died", "out_of_time")
    )


SUM = "print(sum(map(int, input().split())))"
KNOWN = [  # program, status, passed, failed test
    ("right", SUM, ("accepted", 2, None)),
    ("wrong", "print(3)", ("wrong_answer", 1, 1)),
]


async def self_test(judge: Callable[[dict[str, Any]], Awaitable[Verdict]], where: str) -> None:
    """Judges a right and a wrong program.

    Raises:
        VerifierUnusable: the verdict is not what it must be.
        VerifierError: there is none.
    """
    tests = [{"input": "1 2\n", "output": "3\n"}, {"input": "5 6\n", "output": "11\n"}]
    for name, code, expected in KNOWN:
        request = {"code": code, "fn_name": None, "tests": tests, "time_limit_s": TIME_LIMIT_S, "memory_limit_mb": 1024}
        verdict = await judge(request)
        found = verdict["status"], verdict["passed"], verdict["failed_test"]
        if found != expected:
            raise VerifierUnusable(
                f"{where}: the self-test's {name} program came back as {found[0]} with {found[1]} of 2 tests passed "
                f"({verdict.get('message')}), not as {expected[0]} with {expected[1]}: do not train on its verdicts"
            )
