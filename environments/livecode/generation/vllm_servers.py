"""vLLM servers as rollouts see them: what they are called, what is wrong with them, and whether they fit the run.

RolloutError                 no rollout could be had
├── ServerAway               nothing answers at the address, or what answers is not ready
├── ServerRefused            the server answers, and no: a wrong model, a missing flag, a bad request
└── RolloutDeadlineExceeded  no server finished it in time
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx

from environments.common.endpoints import Endpoint
from environments.common.errors import LivecodeError
from environments.common.http_clients import BUSY, is_busy, pause_s
from environments.common.retry import Failure, Retry, RetryLater
from environments.common.served_adapter import SERVED_ADAPTER
from environments.livecode.generation.server_state import ServerEvent, ServerState, after
from environments.livecode.generation.vllm_responses import Choice, Unusable, best_logprob

logger = logging.getLogger(__name__)

UNNAMED = ("default",)  # what vLLM calls the weights it was started with
_ANSWER_S = 10.0  # within which a server says what its weights are called
_SILENT_ANSWER_S = 3.0  # the same of one that did not say it the last time
_SILENT_S = 300.0  # of one that does not say it while others do: its rollouts go to these. A slow update is shorter
_RECENT_S = 30.0  # for so long a missed answer speaks against a server; an evaluation asks only once
_LEAVING_SILENT_S = 5.0  # the same of one that is about to leave: it is not expected back
_READING = 4  # answers of one server that are received at the same time; its others wait there
_CHECK_AGAIN_S = 10.0  # until a server is asked again that was not ready, or not fit, when it was checked
_WAIT_FOR_FIRST_S = 5.0
BACKOFF_S = (0.2, 5.0)  # first and longest pause between two tries of one request
BUSY_S = 60.0  # for so long a check asks a server again that says that it is busy
_ASK_AGAIN_S = 1.0
_SAY_AGAIN_S = 60.0


class RolloutError(LivecodeError, RuntimeError):
    """No rollout could be had; the message names the server and the reason."""


class ServerAway(RolloutError):
    """Nothing answers there, or it is not ready: starting it, or waiting, helps."""


class ServerRefused(RolloutError):
    """The server is up and refuses: trying again cannot help."""


class RolloutDeadlineExceeded(RolloutError):
    """No server finished the rollout before its deadline."""


@dataclass
class VllmServer(Endpoint):
    """One server's address, its state (server_state.py has the table), and the times until which it is left alone."""

    state: ServerState = ServerState.SERVING
    since: float = 0.0  # when it became silent, or apart
    busy_until: float = 0.0  # it has asked to be left alone until then
    busy_reason: str = ""
    model: str | None = None
    adapter: str | None = None  # what is sampled instead of the model, where the server has one
    completions: bool = False  # it lacks the route that samples from token ids
    check_at: float = 0.0  # not checked again before
    asked_at: float = 0.0
    status: int = 200  # of its last answer about the weights
    waiting: set[asyncio.Timeout] = field(default_factory=set)  # of its requests; they have no end of their own
    reading: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_READING))
    joined: bool = False  # in mid-run, and it has not had the weights of most servers yet

    def on(self, event: ServerEvent) -> None:
        """Takes the state that follows the event."""
        new = after(self.state, event)
        if new is not self.state and not (new.silent and self.state.silent):  # a silence lasts beyond a check
            self.since = time.monotonic()
        self.state = new

    async def label(self, http: httpx.AsyncClient) -> str | None:
        """What the server calls its weights, None when it cannot be asked."""
        self.asked_at = time.monotonic()
        patience = _SILENT_ANSWER_S if self.state.silent else _ANSWER_S
        try:
            response = await http.get(self.url + "/weight_info", timeout=patience)
        except httpx.HTTPError as error:
            logger.debug("%s/weight_info: %s", self.url, error)
            self.on(ServerEvent.NO_ANSWER)
            return None
        self.status = response.status_code
        try:
            answer = response.json() if self.status == httpx.codes.OK else None
        except ValueError:
            answer = None
        if not isinstance(answer, dict) or "error" in answer:  # of something between here and the server
            self.status = httpx.codes.BAD_GATEWAY if self.status == httpx.codes.OK else self.status
            self.on(ServerEvent.NO_LABEL)
            return None
        self.on(ServerEvent.HEARD)
        return str(answer.get("weight_version") or UNNAMED[0])

    @property
    def is_silent(self) -> bool:
        """Whether it did not answer when it was asked just now."""
        return self.state.silent and time.monotonic() - self.asked_at < _RECENT_S

    @property
    def left_behind(self) -> bool:
        """Whether most others have had other weights for long: the trainer cannot bring them to it."""
        return self.state is ServerState.APART and time.monotonic() - self.since > _SILENT_S

    def give_up_if_silent(self) -> None:
        """Breaks its requests off where it has been silent or left behind for long. They have no end of their own: a
        machine that hangs or lost its network would keep them for an hour."""
        longest = _LEAVING_SILENT_S if self.state.leaving else _SILENT_S
        silent = self.state.silent and time.monotonic() - self.since > longest
        if silent or self.left_behind:
            while self.waiting:
                self.waiting.pop().reschedule(asyncio.get_running_loop().time())

    @property
    def trouble(self) -> str:
        """Why it gets no rollout, in words; empty where it gets some."""
        if self.state.silent:
            return "does not answer"
        if self.state.unchecked:
            return ServerState.UNCHECKED.value
        if self.status != 200:
            return f"/weight_info says {self.status}"
        if self.left_behind:
            return "has other weights than most servers"
        return "" if self.state.eligible else self.state.value


