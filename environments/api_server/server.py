"""Atropos' own API server with the parts replaced that lose or reorder data; the same routes, and a few more.

Replaced: /register, /register-env, /scored_data, /scored_data_list, /batch, /status, /latest_example, /reset_data.
New: /lease, /ack, /rollback, /contract, /hold, /health, /metrics. A group is validated once, kept and served as the
bytes that came; GET /batch is a lease that is acknowledged at once, so stock trainers work unchanged.

Groups come and go as Atropos' JSON, or in the binary form of `group_bytes` where Content-Type or Accept names it; each
side may use either.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from atroposlib.api import server as stock
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, Counter, generate_latest

from environments.api_server.batches import queued_by_shard
from environments.api_server.contracts import Contracts
from environments.api_server.gauges import measure
from environments.api_server.group_checks import check_senders, parse, parse_packed, stock_form
from environments.api_server.hold import Hold
from environments.api_server.request_bodies import Bodies, media_type, reads_packed
from environments.api_server.requests import (
    AckRequest,
    ContractRequest,
    EnvIdentifier,
    HoldRequest,
    LeaseRequest,
    RegisterEnv,
    Registration,
    RollbackRequest,
)
from environments.api_server.shards import refusal
from environments.api_server.stock_state import registered, show
from environments.api_server.store import Entry, Lease, StepError, Store, Unwritable
from environments.common import group_bytes
from environments.common.group_bytes import MEDIA_TYPE
from environments.common.scored_group import GroupError
from verifier_app.judge.protocol import printable

log = logging.getLogger(__name__)

MOST_BYTES = 256 << 20
"""Of a request body; a group of 16 rollouts of 40k tokens is about 15 MB."""
REPLACED = {
    *("/register", "/register-env", "/scored_data", "/scored_data_list"),
    *("/batch", "/status", "/latest_example", "/reset_data", "/status-env", "/disconnect-env"),
}


def build(store: Store, *, allow_reset: bool = False, most_bytes: int = MOST_BYTES) -> FastAPI:
    """An app with Atropos' routes, serving from this store. One in a process: what is left of Atropos' own routes
    reads the state of Atropos' one app, which is kept up to date with the store.

    allow_reset: whether GET /reset_data may forget everything. most_bytes: of the longest request body.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await server.close()

    app = FastAPI(title=stock.app.title, lifespan=lifespan)
    # Not Atropos' own middleware: it lets any web page in, unpacks any body on the event loop, and packs batches there.
    app.add_middleware(Bodies, most=most_bytes)
    app.router.routes.extend(
        route for route in stock.app.router.routes if isinstance(route, APIRoute) and route.path not in REPLACED
    )
    server = ApiServer(app, store, allow_reset, most_bytes)
    server.mount()
    return app


