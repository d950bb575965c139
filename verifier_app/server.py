"""The judge as an HTTP service, for your own machines.

POST /verify        a request of verifier_app.judge -> {"verdict": ..., "request": sha256 of the body that it is on}
PUT /tests/SHA256   a test set's canonical bytes, once; requests then name it by tests_ref
GET /health         200, or 503 while it drains
GET /metrics        Prometheus' text format

A fault that is not the program's is {"error": {"kind", "message"}} with a status of 400 and above, never a verdict.
Every route but /health wants the token, where there is one.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import math
import os
import time
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from verifier_app.connections import MAX_HEADER_BYTES, BoundedH11
from verifier_app.judge import JudgeError
from verifier_app.judge.pool import QUEUE_PER_WORKER, JudgePool
from verifier_app.judge.store import TestStore
from verifier_app.settings import ServerSettings

STATUS = {
    "bad_request": 400,
    "unauthorized": 401,
    "test_set_missing": 404,
    "too_slow": 408,
    "too_large": 413,
    "busy": 429,
    "test_set_corrupt": 500,
    "weak_isolation": 500,
    "language_missing": 500,
    "checker_failed": 500,
    "judge_died": 500,
    "host_overloaded": 503,
    "sandbox_failed": 503,
    "closed": 503,
}
RETRY_AFTER_S = 1


class _Answer(JSONResponse):
    """JSON in ASCII: whatever a program or a caller put into a text can be sent."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, separators=(",", ":")).encode("ascii")


