"""Starts Atropos' own FastAPI app on one address, loopback unless told otherwise."""

from __future__ import annotations

import errno
import socket

import uvicorn


class PortInUseError(OSError):
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


def serve(host: str, port: int) -> None:
    """Serves until SIGINT or SIGTERM."""
    sock = bind(host, port)
    from atroposlib.api.server import app

    config = uvicorn.Config(app, log_level="warning", access_log=False)
    uvicorn.Server(config).run(sockets=[sock])
