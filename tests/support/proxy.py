"""A network that can fail: a TCP proxy that is cut, stalls or resets, and one before the verifier that lies.

Each runs on a thread's event loop in the test's process and has an address of its own; `aim` at the real one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Coroutine
from itertools import cycle
from typing import Any, Literal
from urllib.parse import urlsplit

State = Literal["open", "refuse", "stall", "reset"]


class Proxy:
    """Between a client and the server at `target` (http://HOST:PORT).

    `set`: open; refuse (nobody listens, what is connected breaks); stall (connections stay, no byte gets through);
    reset (each is accepted and broken). `stall_after`: stalls by itself once these bytes have passed.
    """

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self.target = (str(parts.hostname), int(parts.port or 80))
        self.state: State = "open"
        self.stall_after: bytes | None = None
        self._loop = asyncio.new_event_loop()
        self._flowing: asyncio.Event | None = None
        self._clients: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._server: asyncio.Server | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._call(self._listen())

    def set(self, state: State) -> None:
        """From now on, for what is connected as well."""
        self._call(self._set(state))

    def close(self) -> None:
        """Breaks every connection and ends."""
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> None:
        self._flowing = self._flowing or asyncio.Event()
        self._flowing.set()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    async def _set(self, state: State) -> None:
        assert self._flowing is not None
        self.state = state
        if state == "stall":
            self._flowing.clear()
            return
        self._flowing.set()
        if state in ("refuse", "reset"):
            self._break()
        if state == "refuse" and self._server is not None:
            self._server.close()
            self._server = None
        elif state != "refuse" and self._server is None:
            await self._listen()

    async def _end(self) -> None:
        await self._set("refuse")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _break(self) -> None:
        for writer in list(self._clients):
            # A reset, as of a host that is gone: no orderly end of the stream.
            with contextlib.suppress(OSError):
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._clients.add(writer)
        try:
            if self.state == "reset":
                self._break()
                return
            await self._serve(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._tasks.discard(task)
            self._clients.discard(writer)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(*self.target)
        try:
            flows = [asyncio.create_task(self._flow(reader, back)), asyncio.create_task(self._flow(there, writer))]
            try:
                await asyncio.wait(flows, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for flow in flows:
                    flow.cancel()
                await asyncio.gather(*flows, return_exceptions=True)
        finally:
            back.close()

    async def _flow(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        assert self._flowing is not None
        while data := await source.read(1 << 16):
            await self._flowing.wait()
            target.write(data)
            await target.drain()
            if self.stall_after is not None and self.stall_after in data:
                await self._set("stall")


LIES = (
    *("slow", "error_500", "html_502", "busy_429", "not_an_object", "error_is_text", "refuse", "garbage", "torn"),
    *("half", "empty", "no_verdict", "odd_status", "odd_form", "another", "bad_request"),
)
"""What `LyingProxy` does; each of them has been seen of a proxy, a load balancer or a service that dies."""


class LyingProxy(Proxy):
    """Before a verifier: a share of the answers to POST /verify is spoilt, drawn by the seed.

    `kinds` take turns in a drawn order; `told` counts. Other routes pass.
    """

    def __init__(self, target: str, *, share: float, seed: int, kinds: tuple[str, ...] = LIES) -> None:
        self.share = share
        self.told: Counter[str] = Counter()
        self._draw = random.Random(seed)
        self._kinds = cycle(self._draw.sample(kinds, len(kinds)))
        self._earlier: list[bytes] = []
        super().__init__(target)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head, body = await _message(reader)
            kind = None
            if head.startswith(b"POST /verify ") and self._draw.random() < self.share:
                kind = next(self._kinds)
                self.told[kind] += 1
            if kind == "refuse":
                return
            if kind == "busy_429":
                writer.write(_answer(429, json.dumps({"error": {"kind": "busy", "message": "drawn"}}).encode()))
                continue
            answer = await self._ask(head, body)
            await asyncio.sleep(2.0 if kind == "slow" else 0.0)
            writer.write(self._spoilt(kind, answer))
            await writer.drain()
            if kind in ("garbage", "torn"):
                return
            if head.startswith(b"POST /verify ") and kind != "another":
                self._earlier = [*self._earlier[-50:], answer]

    async def _ask(self, head: bytes, body: bytes) -> bytes:
        there, back = await asyncio.open_connection(*self.target)
        try:
            back.write(head + body)
            await back.drain()
            return b"".join(await _message(there))
        finally:
            back.close()

    def _spoilt(self, kind: str | None, answer: bytes) -> bytes:
        content = answer.partition(b"\r\n\r\n")[2]
        if kind == "error_500":
            return _answer(500, b'{"error": {"kind": "judge_died", "message": "drawn"}}')
        if kind == "bad_request":  # no other try is made: the rollout is generated anew, or its group is dropped
            return _answer(400, b'{"error": {"kind": "bad_request", "message": "drawn"}}')
        if kind == "html_502":
            return _answer(502, b"<html>Bad Gateway</html>")
        if kind == "not_an_object":
            return _answer(200, b'["accepted"]')
        if kind == "error_is_text":
            return _answer(503, b'{"error": "overloaded"}')
        if kind == "garbage":
            return self._draw.randbytes(200)
        if kind == "torn":  # fewer bytes than the head promised
            return answer[: len(answer) - len(content) // 2]
        if kind == "half":  # as many as it promised, and no JSON
            return _answer(200, content[: len(content) // 2])
        if kind == "empty":
            return _answer(200, b"")
        if kind == "no_verdict":
            return _answer(200, b'{"verdict": null}')
        if kind == "odd_status":
            return _answer(200, content.replace(b'"status":"accepted"', b'"status":["accepted"]'))
        if kind == "odd_form":
            return _answer(200, b'{"verdict": {"status": "accepted", "failed_test": 999}}')
        if kind == "another" and self._earlier:
            return self._draw.choice(self._earlier)
        return answer


def _answer(status: int, content: bytes) -> bytes:
    head = f"HTTP/1.1 {status} Drawn\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Head and body of an HTTP message with a length."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    return head, await reader.readexactly(length)