class ServerChecks:
    """Whether each server can serve this run.

    Args:
        first_request: has a server sample one token at a temperature; it raises as a rollout's request does.
    """

    def __init__(
        self,
        http: httpx.AsyncClient,
        servers: Sequence[VllmServer],
        first_request: Callable[[VllmServer, float], Awaitable[Choice]],
    ) -> None:
        self._http = http
        self._servers = servers
        self._first_request = first_request
        self._wanted: dict[str, Any] = {"context": 1, "need_versions": True}
        self._running: set[asyncio.Task[None]] = set()
        self._waiting_said: float | None = None

    @property
    def need_versions(self) -> bool:
        """Whether the servers have to say which weights they serve."""
        return bool(self._wanted["need_versions"])

    async def close(self) -> None:
        """Ends the checks that run."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def all(self, *, context: int, need_versions: bool, patience_s: float, wait_s: float = 0.0) -> None:
        """Asks every server whether it can serve this run; raises before any work is lost.

        wait_s: of a run that begins. It needs all of its servers, and for so long it waits for those that are away.

        patience_s: of a resumed run. It does not need all of its servers: for so long it waits for the first one,
        and a server that is away is checked when it is back, and gets no rollout before. One that is there and does
        not fit is an error here; one that comes back so is left out, and logged.

        Raises:
            ServerAway: the server is down; RolloutError where all were for so long.
            ServerRefused: it serves too short a context, or lacks a flag (which is named).
        """
        self._wanted = {"context": context, "need_versions": need_versions}
        until, waiting_until = time.monotonic() + patience_s, time.monotonic() + (0.0 if patience_s else wait_s)
        while True:
            servers = [server for server in self._servers if not server.state.leaving]
            checks = [self._check(server, **self._wanted) for server in servers]
            found = await asyncio.gather(*checks, return_exceptions=True)
            if self._worth_waiting(found, waiting_until):
                await asyncio.sleep(_ASK_AGAIN_S)
                continue
            for error in found:
                if isinstance(error, BaseException) and not (patience_s and isinstance(error, ServerAway)):
                    raise error
            for server, error in zip(servers, found, strict=True):
                server.on(ServerEvent.FITS if error is None else ServerEvent.MISFIT)
                if error is not None:
                    logger.warning("%s", error)
            if not all(found):
                return
            if time.monotonic() > until:
                raise RolloutError(f"no server after {patience_s:g} s: {found[0]}")
            await asyncio.sleep(_WAIT_FOR_FIRST_S)

    def _worth_waiting(self, found: Sequence[BaseException | None], until: float) -> bool:
        """Whether servers are not there yet, and nothing else is wrong; logged the first time and each minute."""
        away = [error for error in found if isinstance(error, ServerAway)]
        left = until - time.monotonic()
        if not away or len(away) < sum(error is not None for error in found) or left <= 0:
            return False
        if self._waiting_said is None or time.monotonic() - self._waiting_said >= _SAY_AGAIN_S:
            self._waiting_said = time.monotonic()
            logger.info("waiting for vLLM, at most %.0f s more (servers_wait_s): %s", left, away[0])
        return True

    def later(self, server: VllmServer) -> None:
        """A task that checks a server that was away; what does not fit is logged, and left out."""
        if time.monotonic() < server.check_at:
            return
        server.check_at = float("inf")

        async def check() -> None:
            try:
                await self._check(server, **self._wanted)
                server.on(ServerEvent.FITS)
                logger.info("%s is back", server.url)
            except RolloutError as error:
                logger.error("%s; it gets no rollouts", error)
            except Exception:  # whatever it answers, the run continues without it
                logger.exception("%s: its check failed; it gets no rollouts", server.url)
            finally:
                server.check_at = time.monotonic() + _CHECK_AGAIN_S

        task = asyncio.create_task(check())
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _get(self, url: str) -> httpx.Response:
        """The answer, once the server does not say any more that it has too much to do."""
        response = httpx.Response(httpx.codes.SERVICE_UNAVAILABLE)

        async def ask() -> None:
            nonlocal response
            response = await self._http.get(url, timeout=10.0)
            if response.status_code in BUSY:
                reason = f"{url} says {response.status_code}"
                raise RetryLater(reason, busy=True, wait_s=pause_s(response.headers, 0.0))

        with suppress(RetryLater):
            await while_busy().call_async(ask)
        return response

    async def _check(self, server: VllmServer, context: int, need_versions: bool) -> None:
        server.completions = False
        try:
            health = await self._get(server.url + "/health")
            models = await self._get(server.url + "/v1/models")
        except httpx.HTTPError as error:
            raise ServerAway(
                f"servers: {server.url} does not answer ({type(error).__name__}). Start vLLM there first: "
                "atropos serve-model"
            ) from error
        if health.status_code in (404, 405):
            raise ServerRefused(
                f"servers: {server.url} has no /health, so it is no vLLM. To evaluate another server with OpenAI's "
                "routes: --evaluation.route chat."
            )
        if health.status_code != 200:
            raise ServerAway(f"servers: {server.url}/health says {health.status_code}. See vLLM's log.")
        if models.status_code >= 500:
            raise ServerAway(f"servers: {server.url}/v1/models says {models.status_code}. See vLLM's log.")
        if models.status_code == 200:
            try:
                entries = models.json()["data"]
                entry = entries[0]
                served = {row.get("id") for row in entries}
                server.adapter = SERVED_ADAPTER if SERVED_ADAPTER in served else None
                server.model, limit = entry.get("id"), entry.get("max_model_len")
                limit = None if limit is None else int(limit)
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                reason = f"not vLLM's answer ({type(error).__name__}: {error})"
                raise ServerRefused(f"servers: {server.url}/v1/models: {reason}") from None
            if limit is not None and limit < context:
                raise ServerRefused(
                    f"servers: {server.url} serves at most {limit} tokens, env.context is {context}. "
                    f"Start it by atropos serve-model --max_model_len {context}, or lower env.context."
                )
        if need_versions:
            try:
                info = await self._get(server.url + "/weight_info")
            except httpx.HTTPError as error:
                raise ServerAway(f"servers: {server.url}/weight_info: {type(error).__name__}") from error
            if is_busy(info.status_code):
                raise ServerAway(f"servers: {server.url}/weight_info says {info.status_code}. See vLLM's log.")
            if info.status_code != 200:
                raise ServerRefused(
                    f"servers: {server.url}/weight_info says {info.status_code}. Start vLLM with "
                    "VLLM_SERVER_DEV_MODE=1: without it weights cannot be updated."
                )
        await self._check_logprobs(server)

    async def _check_logprobs(self, server: VllmServer) -> None:
        """Processed log-probabilities follow the temperature, raw ones do not."""
        best = []
        for temperature in (1.0, 0.5):
            choice = await self._first_request(server, temperature)
            try:
                best.append(best_logprob(choice))
            except Unusable as error:
                raise ServerRefused(f"servers: {server.url}: {error}. Use vLLM 0.32 or newer.") from None
        # Where one token has nearly all the probability the two modes cannot be distinguished.
        if best[0] < -1e-3 and abs(best[0] - best[1]) < 1e-6:
            raise ServerRefused(
                f"servers: {server.url} gives log-probabilities before the temperature. "
                "Start vLLM with --logprobs-mode processed_logprobs."
            )


def while_busy() -> Retry:
    """How a check is repeated: for BUSY_S, and only while the server says that it has too much to do."""

    def give_up(failure: Failure) -> bool:
        return not failure.error.busy or failure.elapsed_s > BUSY_S

    return Retry(*BACKOFF_S, give_up=give_up)


def parse_version(version: Any) -> int:
    """vLLM's version label as the number of batches trained; its own start label `default` is step 0.

    Raises:
        ServerRefused: a label that is neither.
    """
    if version is None or version in UNNAMED:
        return 0
    try:
        return int(version)
    except (TypeError, ValueError):
        raise ServerRefused(
            f"weight version {version!r} is not a number of batches. Only this project's trainer may set it: "
            "POST /update_weight_version with a decimal number."
        ) from None
