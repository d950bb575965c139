"""Verification by judges on other machines (`python -m verifier_app serve`), the least loaded one first."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx

from environments.livecode.verifiers import PERMANENT, DeadlineExceeded, Unreachable, Verdict, VerifierError
from verifier_app.judge.protocol import STATUSES
from verifier_app.judge.store import encode_tests

logger = logging.getLogger(__name__)

INLINE_BYTES = 1 << 20  # larger test sets are uploaded once and named by their hash
COOLDOWN_S = 5.0
BACKOFF_S = (0.1, 5.0)  # first and longest pause between two tries


@dataclass
class _Service:
    url: str
    running: int = 0
    down_until: float = 0.0


class _TestSetMissing(VerifierError):
    """The service lacks the test set that the request names."""


class _TryAgain(RuntimeError):
    """This try failed on the service's side. `kind` is what is counted."""

    def __init__(self, kind: str, message: str, broken: bool) -> None:
        super().__init__(message)
        self.kind, self.broken = kind, broken


class HttpVerifier:
    """Judges behind HTTP.

    A service that is busy, overloaded, stopping or dead is asked again, or another one is, until the deadline: a
    rollout then has no verdict, and its cause is counted in `causes`; it is never scored.

    Args:
        urls: addresses of the services.
        token: sent as a bearer token; None: VERIFIER_TOKEN, or none at all.
        concurrency: calls at the same time, over all services.
        deadline_s: longest wait for one verdict, retries included.
    """

    def __init__(
        self, urls: Sequence[str], *, token: str | None = None, concurrency: int = 64, deadline_s: float = 600.0
    ) -> None:
        if not urls:
            raise ValueError("env.verifier_urls: empty; give the address of at least one service")
        self.deadline_s = deadline_s
        self.causes: Counter[str] = Counter()
        self._services = [_Service(url.rstrip("/")) for url in urls]
        self._bound = asyncio.Semaphore(concurrency)
        token = token or os.environ.get("VERIFIER_TOKEN")
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=httpx.Timeout(deadline_s, connect=10.0),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=concurrency),
        )

    async def __aenter__(self) -> Self:
        """Asks every service once; Unreachable when none answers, VerifierError for a wrong token."""
        answers = await asyncio.gather(*(self._check(service) for service in self._services))
        if not any(answers):
            await self._http.aclose()
            urls = ", ".join(service.url for service in self._services)
            raise Unreachable(f"env.verifier_urls = {urls}: none answers. Start `python -m verifier_app serve` there.")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def _check(self, service: _Service) -> bool:
        try:
            await self._http.get(service.url + "/health", timeout=10.0)
            metrics = await self._http.get(service.url + "/metrics", timeout=10.0)
        except httpx.HTTPError as error:
            logger.warning("verifier %s does not answer (%s)", service.url, type(error).__name__)
            service.down_until = time.monotonic() + COOLDOWN_S
            return False
        if metrics.status_code == 401:
            await self._http.aclose()
            raise VerifierError(f"{service.url}: wrong or missing token. Set VERIFIER_TOKEN to the service's.")
        return True

    async def verify(self, request: dict[str, Any]) -> Verdict:
        """The verdict on a request.

        Raises:
            VerifierError: a request that no service can judge.
            DeadlineExceeded: no verdict in time; the message ends with the last failure.
        """
        async with self._bound:
            last = _TryAgain("none", "no service was asked", False)
            try:
                async with asyncio.timeout(self.deadline_s):
                    request = await self._by_reference(request)
                    pause = BACKOFF_S[0]
                    while True:
                        try:
                            return await self._ask(request)
                        except _TryAgain as error:
                            last = error
                            self.causes[error.kind] += 1
                        await asyncio.sleep(pause * random.uniform(0.5, 1.5))
                        pause = min(2 * pause, BACKOFF_S[1])
            except TimeoutError:
                self.causes["deadline"] += 1
                raise DeadlineExceeded(f"no verdict within {self.deadline_s:g} s: {last}") from None

    async def _by_reference(self, request: dict[str, Any]) -> dict[str, Any]:
        tests = request.get("tests")
        if not tests or sum(len(test["input"]) + len(test["output"]) for test in tests) < INLINE_BYTES:
            return request
        data = await asyncio.to_thread(encode_tests, tests)
        sha = hashlib.sha256(data).hexdigest()
        return request | {"tests": None, "tests_ref": {"sha256": sha, "count": len(tests)}, "_upload": data}

    def _least_loaded(self) -> _Service:
        now = time.monotonic()
        return min(self._services, key=lambda service: (service.down_until > now, service.running))

    async def _ask(self, request: dict[str, Any]) -> Verdict:
        service = self._least_loaded()
        service.running += 1
        upload = request.get("_upload")
        body = {name: value for name, value in request.items() if name != "_upload"}
        try:
            try:
                return await self._post(service, body)
            except _TestSetMissing:
                if upload is None:
                    raise
            await self._send(service, "PUT", f"/tests/{body['tests_ref']['sha256']}", content=upload)
            return await self._post(service, body)
        except _TryAgain as error:
            if error.broken:
                service.down_until = time.monotonic() + COOLDOWN_S
            raise
        finally:
            service.running -= 1

    async def _post(self, service: _Service, body: dict[str, Any]) -> Verdict:
        answer = await self._send(service, "POST", "/verify", json=body)
        verdict = answer.get("verdict")
        if not isinstance(verdict, dict) or verdict.get("status") not in STATUSES:
            raise VerifierError(f"{service.url}: an answer without a verdict; is it a service of this version?")
        return verdict

    async def _send(self, service: _Service, method: str, path: str, **content: Any) -> dict[str, Any]:
        try:
            response = await self._http.request(method, service.url + path, **content)
            answer = response.json()
        except httpx.HTTPError as error:
            raise _TryAgain("unreachable", f"{service.url}: {type(error).__name__} {error}", True) from error
        except ValueError:
            raise _TryAgain("not_json", f"{service.url}: status {response.status_code}, not JSON", True) from None
        if response.is_success and isinstance(answer, dict):
            return answer
        fault = (answer.get("error") if isinstance(answer, dict) else None) or {}
        kind, message = str(fault.get("kind", response.status_code)), f"{service.url}: {fault.get('message', answer)}"
        if kind == "test_set_missing":
            raise _TestSetMissing(f"{kind}: {message}")
        if kind in PERMANENT - {"closed"} or kind in ("unauthorized", "too_large"):
            raise VerifierError(f"{kind}: {message}")
        raise _TryAgain(kind, f"{kind}: {message}", kind not in ("busy", "host_overloaded", "judge_died"))
