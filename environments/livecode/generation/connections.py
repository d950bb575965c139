"""Connections to vLLM servers for thousands of requests at the same time, and the bodies of their answers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

STALL_S = 10.0  # longest silence in the middle of an answer: the server has all of it when it begins
_LANE = 64  # requests of one connection pool


@dataclass
class _Lane:
    http: httpx.AsyncClient
    running: int = 0


class Connections:
    """Clients that share their settings: `http` for short questions, and lanes for rollouts.

    Args:
        deadline_s: of one request, where it names none.
    """

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._tls = httpx.create_ssl_context()  # reading the certificates takes longer than all the rest of a client
        self.http = self._client()
        self.lanes: list[_Lane] = []

    async def close(self) -> None:
        """Closes every connection."""
        for http in (self.http, *(lane.http for lane in self.lanes)):
            await http.aclose()

    def _client(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=_LANE)
        transport = httpx.AsyncHTTPTransport(verify=self._tls, limits=limits, socket_options=keepalive())
        # Straight to the servers, as the trainer: no proxy of the environment's variables is between them.
        timeout = httpx.Timeout(self._deadline_s, connect=10.0)
        return httpx.AsyncClient(timeout=timeout, transport=transport, trust_env=False)

    @asynccontextmanager
    async def lane(self) -> AsyncIterator[httpx.AsyncClient]:
        """A client for one rollout's request.

        A pool looks at each of its connections for every request that begins or ends: with 2,000 of them that is
        10 ms of the event loop each time, 20 s when all begin at once.
        """
        lane = next((lane for lane in self.lanes if lane.running < _LANE), None)
        if lane is None:
            lane = _Lane(self._client())
            self.lanes.append(lane)
        lane.running += 1
        try:
            yield lane.http
        finally:
            lane.running -= 1


@asynccontextmanager
async def posted(http: httpx.AsyncClient, url: str, **request: Any) -> AsyncIterator[httpx.Response]:
    """The response to a POST, its body still to be received.

    Its stream refers back to it. Left so, all of it, and a body that it keeps (`aread`), would stay until the next full
    garbage collection: megabytes for every rollout.
    """
    response: httpx.Response | None = None
    try:
        async with http.stream("POST", url, **request) as response:
            yield response
    finally:
        if response is not None:
            vars(response).pop("stream", None)


async def received(response: httpx.Response) -> bytes:
    """The body; TimeoutError where nothing of it comes for STALL_S."""
    parts: list[bytes] = []
    stream = response.aiter_bytes()
    while True:
        async with asyncio.timeout(STALL_S):
            part = await anext(stream, None)
        if part is None:
            return b"".join(parts)
        parts.append(part)


def keepalive() -> list[tuple[int, int, int]]:
    """Socket options by which a machine that went away without a word is noticed within two minutes."""
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for name, seconds in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            options.append((socket.IPPROTO_TCP, getattr(socket, name), seconds))
    return options
