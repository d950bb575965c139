"""What judges on other machines have in common: tries until a deadline, and answers that are data."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeVar

from environments.livecode.verifiers import PERMANENT, DeadlineExceeded, JudgeFault, Verdict, VerifierError
from verifier_app.judge.protocol import STATUSES

T = TypeVar("T")

BACKOFF_S = (0.1, 5.0)  # first and longest pause between two tries


class TryAgain(RuntimeError):
    """This try failed on the service's side.

    Args:
        kind: what is counted.
        broken: better ask another service.
        wait_s: for so long the service wants to be left alone.
    """

    def __init__(self, kind: str, message: str, *, broken: bool = False, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.kind, self.broken, self.wait_s = kind, broken, wait_s


class NoVerdict(VerifierError):
    """The service answered, and not with a verdict on the request."""


class TestSetMissing(VerifierError):
    """The service lacks the test set that the request names."""

    __test__ = False  # not a pytest class


async def until_deadline(attempt: Callable[[], Awaitable[T]], deadline_s: float, causes: Counter[str]) -> T:
    """The first result of `attempt`, with growing pauses that differ between callers after each TryAgain.

    Raises:
        DeadlineExceeded: none in time; the message ends with the last failure. Counted as "deadline".
    """
    last = TryAgain("none", "no service was asked")
    try:
        async with asyncio.timeout(deadline_s):
            pause = BACKOFF_S[0]
            while True:
                try:
                    return await attempt()
                except TryAgain as error:
                    last = error
                    causes[error.kind] += 1
                except JudgeFault:
                    causes["judge_fault"] += 1
                    raise
                await asyncio.sleep(max(pause * random.uniform(0.5, 1.5), last.wait_s))
                pause = min(2 * pause, BACKOFF_S[1])
    except TimeoutError:
        causes["deadline"] += 1
        raise DeadlineExceeded(f"no verdict within {deadline_s:g} s: {last}") from None


def read_verdict(answer: Any, where: str) -> Verdict:
    """The verdict in {"verdict": ...}; {"error": {"kind", "message"}} and anything else raise.

    Raises:
        TestSetMissing, TryAgain, VerifierError: by the error's kind; an answer of another form is NoVerdict.
    """
    fault = answer.get("error") if isinstance(answer, dict) else None
    if isinstance(fault, dict):
        raise_fault(str(fault.get("kind")), f"{where}: {fault.get('message')}")
    verdict = answer.get("verdict") if isinstance(answer, dict) else None
    if not isinstance(verdict, dict) or not _is_verdict(verdict):
        raise NoVerdict(f"{where}: an answer without a verdict; is it of this version?")
    return verdict


def _is_verdict(verdict: dict[str, Any]) -> bool:
    """Whether status, failed test and the tests' results are what a judge says; what is read later must be there."""
    status, failed, tests = verdict.get("status"), verdict.get("failed_test"), verdict.get("tests", [])
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
    if kind in PERMANENT - {"closed"} or kind in ("unauthorized", "too_large"):
        raise VerifierError(f"{kind}: {message}")
    raise TryAgain(kind, f"{kind}: {message}", broken=kind not in ("busy", "host_overloaded", "judge_died"))
