"""The vLLM servers of a run: which one is asked next, which weights they have, and which join and leave."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

import httpx

from environments.common.endpoints import least_loaded
from environments.common.server_list import ListedServer, WatchedServers
from environments.livecode.generation.server_state import ServerEvent, ServerState
from environments.livecode.generation.vllm_responses import Choice
from environments.livecode.generation.vllm_servers import (
    UNNAMED,
    ServerChecks,
    ServerRefused,
    VllmServer,
    parse_version,
)

logger = logging.getLogger(__name__)

_LOOK_S = 0.5


class ServerPool:
    """The servers and what they serve.

    Args:
        first_request: see `ServerChecks`.
        watched: the list that servers join and leave by; None: they are always these.
    """

    def __init__(
        self,
        urls: Sequence[str],
        http: httpx.AsyncClient,
        first_request: Callable[[VllmServer, float], Awaitable[Choice]],
        watched: WatchedServers | None = None,
    ) -> None:
        self.servers = [VllmServer(url.rstrip("/")) for url in urls]
        self.checks = ServerChecks(http, self.servers, first_request)
        self.published = False  # a trainer has named the weights of some server, of this process's time or before
        self._http, self._watched = http, watched
        self._usual: int | None = None  # the version that most servers had last
        self._watching: asyncio.Task[None] | None = None

    def watch(self) -> None:
        """Begins to follow the list."""
        if self._watched is not None and self._watching is None:
            self._watched.start()
            self._watching = asyncio.create_task(self._follow(self._watched))

    async def close(self) -> None:
        """Ends what runs beside the rollouts."""
        if self._watched is not None:
            self._watched.close()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await self.checks.close()

    @property
    def running(self) -> int:
        """Requests that are at a server now."""
        return sum(server.running for server in self.servers)

    @property
    def troubles(self) -> str:
        """What keeps servers from getting rollouts."""
        return ", ".join(f"{server.url} {server.trouble}" for server in self.servers if server.trouble)

    def least_loaded(self) -> VllmServer | None:
        """The server to ask next; None when none has the run's weights."""
        now = time.monotonic()
        current = [one for one in self.servers if one.state.eligible and not one.left_behind and not one.joined]
        return least_loaded(current, lambda one: (one.busy_until > now, one.down_until > now or one.is_silent))

    # -- servers that come and go ----------------------------------------------------------------------------

    def apply(self, listed: Sequence[ListedServer]) -> None:
        """Takes a list: new servers join, those that are marked or no longer in it leave.

        A server that leaves finishes its rollouts; where it breaks down meanwhile they are sampled again by others.
        """
        wanted = {one.url: one for one in listed}
        for server in list(self.servers):
            entry = wanted.pop(server.url, None)
            if entry is not None and not entry.leaving:
                if server.state.leaving:
                    self._join(server)
                continue
            if not server.state.leaving:
                logger.info("%s leaves; its %d rollouts continue", server.url, server.running)
            server.on(ServerEvent.LEAVES)
            if entry is None and not server.running:
                self.servers.remove(server)
        for entry in wanted.values():
            if not entry.leaving:
                server = VllmServer(entry.url, state=ServerState.LEAVING)
                self._join(server)
                self.servers.append(server)

    def _join(self, server: VllmServer) -> None:
        server.on(ServerEvent.RETURNS)
        server.check_at = 0.0
        server.joined = self.checks.need_versions
        if not server.joined:
            server.on(ServerEvent.NAMED)  # nobody sends it weights: it is checked, no more
        logger.info("%s joins, once it is checked%s", server.url, " and has the weights" if server.joined else "")

    async def _follow(self, watched: WatchedServers) -> None:
        while True:
            self.apply(watched.current)
            if not self.checks.need_versions:  # else `weight_version` is asked all the time
                for server in self.servers:
                    if server.state.unchecked:
                        self.checks.later(server)
                leaving = [server for server in self.servers if server.state.leaving]
                await asyncio.gather(*(server.label(self._http) for server in leaving))
                for server in leaving:
                    server.give_up_if_silent()
            await asyncio.sleep(_LOOK_S)

    # -- which weights they have -----------------------------------------------------------------------------

    async def weight_version(self) -> int | None:
        """The oldest version that a reachable server serves; None when none can be reached.

        Once a trainer has named weights, a server whose weights have no name was started again: it gets no rollout
        and does not count until the trainer has brought it the current ones; nor does one that was away when the
        others were checked, until it is checked itself, or one that the trainer cannot bring up to the others' weights,
        or one that has joined and has other weights than most.
        """
        servers = list(self.servers)
        labels = await asyncio.gather(*(server.label(self._http) for server in servers))
        answers = [(server, label) for server, label in zip(servers, labels, strict=True) if label is not None]
        self.published = self.published or any(label not in UNNAMED for server, label in answers if not server.joined)
        found: dict[str, int] = {}
        for server, label in answers:
            if not server.joined:
                started_again = self.published and label in UNNAMED
                self._heard(server, ServerEvent.UNNAMED if started_again else ServerEvent.NAMED, label, found)
        common = Counter(found.values())
        if common:
            self._usual = max(common, key=lambda version: (common[version], version))  # of equals the newest
        for server, label in answers:
            if server.joined:
                current = self._is_current(label, others=bool(common))
                self._heard(server, ServerEvent.NAMED if current else ServerEvent.UNNAMED, label, found)
                server.joined = not (current and server.url in found)
        for server in servers:
            if server.url in found:
                server.on(ServerEvent.AGREES if found[server.url] == self._usual else ServerEvent.DIFFERS)
        versions = [found[server.url] for server in servers if server.url in found and not server.left_behind]
        if versions:  # else there is nowhere to go, and an update silences all servers at the same time
            for server in servers:
                server.give_up_if_silent()
        return min(versions, default=None)

    def _heard(self, server: VllmServer, event: ServerEvent, label: str, found: dict[str, int]) -> None:
        server.on(event)
        if server.state.unchecked:
            self.checks.later(server)
        elif server.state.eligible:
            found[server.url] = parse_version(label)

    def _is_current(self, label: str, *, others: bool) -> bool:
        """Whether a server that joined has the weights that the others have, or had last where none is left.

        It may come from another run, with that run's weights.
        """
        if self.published and label in UNNAMED:
            return False
        try:
            version = parse_version(label)
        except ServerRefused:
            return False
        if self._usual is None:
            return True
        return version == self._usual if others else version >= self._usual
