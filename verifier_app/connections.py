"""HTTP connections whose requests must arrive: headers are bounded in bytes and in time.

uvicorn bounds neither with httptools, and with h11 only the bytes: a caller without a token could fill the memory with
one header, or hold a connection for each half of a request that it sends.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_HEADER_BYTES = 64 << 10
"""Longest request line with its headers."""
HEADERS_S = 20.0
"""Longest wait for a request's headers, from the connection or from their first byte."""


class HeaderTimer:
    """Closes a connection whose headers do not come; a protocol starts and stops it."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._handle: asyncio.TimerHandle | None = None

    def set(self, waiting: bool) -> None:
        """Whether headers are awaited; the time runs from the first of several calls that say so."""
        if waiting and self._handle is None:
            self._handle = asyncio.get_running_loop().call_later(HEADERS_S, self._transport.close)
        elif not waiting and self._handle is not None:
            self._handle.cancel()
            self._handle = None


class BoundedH11(H11Protocol):
    """uvicorn's h11, with a time for the headers. Their size is uvicorn's option h11_max_incomplete_event_size."""

    _headers: HeaderTimer

    def connection_made(self, transport: Any) -> None:
        """The first request's headers are awaited from here on."""
        super().connection_made(transport)
        self._headers = HeaderTimer(transport)
        self._headers.set(True)

    def data_received(self, data: bytes) -> None:
        """Bytes of a request: headers that have begun must end in time."""
        super().data_received(data)
        self._headers.set(self.conn.their_state is h11.IDLE)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more will come."""
        self._headers.set(False)
        super().connection_lost(exc)
