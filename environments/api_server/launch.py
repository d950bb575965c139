"""Starts the Atropos API server on one address, loopback unless told otherwise."""

from __future__ import annotations

import errno
import logging
import socket
from pathlib import Path

import uvicorn

from environments.errors import ConfigError

log = logging.getLogger(__name__)


class PortInUseError(ConfigError, OSError):
    """Another process listens on the address."""


def bind(host: str, port: int) -> socket.socket:
    """A listening socket, taken before anything slow is imported.

    Raises:
        PortInUseError: the address is taken; the message names it and the fix.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUseError(
                f"port {port} on {host} is in use: end the process that listens there, or choose another --port"
            ) from None
        raise
    return sock


def serve(host: str, port: int, journal: Path | None = None) -> None:
    """Serves until SIGINT or SIGTERM. With a journal, a server that is started again has what it had promised.

    Raises:
        PortInUseError: the address is taken.
        JournalError: the journal cannot be read.
    """
    sock = bind(host, port)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    from environments.api_server.journal import Journal
    from environments.api_server.server import build
    from environments.api_server.store import Store

    store = Store(Journal(journal) if journal else None)
    if journal is None:
        log.warning("no journal: groups that wait are lost when this server ends; --journal FILE keeps them")
    elif store.held:
        log.info("%s: %d groups wait, %d batches are leased", journal, len(store.waiting), len(store.leases))
    log.info("the Atropos API server listens on http://%s:%d", host, port)
    config = uvicorn.Config(build(store), log_level="warning", access_log=False)
    uvicorn.Server(config).run(sockets=[sock])