class Service:
    """The routes over one pool of judges."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        workers = settings.workers or len(os.sched_getaffinity(0))
        self.room = workers + (QUEUE_PER_WORKER * workers if settings.queue is None else settings.queue)
        self.pool = JudgePool(
            workers=workers,
            queue=self.room - workers,
            tests_dir=settings.tests_dir,
            require_isolation=settings.require_isolation,
        )
        self.store = TestStore(settings.tests_dir) if settings.tests_dir else None
        self.taken = 0
        self.arriving = 0
        """Bytes of bodies that are being read; together they may take what a full room's bodies would."""
        self.draining = False
        self.registry = CollectorRegistry()
        self.verdicts = Counter("verifier_verdicts", "Verdicts by status.", ["status"], registry=self.registry)
        self.faults = Counter("verifier_faults", "Requests without a verdict.", ["kind"], registry=self.registry)
        self.seconds = Histogram(
            "verifier_seconds", "Seconds from request to verdict.", registry=self.registry,
            buckets=(0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300),
        )  # fmt: skip
        Gauge("verifier_rollouts", "Running and waiting rollouts.", registry=self.registry).set_function(
            lambda: self.taken
        )
        Gauge("verifier_room", "Rollouts that may run or wait.", registry=self.registry).set(self.room)

    def app(self) -> Starlette:
        """The ASGI app; its lifespan is the pool's."""

        @contextlib.asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            async with self.pool:
                yield

        return Starlette(
            lifespan=lifespan,
            exception_handlers={JudgeError: self.error},  # type: ignore[dict-item]
            routes=[
                Route("/verify", self.verify, methods=["POST"]),
                Route("/tests/{sha}", self.put_tests, methods=["PUT"]),
                Route("/health", self.health),
                Route("/metrics", self.metrics),
            ],
        )

    async def error(self, _: Request, error: JudgeError) -> Response:
        """What went wrong, by kind."""
        self.faults.labels(error.kind).inc()
        status = STATUS.get(error.kind, 500)
        headers = {"Retry-After": str(RETRY_AFTER_S)} if status in (429, 503) else {}
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return _Answer({"error": {"kind": error.kind, "message": error.message}}, status, headers)

    def _authorize(self, request: Request) -> None:
        token = self.settings.token
        if token is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        wanted = token.get_secret_value().encode()
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), wanted):
            raise JudgeError("unauthorized", "send the service's token as `Authorization: Bearer TOKEN`")

    async def _body(self, request: Request) -> bytes:
        """The whole body, read within a time and before it takes a place among the rollouts."""
        try:
            async with asyncio.timeout(self.settings.body_s):
                return await self._read(request)
        except TimeoutError:
            raise JudgeError(
                "too_slow", f"body: not complete after {self.settings.body_s:g} s (VERIFIER_BODY_S): send it faster"
            ) from None
        except ClientDisconnect:
            raise JudgeError("closed", "the caller hung up") from None

    async def _read(self, request: Request) -> bytes:
        limit = self.settings.max_body_mb << 20
        error = JudgeError("too_large", f"body: longer than {self.settings.max_body_mb} MiB (VERIFIER_MAX_BODY_MB)")
        announced = request.headers.get("content-length") or "0"
        if len(announced) > 18 or int(announced) > limit:
            raise error
        pieces, size = [], 0
        try:
            async for piece in request.stream():
                size += len(piece)
                self.arriving += len(piece)
                if size > limit:
                    raise error
                if self.arriving > self.room * limit:
                    raise JudgeError("busy", "more bodies are arriving than may be judged or wait: try again")
                pieces.append(piece)
            return b"".join(pieces)
        finally:
            self.arriving -= size

    async def verify(self, request: Request) -> Response:
        """One rollout. A caller that hangs up ends its judging."""
        self._authorize(request)
        self._take(0)
        data = await self._body(request)
        self._take(1)
        try:
            try:
                wanted = await asyncio.to_thread(json.loads, data)
            except (ValueError, RecursionError) as error:
                raise JudgeError("bad_request", f"body: is not JSON ({error}); send a JSON object") from None
            if not isinstance(wanted, dict):
                raise JudgeError("bad_request", f"request: is {type(wanted).__name__}; send a JSON object")
            started = time.monotonic()
            verdict = await _while_connected(request, self.pool.verify(wanted))
            self.seconds.observe(time.monotonic() - started)
            self.verdicts.labels(verdict["status"]).inc()
            return _Answer({"verdict": verdict, "request": hashlib.sha256(data).hexdigest()})
        finally:
            self.taken -= 1

    def _take(self, places: int) -> None:
        """Takes so many places for a rollout, none to ask whether there is one; JudgeError where there is none."""
        if self.draining:
            raise JudgeError("closed", "the service is stopping: ask another one")
        if self.taken >= self.room:
            raise JudgeError("busy", f"{self.taken} rollouts are running or waiting: try again")
        self.taken += places

    async def put_tests(self, request: Request) -> Response:
        """Stores a test set under its hash."""
        self._authorize(request)
        if self.store is None:
            raise JudgeError("bad_request", "tests: this service has no store: start it with VERIFIER_TESTS_DIR")
        data, sha = await self._body(request), request.path_params["sha"]
        store = self.store

        def keep() -> dict[str, Any]:
            found = hashlib.sha256(data).hexdigest()
            if found != sha:
                raise JudgeError("bad_request", f"tests: the body's sha256 is {found}, the address says {sha[:64]}")
            reference = store.put(json.loads(data))
            if reference["sha256"] != sha:
                raise JudgeError("bad_request", "tests: not in canonical form (see verifier_app.judge.store)")
            return reference

        try:
            return _Answer({"tests_ref": await asyncio.to_thread(keep)}, 201)
        except (ValueError, RecursionError):
            raise JudgeError("bad_request", "tests: is not JSON; send a list of {input, output}") from None
        except OSError as error:
            raise JudgeError("sandbox_failed", f"{store.folder}: cannot be written ({error.strerror})") from None

    async def health(self, _: Request) -> Response:
        """Whether it takes requests."""
        return JSONResponse({"status": "draining" if self.draining else "ok"}, 503 if self.draining else 200)

    async def metrics(self, request: Request) -> Response:
        """Counters for Prometheus."""
        self._authorize(request)
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)


async def _while_connected(request: Request, work: Any) -> Any:
    """The result of `work`, which is cancelled when the caller hangs up."""
    judging = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(request.receive())  # the body was read: the next message is the disconnect
    try:
        await asyncio.wait({judging, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not judging.done():
            judging.cancel()
            await asyncio.gather(judging, return_exceptions=True)
            raise JudgeError("closed", "the caller hung up")
        return judging.result()
    finally:
        gone.cancel()
        judging.cancel()


class _Server(uvicorn.Server):
    """Says that it drains from the moment it is asked to stop."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: Any) -> None:
        self._service.draining = True
        super().handle_exit(sig, frame)


def serve(settings: ServerSettings) -> None:
    """Runs until SIGTERM or Ctrl-C: no new rollouts then, running ones are finished, no process is left."""
    service = Service(settings)
    config = uvicorn.Config(
        service.app(),
        host=settings.host,
        port=settings.port,
        log_level="info",
        access_log=False,
        http=BoundedH11,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        timeout_graceful_shutdown=math.ceil(settings.drain_s),
    )
    _Server(config, service).run()
