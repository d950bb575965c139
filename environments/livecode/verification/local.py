"""The judge on this machine: a pool of judge processes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from environments.common.retry import Failure, Retry, RetryLater
from environments.livecode.problems.problem import ProblemError
from environments.livecode.verification.base import (
    DeadlineExceeded,
    JudgeFault,
    Unreachable,
    Verdict,
    VerifierError,
    VerifierUnusable,
)
from environments.livecode.verification.judge_requests import wait_s
from environments.livecode.verification.uploads import TestSetUploads
from verifier_app.judge import JudgeError
from verifier_app.judge.pool import JudgePool
from verifier_app.judge.store import TestStore

logger = logging.getLogger(__name__)

PERMANENT = frozenset(
    {
        *("bad_request", "language_missing", "checker_failed", "test_set_missing", "test_set_corrupt"),
        *("weak_isolation", "closed"),
    }
)
_ATTEMPTS = 5
_FIRST_PAUSE_S = 0.25


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
        self._sets = TestSetUploads()

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
        VerifierUnusable: this machine lacks the program's language.
        VerifierError: a fault that retries cannot fix, or that five tries did not fix.
        DeadlineExceeded: `deadline_s` passed.
    """

    async def attempt() -> Verdict:
        try:
            return await call()
        except JudgeError as error:
            if error.kind == "judge_fault":
                raise JudgeFault(str(error)) from error
            if error.kind == "language_missing":
                raise VerifierUnusable(str(error)) from error
            if error.kind in PERMANENT:
                raise VerifierError(str(error)) from error
            raise RetryLater(str(error)) from error

    def failed(failure: Failure) -> None:
        if isinstance(failure.error.__cause__, JudgeError):
            on_retry(failure.error.__cause__)

    tries = Retry(
        _FIRST_PAUSE_S,
        8 * _FIRST_PAUSE_S,
        jitter=(0.5, 1.5),
        give_up=lambda failure: failure.tries >= _ATTEMPTS,
        on_retry=failed,
    )
    try:
        async with asyncio.timeout(deadline_s):
            return await tries.call_async(attempt)
    except RetryLater as error:
        raise Unreachable(f"{error.tries} tries, the last: {error}") from error
    except TimeoutError:
        raise DeadlineExceeded(f"no verdict within {deadline_s:g} s") from None
