"""The vLLM servers that get a run's weights: always the same ones, or those of a list that changes in mid-run."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial

from environments.common.server_list import WatchedServers, watched
from trainer.config import WeightsConfig
from trainer.parallel import Parallel
from trainer.weight_sync.route_call import RouteCall
from trainer.weight_sync.vllm_routes import WeightServer, WeightSyncError

logger = logging.getLogger(__name__)

AGAIN_S = 60.0
"""How long a server that joined and could not take the weights is left alone."""


def named(config: WeightsConfig, parallel: Parallel) -> Sequence[str] | WatchedServers:
    """The servers' addresses, or on rank 0 the list that has them; the other ranks do not need it.

    Raises:
        ConfigError: the list cannot be read.
    """
    listed = watched(config.servers_from, "weights.servers_from") if parallel.is_main else None
    if listed is not None:
        listed.start()
    return config.servers if listed is None else listed


class Members:
    """The servers in `servers`, a list that changes in place; every method is rank 0's.

    Args:
        make: a server's routes, given its address.
        half_loaded: addresses of servers that must not be resumed.
    """

    def __init__(
        self,
        servers: Sequence[str] | WatchedServers,
        make: Callable[[str], WeightServer],
        half_loaded: set[str],
    ) -> None:
        self._watched = servers if isinstance(servers, WatchedServers) else None
        self._make, self._half_loaded = make, half_loaded
        urls = servers.staying() if isinstance(servers, WatchedServers) else servers
        self.servers = [make(url) for url in urls]

    def refresh(self) -> None:
        """Takes the list as it is now: servers that leave are dropped, since one that dies in the middle of a transfer
        over NCCL breaks it for all; those that join get the weights by `catch_up` or the next publication."""
        if self._watched is None:
            return
        listed = {one.url: None for one in self._watched.current if not one.leaving}
        for server in [one for one in self.servers if one.url not in listed]:
            self.servers.remove(server)
            logger.info("%s leaves: it gets no more weights", server.url)
            if server.url not in self._half_loaded:  # its rollouts must end, and it may be paused for an update
                RouteCall(partial(server.post, "resume", "/resume"))
        known = {server.url for server in self.servers}
        for url in [url for url in listed if url not in known]:
            server = self._make(url)
            server.joined = True
            self.servers.append(server)
            logger.info("%s joins: it gets the weights next", url)

    def ready(self) -> None:
        """Refreshes; WeightSyncError, as of servers that are gone, where all of them leave."""
        self.refresh()
        if self._watched is not None and not self.servers:
            raise WeightSyncError(self._watched.source, "health", "every server is leaving", gone=True)

    @property
    def proven(self) -> list[WeightServer]:
        """Those that have taken weights of this run, or were there from the start; all where there is none."""
        return [server for server in self.servers if not server.joined] or list(self.servers)

    def behind(self, version: str | None) -> list[WeightServer]:
        """Those that answer and are without this version or generate nothing; none before the first publication."""
        self.refresh()
        if version is None:
            return []
        now = time.monotonic()
        return [server for server in self.servers if server.not_before <= now and server.is_behind(version)]

    def put_off(self, error: WeightSyncError) -> None:
        """Leaves alone for a time what joined and failed: it may never fit, and must not keep others waiting."""
        failed = error.server.split(", ")
        for server in self.servers:
            if server.joined and server.url in failed:
                server.not_before = time.monotonic() + AGAIN_S
