"""Verification by judges on other machines (`atropos verifier serve`), the least loaded one first."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

import httpx

from environments.common.endpoints import Endpoint, least_loaded
from environments.common.http_clients import is_busy, pause_s, remote_client
from environments.livecode.verification.base import Unreachable, Verdict, VerifierError
from environments.livecode.verification.judge_requests import LEAST_WAIT_S, wait_s
from environments.livecode.verification.remote import (
    NoVerdict,
    RetryVerification,
    Streak,
    TestSetMissing,
    raise_fault,
    read_verdict,
    self_test,
    tests_of,
    until_deadline,
)
from environments.livecode.verification.uploads import LargeTestSet, TestSetUploads

logger = logging.getLogger(__name__)

COOLDOWN_S = 5.0


class HttpVerifier:
    """Judges behind HTTP.

    A service that is busy, overloaded, stopping or dead is asked again, or another one is, until the deadline: a
    rollout then has no verdict, and its cause is counted in `causes`; it is never scored.

    Args:
        urls: addresses of the services.
        token: sent as a bearer token; None: VERIFIER_TOKEN, or none at all.
        concurrency: calls at the same time, over all services.
        deadline_s: longest wait for one verdict, retries included; None: by the request (`wait_s`).
    """

    def __init__(
        self, urls: Sequence[str], *, token: str | None = None, concurrency: int = 64, deadline_s: float | None = None
    ) -> None:
        if not urls:
            raise ValueError("env.verifier_urls: empty; give the address of at least one service")
        self.deadline_s = deadline_s
        self.causes: Counter[str] = Counter()
        self._services = [Endpoint(url.rstrip("/")) for url in urls]
        self._bound = asyncio.Semaphore(concurrency)
        self._streak = Streak()
        self._sets = TestSetUploads()
        token = token or os.environ.get("VERIFIER_TOKEN")
        self._http = remote_client(
            "env.verifier_urls",
            urls,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=httpx.Timeout(None, connect=10.0),  # the rest by each request's deadline
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=concurrency),
        )

    async def __aenter__(self) -> Self:
        """Asks every service once; Unreachable when none answers, VerifierError for a wrong token."""
        answers = await asyncio.gather(*(self._check(service) for service in self._services))
        if not any(answers):
            await self._http.aclose()
            urls = ", ".join(service.url for service in self._services)
            raise Unreachable(f"env.verifier_urls = {urls}: none answers. Start `atropos verifier serve` there.")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def _check(self, service: Endpoint) -> bool:
        try:
            await self._http.get(service.url + "/health", timeout=10.0)
            metrics = await self._http.get(service.url + "/metrics", timeout=10.0)
        except httpx.HTTPError as error:
            logger.warning("verifier %s does not answer (%s)", service.url, type(error).__name__)
            service.leave_alone(COOLDOWN_S)
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
        request, large = await self._sets.refer(request)
        async with self._bound:
            deadline_s = wait_s(request, self.deadline_s)
            return await until_deadline(lambda: self._ask(request, large), deadline_s, self.causes, self._streak)

    async def self_test(self) -> None:
        """Has every service that answers judge a right and a wrong program.

        Raises:
            VerifierError, VerifierUnusable: there is no verdict, or a wrong one.
        """
        for service in self._services:
            if not service.is_down:
                await self_test(partial(self._tested, service), service.url)

    async def _tested(self, service: Endpoint, request: dict[str, Any]) -> Verdict:
        ask = partial(self._post, service, request)
        return await until_deadline(ask, self.deadline_s or LEAST_WAIT_S, self.causes, Streak(3))

    async def _ask(self, request: dict[str, Any], large: LargeTestSet | None) -> Verdict:
        service = least_loaded(self._services)
        assert service is not None  # __init__ refuses an empty list
        service.running += 1
        try:
            seen = self._sets.uploads(service.url, large) if large else 0
            try:
                return await self._post(service, request)
            except TestSetMissing:
                if large is None:
                    raise
            path = f"/tests/{large.sha256}"

            async def send() -> None:
                await self._send(service, "PUT", path, content=await asyncio.to_thread(large.read))

            await self._sets.upload(service.url, large, seen, send)
            try:
                return await self._post(service, request)
            except TestSetMissing as error:
                raise RetryVerification("test_set_missing", str(error), broken=True) from None
        except RetryVerification as error:
            if error.broken:
                service.leave_alone(max(COOLDOWN_S, error.wait_s))
                if not all(other.is_down for other in self._services):
                    error.wait_s = 0.0  # another one is asked meanwhile
            raise
        finally:
            service.running -= 1

    async def _post(self, service: Endpoint, request: dict[str, Any]) -> Verdict:
        body = json.dumps(request).encode()
        headers = {"Content-Type": "application/json"}
        answer = await self._send(service, "POST", "/verify", content=body, headers=headers)
        # What is between here and the service may mix answers up: a verdict names the request that it is on.
        asked = answer.get("request") == hashlib.sha256(body).hexdigest()
        try:
            verdict = read_verdict(answer, service.url, tests_of(request) if asked else None)
        except NoVerdict as error:
            raise RetryVerification("no_verdict", str(error), broken=True) from None
        if not asked:
            reason = "a verdict on another request, or of a service of another version"
            raise RetryVerification("another_request", f"{service.url}: {reason}", broken=True)
        return verdict

    async def _send(self, service: Endpoint, method: str, path: str, **content: Any) -> dict[str, Any]:
        try:
            response = await self._http.request(method, service.url + path, **content)
            answer = response.json()
        except httpx.HTTPError as error:
            raise RetryVerification(
                "unreachable", f"{service.url}: {type(error).__name__} {error}", broken=True
            ) from error
        except (ValueError, RecursionError):
            reason = f"{service.url}: status {response.status_code}, not JSON"
            raise RetryVerification("not_json", reason, broken=True, wait_s=pause_s(response.headers, 0.0)) from None
        if response.is_success and isinstance(answer, dict):
            return answer
        fault = answer.get("error") if isinstance(answer, dict) else None
        if not isinstance(fault, dict):
            fault = {}
        kind, message = fault.get("kind", response.status_code), fault.get("message", str(answer)[:300])
        if "kind" not in fault and is_busy(response.status_code):  # a gateway's word, not the service's
            wait_s = pause_s(response.headers, 0.0)
            raise RetryVerification(str(kind), f"{service.url}: {kind}: {message}", broken=True, wait_s=wait_s)
        return raise_fault(str(kind), f"{service.url}: {message}")
