"""Rollouts from vLLM: token ids in, token ids out, with the sampler's log-probabilities and weight versions."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpx

from environments.common import worker_threads
from environments.common.http_clients import BUSY, is_busy, pause_s
from environments.common.retry import Retry, RetryLater
from environments.common.server_list import WatchedServers
from environments.livecode.generation import connections
from environments.livecode.generation.connections import Connections, posted, received
from environments.livecode.generation.server_pool import ServerPool
from environments.livecode.generation.server_state import ServerEvent
from environments.livecode.generation.vllm_responses import (
    COMPLETIONS,
    GENERATE,
    Choice,
    NoChoice,
    Unusable,
    for_completions,
    from_completions,
    only_choice,
    refusal,
    sampled,
)
from environments.livecode.generation.vllm_servers import (
    BACKOFF_S,
    UNNAMED,
    RolloutDeadlineExceeded,
    RolloutError,
    ServerAway,
    ServerRefused,
    VllmServer,
    parse_version,
    while_busy,
)
from environments.livecode.problems.prompts import Prompt

logger = logging.getLogger(__name__)

_WAIT_FOR_WEIGHTS_S = 0.5
_COOLDOWN_S = 5.0  # a server that failed is left alone for so long


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are drawn. top_p is 1 and top_k off wherever the tokens are trained on.

    temperature 0 is greedy. `seed` fixes one request's draws. max_new_tokens None: what the prompt leaves.
    """

    max_new_tokens: int | None
    temperature: float
    top_p: float = 1.0
    seed: int | None = None

    def within(self, room: int | None) -> SamplingParams:
        """These for a prompt that leaves this many tokens for its answer; None: the length is fixed."""
        return self if room is None else replace(self, max_new_tokens=room)

    def as_json(self) -> dict[str, Any]:
        params: dict[str, Any] = {
            "max_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": 0,
            "logprobs": 0,
            "detokenize": False,
        }
        return params if self.seed is None else params | {"seed": self.seed}


@dataclass(frozen=True)
class Completion:
    """One finished rollout: the sampled ids exactly as the engine drew them.

    A server that gives text alone leaves ids, logprobs and versions empty; `tokens` is then its own count.
    ids and logprobs are arrays: as lists of objects they would take six times the memory, and thousands of rollouts
    wait for the rest of their groups.
    """

    ids: array[int]
    logprobs: array[float]  # of each sampled id, at the sampling temperature
    finish_reason: str  # "stop" | "length"
    versions: list[tuple[int, int, int]]  # (weight version, start, end) over ids
    seconds: float
    text: str | None = None
    tokens: int | None = None

    @property
    def length(self) -> int:
        """Sampled tokens."""
        return len(self.ids) if self.tokens is None else self.tokens


@dataclass
class RetryCounters:
    """What went wrong and was made good."""

    resubmitted_abort: int = 0
    resubmitted_failure: int = 0


