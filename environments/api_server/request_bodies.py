"""Request bodies on their way in: bounded in bytes and in time, unpacked beside the event loop, from no other origin.

Atropos' own middleware unpacks any gzip body on the event loop, however large, waits forever for the rest of one, and
lets every web page in a browser on this machine read and post.
"""

from __future__ import annotations

import asyncio
import zlib
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from environments.common.group_bytes import MEDIA_TYPE
from verifier_app.connections import MAX_HEADER_BYTES, HeaderTimer

SILENCE_S = 60.0
"""Longest wait for the next bytes of a body."""
AT_ONCE = 4
"""Bodies of full length that may be on their way at the same time."""


class Refused(Exception):
    """A body that is not taken: status and message of the answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Bodies:
    """Reads a request's whole body before the app sees it."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        """most: bytes of the longest body, as it came and unpacked."""
        self._app, self._most = app, most
        self._arriving = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != headers.get("host"):
            reason = f"requests of web pages from {origin[:100]!r} are not taken"
            await JSONResponse({"detail": reason}, 403)(scope, receive, send)
            return
        if "content-length" not in headers and "transfer-encoding" not in headers:
            await self._app(scope, receive, send)
            return
        try:
            body = await self._read(headers, receive)
        except Refused as refused:
            answer = JSONResponse({"detail": str(refused)}, refused.status, {"Connection": "close"})
            await answer(scope, receive, send)
            return
        if body is None:
            return
        if "gzip" in headers.get("content-encoding", "").lower():
            try:
                body = await asyncio.to_thread(unpack, body, self._most)
            except zlib.error:
                await PlainTextResponse("Invalid gzip payload", 400)(scope, receive, send)
                return
            except Refused as refused:
                await JSONResponse({"detail": str(refused)}, refused.status)(scope, receive, send)
                return
            changed = MutableHeaders(scope=scope)
            del changed["content-encoding"]
            changed["content-length"] = str(len(body))
        await self._app(scope, _given(body, receive), send)

    async def _read(self, headers: Headers, receive: Receive) -> bytes | None:
        """The body as it comes; None where the caller hung up."""
        announced = headers.get("content-length") or "0"
        if len(announced) > 18 or int(announced) > self._most:
            raise too_long(self._most)
        pieces, size = [], 0
        try:
            while True:
                try:
                    async with asyncio.timeout(SILENCE_S):
                        message = await receive()
                except TimeoutError:
                    raise Refused(408, f"no byte of the body came for {SILENCE_S:g} s: send it again") from None
                if message["type"] == "http.disconnect":
                    return None
                piece = message.get("body", b"")
                size += len(piece)
                self._arriving += len(piece)
                if size > self._most:
                    raise too_long(self._most)
                if self._arriving > AT_ONCE * self._most:
                    raise Refused(503, "more bodies are on their way than fit into memory: send it again")
                pieces.append(piece)
                if not message.get("more_body", False):
                    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
        finally:
            self._arriving -= size


def too_long(most: int) -> Refused:
    """The answer to a body beyond the limit."""
    return Refused(413, f"the body is longer than {most >> 20} MiB (--max-body-mb): send fewer groups at once")


def unpack(body: bytes, most: int) -> bytes:
    """A gzip body, several members too. Raises Refused beyond `most` bytes, zlib.error for what is no gzip."""
    parts, size = [], 0
    while body:
        stream = zlib.decompressobj(wbits=31)
        part = stream.decompress(body, most - size + 1)
        size += len(part)
        if size > most:
            raise too_long(most)
        if not stream.eof:
            raise zlib.error("cut off")
        parts.append(part)
        body = stream.unused_data.lstrip(b"\0")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _given(body: bytes, receive: Receive) -> Receive:
    """`receive` of a request whose body is there."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return messages.pop() if messages else await receive()

    return next_message


class BoundedHttpTools(HttpToolsProtocol):
    """uvicorn's fast protocol, with a bound on the headers' bytes and time."""

    _coming = 0
    _headers: HeaderTimer

    def connection_made(self, transport: Any) -> None:
        """The first request's headers are awaited from here on."""
        super().connection_made(transport)
        self._headers, self._waiting = HeaderTimer(transport), True
        self._headers.set(True)

    def on_message_begin(self) -> None:
        """A request's first byte."""
        super().on_message_begin()
        self._waiting = True

    def on_headers_complete(self) -> None:
        """From here on it is a body."""
        super().on_headers_complete()
        self._waiting, self._coming = False, 0

    def data_received(self, data: bytes) -> None:
        """Bytes of a request: headers must end within their bounds."""
        super().data_received(data)
        self._headers.set(self._waiting)
        if self._waiting:
            self._coming += len(data)
            if self._coming > MAX_HEADER_BYTES and not self.transport.is_closing():
                self.send_400_response("The headers are too long.")

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more will come."""
        self._headers.set(False)
        super().connection_lost(exc)


def media_type(request: Request) -> str:
    """Of a request's body."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def reads_packed(request: Request) -> bool:
    """Whether the caller takes groups in binary form; Atropos' own clients name no such type."""
    named = request.headers.get("accept", "").lower().split(",")
    return MEDIA_TYPE in [one.partition(";")[0].strip() for one in named]