class ApiServer:
    """The routes over one store. Changes are made one at a time, in a thread, since they wait for the disk."""

    def __init__(self, app: FastAPI, store: Store, allow_reset: bool, most_bytes: int) -> None:
        self.app, self.store, self.allow_reset, self.most_bytes = app, store, allow_reset, most_bytes
        self.contracts = Contracts(store)
        self.hold = Hold()
        # One thread, and not a lock: a request that is cancelled would release a lock while its change still runs.
        self.disk = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self.registry = CollectorRegistry()
        self.counts = Counter("atropos_groups", "Groups by what became of them.", ["outcome"], registry=self.registry)
        self.tidying: asyncio.Task[None] | None = None
        self.latest: bytes | None = None

    def mount(self) -> None:
        """Adds the routes, and shows what is restored to the stock routes that are left."""
        add = self.app.add_api_route
        add("/register", self.register, methods=["POST"])
        add("/register-env", self.register_env, methods=["POST"])
        add("/scored_data", self.scored_data, methods=["POST"])
        add("/scored_data_list", self.scored_data_list, methods=["POST"])
        add("/batch", self.batch, methods=["GET"])
        add("/lease", self.lease, methods=["POST"])
        add("/ack", self.ack, methods=["POST"])
        add("/rollback", self.rollback, methods=["POST"])
        add("/contract", self.contract, methods=["POST"])
        add("/hold", self.holds, methods=["POST"])
        add("/status", self.status, methods=["GET"])
        add("/health", self.health, methods=["GET"])
        add("/metrics", self.metrics, methods=["GET"])
        add("/latest_example", self.latest_example, methods=["GET"])
        add("/reset_data", self.reset_data, methods=["GET"])
        add("/status-env", self.status_env, methods=["GET"])
        add("/disconnect-env", self.disconnect_env, methods=["POST"])
        self.app.add_exception_handler(OSError, self.disk_full)
        self.app.add_exception_handler(RequestValidationError, self.refused)
        self.app.add_exception_handler(Unwritable, self.refused)
        measure(self.store, self.registry)
        show(self.store)

    # -- registration --------------------------------------------------------------------------------------

    async def register(self, registration: Registration) -> dict[str, Any]:
        """A trainer. A later registration replaces the former one: it is a trainer that was started again."""
        await self._change(self.store.register, registration.model_dump())
        requesters = stock.app.state.requesters = getattr(stock.app.state, "requesters", [])
        requesters.append(stock.uuid.uuid4().int)
        return {"uuid": requesters[-1]}

    async def register_env(self, env: RegisterEnv) -> Any:
        """An environment, once a trainer has asked for its first batch. 409: it does not fit those that have."""
        env.desired_name = env.desired_name or "environment"
        answer = await self._change(self._register_env, env)
        return answer if isinstance(answer, dict) else JSONResponse({"detail": answer}, status_code=409)

    def _register_env(self, env: RegisterEnv) -> dict[str, Any] | str:
        """The answer, or what keeps it from registering; in one go, since several may come at the same moment."""
        claim = {"shard": env.shard.model_dump()} if env.shard else {}
        if said := refusal(self.store.envs, claim.get("shard")):
            return said
        if not self.store.started:
            return {"status": "wait for trainer to start"}
        entry, answer = registered(self.store, env)
        self.store.register_env(entry | claim)
        return answer | claim

    async def contract(self, request: ContractRequest) -> Response:
        """Both sides say what they assume and hear what the other does; 409 names the fields in which they differ."""
        await self._change(self.store.set_contract, request.side, request.terms)
        if said := self.contracts.spoke(request.side):
            return JSONResponse({"detail": said}, status_code=409)
        status = "agreed" if self.contracts.agreed else "waiting"
        return JSONResponse({"status": status, "sides": self.store.contracts, "accepts": [MEDIA_TYPE]})

    async def holds(self, request: HoldRequest) -> dict[str, str]:
        """An environment keeps groups back; a trainer that asks for a batch gets the reason, and continues to wait."""
        self.hold.say(request.reason, request.seconds)
        return {"status": "held"}

    async def status_env(self, env: EnvIdentifier) -> Any:
        """As Atropos has it; 422 for an environment that is none, or where nobody has a share."""
        if (unknown := self._unknown(env)) is not None:
            return unknown
        try:
            return await stock.get_status_env(env)
        except ZeroDivisionError:
            return JSONResponse({"detail": "weight: those of all environments add up to 0; send one above 0"}, 422)

    async def disconnect_env(self, env: EnvIdentifier) -> Any:
        """As Atropos has it; 422 for an environment that is none."""
        if (unknown := self._unknown(env)) is None:
            await self._change(self.store.disconnect_env, env.env_id)
        return unknown or {"status": "success"}

    def _unknown(self, env: EnvIdentifier) -> Response | None:
        count = len(self.store.envs)
        if env.env_id < count:
            return None
        return JSONResponse({"detail": f"env_id {env.env_id}: {count} are registered; send the id of one"}, 422)

    # -- groups in -----------------------------------------------------------------------------------------

    async def scored_data(self, request: Request) -> Response:
        """One group."""
        body, packed = await request.body(), media_type(request) == MEDIA_TYPE
        read = partial(parse_packed, body, self.most_bytes) if packed else partial(parse, body, several=False)
        return await self._receive(read, several=False)

    async def scored_data_list(self, request: Request) -> Response:
        """Several groups: all of them valid, or none is taken."""
        if media_type(request) == MEDIA_TYPE:
            return JSONResponse({"detail": "groups in binary form come one by one: send each to /scored_data"}, 415)
        return await self._receive(partial(parse, await request.body(), several=True), several=True)

    async def _receive(self, read: Callable[[], list[Entry]], *, several: bool) -> Response:
        try:
            entries = await asyncio.to_thread(read)
            check_senders(entries, self.store.envs)
        except GroupError as error:
            self.counts.labels("refused").inc()
            log.warning("a group is refused: %s", error)
            return JSONResponse({"detail": str(error)}, status_code=422)
        last = entries[-1].raw if entries else self.latest
        found: list[str] = await self._change(self.store.add_all, entries)
        self.latest = last
        for entry, outcome in zip(entries, found, strict=True):
            self.counts.labels(outcome).inc()
            if outcome == "duplicate":
                log.warning("group %s came twice, the second is dropped", entry.group_id)
        return JSONResponse(self._receipt(entries, found, several=several))

    def _receipt(self, entries: list[Entry], found: list[str], *, several: bool) -> dict[str, Any]:
        buffered = [entry for entry, outcome in zip(entries, found, strict=True) if outcome == "buffered"]
        size = sum(held.size for held in self.store.buffers.get(buffered[-1].env_id or 0, [])) if buffered else 0
        if several:
            receipt: dict[str, Any] = {"status": "received", "groups_processed": len(entries)}
            return receipt | ({"buffered": len(buffered), "last_buffer_size": size} if buffered else {})
        return {"status": "buffered", "buffer_size": size} if buffered else {"status": "received"}

    # -- batches out ---------------------------------------------------------------------------------------

    async def batch(self, request: Request) -> Response:
        """Stock GET /batch: the oldest batch, acknowledged as it is handed out.

        A batch that was leased and never acknowledged comes first: its trainer, or this server, died in between.
        """
        if self.store.registration is None:
            return self._not_registered()
        step = min((lease.step for lease in self.store.leases), default=self.store.step)
        return await self._lease(step, acknowledge=True, packed=reads_packed(request))

    def _not_registered(self) -> Response:
        message = "Trainer not registered. Call /register first."
        return JSONResponse({"status": "error", "message": message, "batch": []})

    async def lease(self, wanted: LeaseRequest, request: Request) -> Response:
        """The batch of a step, kept until /ack; asking again for the same step gives the same batch."""
        if self.store.registration is None:
            return self._not_registered()
        if said := self.contracts.refusal("trainer"):
            return JSONResponse({"detail": said}, status_code=409)
        return await self._lease(wanted.step, acknowledge=False, packed=reads_packed(request))

    async def _lease(self, step: int, *, acknowledge: bool, packed: bool) -> Response:
        assert self.store.registration is not None
        batch_size = int(self.store.registration["batch_size"])
        lease, body = await self._change(self._leased, step, batch_size, acknowledge, packed)
        if lease is None:
            held = None if acknowledge else self.hold.reason  # GET /batch answers as Atropos does
            return JSONResponse({"batch": None, "held": held} if held else {"batch": None})
        self.counts.labels("served").inc(len(lease.entries))
        return Response(body, media_type=MEDIA_TYPE if packed else "application/json")

    def _leased(self, step: int, batch_size: int, acknowledge: bool, packed: bool) -> tuple[Lease | None, bytes]:
        """A lease with its answer; in one go, since acknowledged groups do not stay in the journal forever."""
        with self.store.together():
            self.store.start()
            lease = self.store.lease(step, batch_size)
            if lease is not None and acknowledge:
                self.store.ack(step + 1)
        entries = [] if lease is None else lease.entries
        if packed:
            return lease, group_bytes.join([(entry.group_id, self.store.raw(entry)) for entry in entries])
        raws = [stock_form(self.store.raw(entry), entry.group_id) for entry in entries]
        return lease, b'{"batch":[' + b",".join(raws) + b"]}"

    async def ack(self, request: AckRequest) -> dict[str, Any]:
        """A checkpoint is durable: what it includes is done with."""
        return {"groups": await self._change(self.store.ack, request.checkpoint_step)}

    async def rollback(self, request: RollbackRequest) -> Response:
        """The trainer is back at a step: the batches since will be served again. 409: they are gone."""
        try:
            batches = await self._change(self.store.rollback, request.step)
        except StepError as error:
            return JSONResponse({"detail": str(error)}, status_code=409)
        if batches:
            log.info("rolled back to step %d: %d batches will be served again", request.step, batches)
        return JSONResponse({"batches": batches})

    # -- to be seen ----------------------------------------------------------------------------------------

    async def status(self) -> dict[str, Any]:
        """As Atropos has it; where shards feed the run, also how many groups of each are in the queue."""
        told = {"current_step": self.store.step, "queue_size": self.store.groups_queued}
        return told | ({"shards": queued} if (queued := queued_by_shard(self.store)) else {})

    async def health(self) -> dict[str, str]:
        """Alive, and whether it keeps a journal."""
        return {"status": "ok", "journal": str(self.store.journal.path) if self.store.journal else ""}

    async def metrics(self) -> Response:
        """Prometheus' text format."""
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    async def disk_full(self, _: Request, error: Exception) -> Response:
        """507 where the journal cannot grow: the change did not happen, and its sender tries again."""
        assert isinstance(error, OSError)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise error
        self.counts.labels("disk_full").inc()
        log.error("the journal's disk is full: what was sent is not taken, and must be sent again")
        return JSONResponse({"detail": "the journal's disk is full: free space, then send again"}, status_code=507)

    async def refused(self, request: Request, error: Exception) -> Response:
        """422 for what cannot be taken, logged here too: Atropos' clients show the status alone."""
        if isinstance(error, RequestValidationError):
            faults = [{name: one[name] for name in ("type", "loc", "msg")} for one in error.errors()]
        else:
            faults = [{"type": "value_error", "loc": ["body"], "msg": str(error)}]
        said = "; ".join(f"{'.'.join(map(str, one['loc'][1:])) or 'body'}: {one['msg']}" for one in faults[:5])
        log.warning("%s %s is refused: %s", request.method, request.url.path, printable(said[:500]))
        content = json.dumps({"detail": faults[:20]}).encode("ascii")  # a field's name may be no text
        return Response(content, 422, media_type="application/json")

    async def latest_example(self) -> Response:
        """The group that came last."""
        raw = self.latest or b'{"tokens":[],"masks":[],"scores":[]}'
        return Response(await asyncio.to_thread(stock_form, raw), media_type="application/json")

    async def reset_data(self) -> Response:
        """Forgets everything, the journal included, where that is allowed."""
        if not self.allow_reset:
            return JSONResponse({"detail": "not enabled: start the server with --allow-reset"}, status_code=403)
        await self._change(self.store.reset)
        self.latest = None
        return PlainTextResponse("Reset successful")

    async def _change(self, change: Callable[..., Any], *arguments: Any) -> Any:
        result = await asyncio.get_running_loop().run_in_executor(self.disk, change, *arguments)
        show(self.store)
        if self.tidying is None or self.tidying.done():
            self.tidying = asyncio.create_task(self._tidy())
        return result

    async def _tidy(self) -> None:
        """Keeps the journal small, in steps between the changes."""
        while await asyncio.get_running_loop().run_in_executor(self.disk, self.store.tidy):
            pass

    async def close(self) -> None:
        """Closes the journal, once the change that is under way is written."""
        await asyncio.get_running_loop().run_in_executor(self.disk, self.store.close)