class CompletionClient:
    """Rollouts over one or several vLLM servers, the least loaded one first.

    A server that breaks down, or that aborts a request for a weight update, costs no rollout: the request is sent
    again, to another server where there is one.

    Args:
        watched: the list that servers join and leave by; None: they are always those of `urls`.
    """

    def __init__(
        self, urls: Sequence[str], *, deadline_s: float = 3600.0, watched: WatchedServers | None = None
    ) -> None:
        if not urls:
            raise ValueError("servers: empty. Give the address of at least one vLLM server.")
        self.deadline_s = deadline_s
        self.counters = RetryCounters()
        self._connections = Connections(deadline_s)
        self._pool = ServerPool(urls, self._connections.http, self._first_request, watched)

    async def __aenter__(self) -> CompletionClient:
        self._pool.watch()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pool.close()
        await self._connections.close()

    @property
    def published(self) -> bool:
        """Whether a trainer has named the weights of some server, in this process's time or before."""
        return self._pool.published

    @published.setter
    def published(self, value: bool) -> None:
        self._pool.published = value

    @property
    def running(self) -> int:
        """Requests that are at a server now."""
        return self._pool.running

    async def answer(self, prompt: Prompt, sampling: SamplingParams) -> Completion:
        """One finished rollout of a prompt; see `generate`."""
        return await self.generate(prompt.ids, sampling)

    async def generate(self, prompt: Sequence[int], sampling: SamplingParams) -> Completion:
        """One finished rollout.

        Raises:
            ServerRefused: a request that no try can serve.
            RolloutDeadlineExceeded: `deadline_s` passed; the message ends with the last failure.
        """
        started = time.monotonic()
        until = started + self.deadline_s
        body = {"token_ids": prompt, "sampling_params": sampling.as_json()}

        async def attempt() -> Completion:
            choice = await self._finished(await self._free_server(until), body, until)
            return await worker_threads.answers(self._sample, choice, time.monotonic() - started)

        try:
            tries = Retry(
                *BACKOFF_S, deadline_s=self.deadline_s, on_retry=lambda _: None
            )  # `_failed` has the log's line
            return await tries.call_async(attempt)
        except RetryLater as error:
            raise RolloutDeadlineExceeded(f"no rollout within {self.deadline_s:g} s: {error}") from None

    async def _free_server(self, until: float) -> VllmServer:
        """The server to ask next, once there is one that has the run's weights and wants to be asked."""
        while True:
            now, server = time.monotonic(), self._pool.least_loaded()
            if server is None:
                reason = "every server waits for the current weights (started again, or new), is not ready, or leaves"
                pause = _WAIT_FOR_WEIGHTS_S
            elif server.busy_until > now:  # and so is every other one
                reason, pause = server.busy_reason, server.busy_until - now + random.uniform(0.0, BACKOFF_S[0])
            else:
                return server
            if now >= until:
                raise RetryLater(reason)
            await asyncio.sleep(min(pause, until - now))

    async def _finished(self, server: VllmServer, body: dict[str, Any], until: float) -> Choice:
        """A server's whole answer. Raises RetryLater where there is none; it is counted here."""
        server.running += 1
        try:
            choice = await self._ask_while_heard(server, body, max(until - time.monotonic(), 0.0))
            server.on(ServerEvent.HEARD)
            if choice.finish_reason in ("stop", "length"):
                self._check_current(server, choice)
                return choice
        except RetryLater as error:
            self._failed(server, error)
            raise
        finally:
            server.running -= 1
        # An abort or an engine error is not the model's answer.
        self.counters.resubmitted_abort += 1
        raise RetryLater(f"{server.url}: finish_reason {choice.finish_reason!r}")

    def _failed(self, server: VllmServer, error: RetryLater) -> None:
        self.counters.resubmitted_failure += 1
        if not server.is_down:  # one line for the server, not one for each of its rollouts
            logger.warning("a server is in trouble, its rollouts are sent again: %s", error)
        server.leave_alone(_COOLDOWN_S)
        server.busy_until, server.busy_reason = time.monotonic() + error.wait_s, str(error)

    def _check_current(self, server: VllmServer, choice: Choice) -> None:
        """A server that came back samples from the weights of its start until it gets the current ones."""
        if self.published and any(span.version in UNNAMED for span in choice.weight_versions or ()):
            server.on(ServerEvent.UNNAMED)
            raise RetryLater(f"{server.url} was started again and has not got the current weights yet")

    async def _ask_while_heard(self, server: VllmServer, body: dict[str, Any], timeout: float) -> Choice:
        try:
            async with asyncio.timeout(None) as patience:
                server.waiting.add(patience)
                return await self._ask(server, body, timeout)
        except TimeoutError:
            raise RetryLater(f"{server.url} has not been heard of for a time") from None
        finally:
            server.waiting.discard(patience)

    async def _ask(self, server: VllmServer, body: dict[str, Any], timeout: float) -> Choice:
        if not server.completions:
            named = body if server.adapter is None else body | {"model": server.adapter}
            return await self._post(server, GENERATE, named, timeout)
        # This route does not say which weights drew a token: the version from before counts for all of them.
        version = await server.label(self._connections.http)
        if version is None and server.state.silent:
            raise RetryLater(f"{server.url} does not say which weights it serves")
        request = {"model": server.adapter or server.model, "prompt": body["token_ids"], "return_token_ids": True}
        choice = await self._post(server, COMPLETIONS, request | for_completions(body["sampling_params"]), timeout)
        try:
            return from_completions(choice, version)
        except Unusable as error:
            raise ServerRefused(f"{server.url}{COMPLETIONS}: {error}") from None

    async def _post(self, server: VllmServer, route: str, body: dict[str, Any], timeout: float) -> Choice:
        limits = httpx.Timeout(timeout, connect=min(10.0, timeout))
        try:
            async with self._connections.lane() as http:
                async with posted(http, server.url + route, json=body, timeout=limits) as response:
                    async with server.reading:
                        content = await received(response)
                        if response.status_code == 200:
                            return await worker_threads.answers(only_choice, content)
        except httpx.HTTPError as error:
            raise RetryLater(f"{server.url}: {type(error).__name__} {error}") from error
        except TimeoutError:
            raise RetryLater(f"{server.url}: {connections.STALL_S:g} s of silence in the middle of an answer") from None
        except NoChoice as error:
            raise RetryLater(f"{server.url}{route}: {error}") from None
        except Unusable as error:
            raise ServerRefused(f"{server.url}{route}: {error}") from None
        text = content.decode("utf-8", "replace")
        if is_busy(response.status_code):
            reason = f"{server.url}: status {response.status_code}: {text[:300]}"
            raise RetryLater(reason, busy=response.status_code in BUSY, wait_s=pause_s(response.headers, 0.0))
        raise ServerRefused(refusal(server.url, route, response.status_code, text))

    def _sample(self, choice: Choice, seconds: float) -> Completion:
        try:
            ids, logprobs = sampled(choice)
        except Unusable as error:
            raise ServerRefused(f"{GENERATE}: {error}") from None
        if not choice.weight_versions:
            raise ServerRefused(f"{GENERATE}: no weight_versions in the answer. Use vLLM 0.32 or newer.")
        versions = [(parse_version(span.version), span.start, span.end) for span in choice.weight_versions]
        return Completion(array("i", ids), array("d", logprobs), str(choice.finish_reason), versions, seconds)

    async def weight_version(self) -> int | None:
        """The oldest version that a reachable server serves; None when none can be reached."""
        return await self._pool.weight_version()

    @property
    def troubles(self) -> str:
        """What keeps servers from getting rollouts."""
        return self._pool.troubles

    async def check(
        self, *, context: int, need_versions: bool = True, patience_s: float = 0.0, wait_s: float = 0.0
    ) -> None:
        """Asks every server whether it can serve this run; see `ServerChecks.all`."""
        await self._pool.checks.all(context=context, need_versions=need_versions, patience_s=patience_s, wait_s=wait_s)

    async def _first_request(self, server: VllmServer, temperature: float) -> Choice:
        """One token; it also finds out which route the server offers."""
        params = SamplingParams(1, temperature, seed=0).as_json() | {"logprobs": 1}
        request = {"token_ids": [1, 2, 3], "sampling_params": params}
        try:
            choice = await self._first_answer(server, request)
            if choice.finish_reason not in ("stop", "length"):
                raise RetryLater(f"{server.url}: finish_reason {choice.finish_reason!r}")
            return choice
        except RetryLater as error:
            raise ServerAway(f"servers: a first request failed: {error}") from error
        except ServerRefused as refused:
            if server.completions or server.model is None:
                raise
            server.completions = True
            try:
                choice = await self._first_answer(server, request)
            except (RolloutError, RetryLater):
                raise refused from None
            logger.warning(
                "%s; rollouts come by %s, with one weight version for all of a rollout", refused, COMPLETIONS
            )
            return choice

    async def _first_answer(self, server: VllmServer, request: dict[str, Any]) -> Choice:
        """The answer to a check's request, once the server does not say any more that it has too much to do."""
        return await while_busy().call_async(lambda: self._ask(server, request, 120.0))
