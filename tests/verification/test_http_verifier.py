"""The environment's client of the service: a service in trouble costs time and never a wrong score."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from environments.livecode.config import LivecodeEnvConfig
from environments.livecode.verification import remote, uploads
from environments.livecode.verification.base import DeadlineExceeded, Unreachable, VerifierError, VerifierUnusable
from environments.livecode.verification.factory import build_verifier
from environments.livecode.verification.http import HttpVerifier
from tests.served import Served
from tests.verification.conftest import TOKEN, Service, Start

ACCEPTED = {"status": "accepted", "passed": 1, "total": 1}
REQUEST: dict[str, Any] = {"code": "print(int(input()) + 1)", "tests": [{"input": "1", "output": "2"}]}


@pytest.fixture(autouse=True)
def _quick_and_with_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "BACKOFF_S", (0.01, 0.05))
    monkeypatch.setenv("VERIFIER_TOKEN", TOKEN)


class Scripted:
    """A service that answers as told, then accepts everything."""

    def __init__(self, *answers: tuple[int, Any]) -> None:
        self.answers, self.calls = list(answers), 0

    async def _verify(self, request: Request) -> Response:
        self.calls += 1
        on = hashlib.sha256(await request.body()).hexdigest()
        status, content = self.answers.pop(0) if self.answers else (200, {"verdict": ACCEPTED, "request": on})
        return JSONResponse(content, status) if not isinstance(content, str) else Response(content, status)

    async def _fine(self, _: Request) -> Response:
        return Response()

    def app(self) -> Starlette:
        routes = [Route("/verify", self._verify, methods=["POST"]), Route("/health", self._fine)]
        return Starlette(routes=[*routes, Route("/metrics", self._fine)])


def fault(kind: str) -> dict[str, Any]:
    return {"error": {"kind": kind, "message": "scripted"}}


async def test_a_verdict_comes_from_the_real_service(service: Service) -> None:
    config = LivecodeEnvConfig(verifier="http", verifier_urls=[service.url])
    async with build_verifier(config) as verifier:
        right, wrong = await asyncio.gather(verifier.verify(REQUEST), verifier.verify({**REQUEST, "code": "print(1)"}))
    assert (right["status"], wrong["status"]) == ("accepted", "wrong_answer")


async def test_a_large_test_set_is_uploaded_once(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "INLINE_BYTES", 1000)
    tests = [{"input": f"{n}\n" + " " * 500, "output": str(n + 1)} for n in range(5)]
    sent: list[str] = []
    async with HttpVerifier([service.url], deadline_s=30) as verifier:
        whole = verifier._http.request

        async def noted(method: str, url: str, **content: Any) -> Any:
            sent.append(method)
            return await whole(method, url, **content)

        monkeypatch.setattr(verifier._http, "request", noted)
        for _ in range(3):
            assert (await verifier.verify({**REQUEST, "tests": tests}))["passed"] == 5
    assert sent == ["POST", "PUT", "POST", "POST", "POST"]


async def test_busy_overloaded_and_broken_answers_are_tried_again_and_counted_by_cause() -> None:
    script = Scripted(
        (429, fault("busy")), (503, fault("host_overloaded")), (500, fault("judge_died")), (502, "<html>"), (503, {})
    )
    served = Served(script.app())
    try:
        async with HttpVerifier([served.url], deadline_s=30) as verifier:
            assert (await verifier.verify(REQUEST))["status"] == "accepted"
    finally:
        served.stop()
    assert script.calls == 6
    assert verifier.causes == {"busy": 1, "host_overloaded": 1, "judge_died": 1, "not_json": 1, "503": 1}


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("bad_request", VerifierError),
        ("test_set_corrupt", VerifierError),
        ("too_large", VerifierError),
        ("language_missing", VerifierUnusable),
        ("weak_isolation", VerifierUnusable),  # so would every other request end: the run does
        ("unauthorized", VerifierUnusable),
    ],
)
async def test_what_another_try_cannot_mend_is_an_error_at_once(kind: str, error: type[Exception]) -> None:
    script = Scripted((400, fault(kind)))
    served = Served(script.app())
    try:
        async with HttpVerifier([served.url], deadline_s=30) as verifier:
            with pytest.raises(error, match=f"{kind}: {served.url}: scripted"):
                await verifier.verify(REQUEST)
    finally:
        served.stop()
    assert script.calls == 1


FAILED = {"status": "wrong_answer", "passed": 1, "total": 2, "failed_test": 1}


@pytest.mark.parametrize(
    "answer",
    [
        *({}, {"verdict": None}, {"verdict": {"status": "fine"}}, {"verdict": ["accepted"]}),
        *({"verdict": {"status": ["accepted"]}}, {"verdict": ACCEPTED | {"failed_test": 0}}),
        *({"verdict": FAILED | {"failed_test": 2}}, {"verdict": FAILED | {"tests": [{"index": 0}]}}),
        *({"verdict": FAILED | {"total": None}}, {"verdict": FAILED | {"total": "5"}}),
        *({"verdict": ACCEPTED | {"passed": 0, "total": 9}}, {"error": "overloaded"}),
        *({"verdict": ACCEPTED | {"attempts": tried}} for tried in ({"a" * 99: 1}, {"sockets": "3"}, ["sockets"])),
    ],
)
async def test_an_answer_that_is_no_verdict_is_asked_for_again_and_never_a_score(answer: dict[str, Any]) -> None:
    script = Scripted((200, answer), (503, answer))
    served = Served(script.app())
    try:
        async with HttpVerifier([served.url], deadline_s=30) as verifier:
            assert await verifier.verify(REQUEST) == ACCEPTED
    finally:
        served.stop()
    assert script.calls == 3
    assert verifier.causes["no_verdict"] == 1


async def test_a_verdict_on_another_request_is_never_a_score() -> None:
    # Mixed up on the way, or a service of a version that does not say what it judged.
    others = [{"verdict": FAILED, "request": hashlib.sha256(b"another").hexdigest()}, {"verdict": FAILED}]
    script = Scripted(*((200, other) for other in others))
    served = Served(script.app())
    try:
        async with HttpVerifier([served.url], deadline_s=30) as verifier:
            assert await verifier.verify(REQUEST) == ACCEPTED
    finally:
        served.stop()
    assert verifier.causes == {"another_request": 2}


async def test_a_service_that_stays_away_is_no_verdict_and_no_score() -> None:
    script = Scripted(*[(503, fault("closed"))] * 1000)
    served = Served(script.app())
    try:
        async with HttpVerifier([served.url], deadline_s=0.5) as verifier:
            with pytest.raises(DeadlineExceeded, match=r"no verdict within 0\.5 s: closed"):
                await verifier.verify(REQUEST)
    finally:
        served.stop()
    assert verifier.causes["deadline"] == 1
    assert script.calls - verifier.causes["closed"] in (0, 1), "the deadline may cut the last call short"
    assert verifier.causes["closed"] >= 1


async def test_a_service_that_dies_costs_no_verdict(start: Start) -> None:
    dying, living = start(), start()
    slow = {**REQUEST, "code": "import time; time.sleep(1); print(int(input()) + 1)"}
    async with HttpVerifier([dying.url, living.url], deadline_s=60) as verifier:
        calls = [asyncio.create_task(verifier.verify(slow)) for _ in range(4)]
        await asyncio.sleep(0.5)
        dying.process.kill()
        verdicts = await asyncio.gather(*calls)
    assert [verdict["status"] for verdict in verdicts] == ["accepted"] * 4
    assert verifier.causes["unreachable"] >= 1


async def test_no_more_calls_at_once_than_allowed_and_the_least_loaded_service_first() -> None:
    running: dict[str, int] = {"a": 0, "b": 0}
    most: dict[str, int] = {"a": 0, "b": 0}

    def service(name: str) -> Served:
        async def verify(request: Request) -> Response:
            on = hashlib.sha256(await request.body()).hexdigest()
            running[name] += 1
            most[name] = max(most[name], running[name])
            await asyncio.sleep(0.1)
            running[name] -= 1
            return JSONResponse({"verdict": ACCEPTED, "request": on})

        async def fine(_: Request) -> Response:
            return Response()

        return Served(Starlette(routes=[Route("/verify", verify, methods=["POST"]), Route("/health", fine),
                                        Route("/metrics", fine)]))  # fmt: skip

    servers = [service(name) for name in running]
    try:
        async with HttpVerifier([served.url for served in servers], concurrency=6, deadline_s=30) as verifier:
            await asyncio.gather(*(verifier.verify(REQUEST) for _ in range(30)))
    finally:
        for served in servers:
            served.stop()
    assert most == {"a": 3, "b": 3}


async def test_what_is_wrong_at_the_start_is_said_at_the_start(service: Service) -> None:
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:9: none answers\. Start `atropos verifier serve`"):
        await HttpVerifier(["http://127.0.0.1:9"]).__aenter__()
    with pytest.raises(VerifierError, match=r"wrong or missing token\. Set VERIFIER_TOKEN"):
        await HttpVerifier([service.url], token="not this one").__aenter__()
    with pytest.raises(ValueError, match=r"env\.verifier_urls: empty"):
        HttpVerifier([])
