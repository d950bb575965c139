"""Starts the Atropos API server on one address, loopback by default."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from pathlib import Path
from types import FrameType

import uvicorn

from environments.common.errors import ConfigError

log = logging.getLogger(__name__)


SHUTDOWN_S = 5
"""Longest wait for running requests after SIGTERM; a second signal ends it at once."""


class AddressError(ConfigError, OSError):
    """An address that this machine cannot listen on."""


class PortInUseError(AddressError):
    """Another process listens on the address."""


def bind(host: str, port: int) -> socket.socket:
    """A listening socket, taken before anything slow is imported. host: a name or an address, IPv4 or IPv6.

    Raises:
        PortInUseError: the address is taken; the message names it and the fix.
        AddressError: it is none of this machine's, or unknown.
    """
    name = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AddressError(f"--host {host}: no address of that name ({reason}): give one of this machine's") from None
    family, kind, protocol, _, address = found[0]
    try:
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise AddressError(f"--host {host}: this machine has no such addresses ({error.strerror})") from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUseError(
                f"port {port} on {host} is in use: end the process that listens there, or choose another --port"
            ) from None
        raise AddressError(
            f"--host {host} --port {port}: cannot listen there ({error.strerror}): give an address of this machine "
            "and a port that you may use"
        ) from None
    return sock


class _Server(uvicorn.Server):
    """Ends at once on a second signal, whichever it is; uvicorn does so on SIGINT alone."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self.force_exit = True
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Running requests may finish; an upload that does not is dropped."""
        late = asyncio.get_running_loop().call_later(SHUTDOWN_S, self._cut_off)
        try:
            await super().shutdown(sockets)
        finally:
            late.cancel()

    def _cut_off(self) -> None:
        log.warning("%d requests do not end: their connections are closed", len(self.server_state.tasks))
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def serve(
    host: str, port: int, journal: Path | None = None, *, allow_reset: bool = False, max_body_mb: int = 256
) -> None:
    """Serves until SIGINT or SIGTERM. With a journal, a server that is started again has what it had promised.

    allow_reset: whether GET /reset_data may forget everything. max_body_mb: MiB of the longest request body.

    Raises:
        PortInUseError: the address is taken.
        AddressError: nothing can listen on the address.
        JournalError: the journal cannot be read or written.
    """
    sock = bind(host, port)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    from environments.api_server.journal import Journal, JournalError
    from environments.api_server.request_bodies import BoundedHttpTools
    from environments.api_server.server import build
    from environments.api_server.store import Store

    try:
        store = Store(Journal(journal) if journal else None)
    except OSError as error:
        raise JournalError(
            f"--journal {journal}: cannot be used ({error.strerror}): give a file that can be written"
        ) from None
    if journal is None:
        log.warning("no journal: groups that wait are lost when this server ends; --journal FILE keeps them")
    elif store.held:
        log.info("%s: %d groups wait, %d batches are leased", journal, len(store.waiting), len(store.leases))
    shown = f"[{host}]" if ":" in host and not host.startswith("[") else host
    log.info("the Atropos API server listens on http://%s:%d", shown, port)
    app = build(store, allow_reset=allow_reset, most_bytes=max_body_mb << 20)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, http=BoundedHttpTools, timeout_graceful_shutdown=SHUTDOWN_S + 3
    )
    _Server(config).run(sockets=[sock])
