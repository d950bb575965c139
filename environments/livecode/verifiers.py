"""Where programs are judged. A fault on our side is an error here, never a verdict.

VerifierError            no verdict: a request that no judge can take, or retries that did not help
├── Unreachable          the judge cannot be reached or cannot start
└── DeadlineExceeded     no verdict in time
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

from environments.livecode.problems import Problem
from verifier_app.judge import JudgeError
from verifier_app.judge.pool import JudgePool

logger = logging.getLogger(__name__)

Verdict = dict[str, Any]
PERMANENT = frozenset({"bad_request", "test_set_missing", "test_set_corrupt", "weak_isolation", "closed"})
_ATTEMPTS = 5
_FIRST_PAUSE_S = 0.25


class VerifierError(RuntimeError):
    """There is no verdict; the message says why."""


class Unreachable(VerifierError):
    """The judge cannot be reached, or cannot start."""


class DeadlineExceeded(VerifierError):
    """There was no verdict within the deadline."""


class Verifier(Protocol):
    """Judges one program. Used as an async context manager, so that nothing of it outlives the environment."""

    async def verify(self, request: dict[str, Any]) -> Verdict:
        """The verdict on a request (verifier_app.judge.verify's form); VerifierError where there is none."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class LocalVerifier:
    """The judge on this machine: a pool of judge processes.

    Args:
        workers: judges at the same time.
        deadline_s: longest wait for one verdict, queue and retries included.
    """

    def __init__(self, *, workers: int, deadline_s: float = 600.0) -> None:
        self.deadline_s = deadline_s
        self.retries = 0
        self._pool = JudgePool(workers=workers)

    async def __aenter__(self) -> Self:
        await self._pool.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._pool.__aexit__(kind, error, trace)

    async def verify(self, request: dict[str, Any]) -> Verdict:
        def count(error: JudgeError) -> None:
            self.retries += 1
            logger.warning("verification is tried again: %s", error)

        return await with_retries(lambda: self._pool.verify(request), self.deadline_s, count)


async def with_retries(
    call: Callable[[], Awaitable[Verdict]], deadline_s: float, on_retry: Callable[[JudgeError], None]
) -> Verdict:
    """Repeats a verification that failed on our side, with growing pauses that differ between callers.

    Raises:
        VerifierError: a fault that repeating cannot mend, or that five tries did not mend.
        DeadlineExceeded: `deadline_s` passed.
    """
    try:
        async with asyncio.timeout(deadline_s):
            for attempt in range(_ATTEMPTS):
                try:
                    return await call()
                except JudgeError as error:
                    if error.kind in PERMANENT:
                        raise VerifierError(str(error)) from error
                    if attempt == _ATTEMPTS - 1:
                        raise Unreachable(f"{_ATTEMPTS} tries, the last: {error}") from error
                    on_retry(error)
                await asyncio.sleep(_FIRST_PAUSE_S * 2**attempt * random.uniform(0.5, 1.5))
    except TimeoutError:
        raise DeadlineExceeded(f"no verdict within {deadline_s:g} s") from None
    raise AssertionError("unreachable: the last try returns or raises")


def judge_request(
    problem: Problem, code: str, *, time_limit_s: float, memory_limit_mb: int, order: list[int] | None = None
) -> dict[str, Any]:
    """The judge's request for one program: all tests inline, stop at the first that fails."""
    return {
        "code": code,
        "fn_name": problem.fn_name,
        "tests": [{"input": test.input, "output": test.output} for test in problem.tests],
        "tests_ref": None,
        "order": order,
        "time_limit_s": time_limit_s,
        "memory_limit_mb": memory_limit_mb,
        "deadline_s": None,
        "stop_at_first_failure": True,
    }


def build_verifier(
    kind: str, *, workers: int, deadline_s: float, urls: Sequence[str] = (), concurrency: int = 64
) -> Verifier:
    """The verifier that `env.verifier` names."""

    def http() -> Verifier:
        from environments.livecode.http_verifier import HttpVerifier

        return HttpVerifier(urls, concurrency=concurrency, deadline_s=deadline_s)

    makers: dict[str, Callable[[], Verifier]] = {
        "local": lambda: LocalVerifier(workers=workers, deadline_s=deadline_s),
        "http": http,
    }
    if kind not in makers:
        raise ValueError(f"env.verifier = {kind!r}: unknown. Known: {', '.join(makers)}.")
    return makers[kind]()
