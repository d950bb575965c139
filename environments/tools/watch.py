"""`atropos watch RUN`: the report of a live run, on this machine's own address, updated as the run writes.

One process that only reads the run's files. It listens on loopback alone and answers nobody who came by another name,
so that no web page can read a run through the reader's browser; from another machine: `ssh -L`.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, StreamingResponse
from starlette.routing import Route

from environments.api_server.launch import bind
from environments.tools.report.page import as_json, render
from environments.tools.watch_records import Watched

HOST = "127.0.0.1"
EVERY_S = 2.0
"""Between two looks at the files."""
SHARE = 4
"""What took long to read and tell is followed by a pause of this many times its length: a fifth of one core at most."""
STILL_S = 15.0
"""A line to a quiet connection, so that one that was lost is noticed."""


class Feed:
    """What a server hands out: one reader of the files for all its pages, and a number for each change."""

    def __init__(self, watched: Watched, every_s: float = EVERY_S) -> None:
        self.watched, self.every_s = watched, every_s
        self.name = secrets.token_hex(4)
        """Of this start: positions of another one mean nothing."""
        self.changes = 0
        self.closed = False
        self._told_s = 0.0  # what it took to tell the last change
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed = asyncio.Condition()
        self._turn = asyncio.Lock()

    async def run(self) -> None:
        """Looks at the files until `close`; the first look, which reads all that is there, costs no pause."""
        self._loop = asyncio.get_running_loop()
        while not self.closed:
            async with self._turn:
                begun = time.monotonic()
                await self._look()
                cost = time.monotonic() - begun + self._told_s if self.changes > 1 else 0.0
            await asyncio.sleep(max(self.every_s, SHARE * cost))

    def close(self) -> None:
        """Ends every stream; a signal's handler may call it."""
        self.closed = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(lambda: asyncio.ensure_future(self._wake()))

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _look(self) -> None:
        if await asyncio.to_thread(self.watched.look):
            async with self._changed:
                self.changes += 1
                self._changed.notify_all()

    async def page(self) -> str:
        """The page with all that is known now."""
        async with self._turn:
            await self._look()
            return await asyncio.to_thread(self._render)

    def _render(self) -> str:
        return render(self.watched.page() | {"live": f"/events?after={self._position()}"}, connect="'self'")

    async def events(self, after: str) -> AsyncIterator[str]:
        """Server-sent events since a position: `message` with the changes, `reload` where the position is unknown."""
        name, _, rest = after.partition(",")
        numbers = [int(part) for part in rest.split(",") if part.isascii() and part.isdigit()]
        if name != self.name or len(numbers) != 4:
            yield "event: reload\ndata: {}\n\n"
            return
        known, *seen = numbers
        while not self.closed:
            if known != self.changes:
                async with self._turn:
                    begun, known, position = time.monotonic(), self.changes, self._position()
                    text = await asyncio.to_thread(self._update, *seen)
                    self._told_s = time.monotonic() - begun
                    seen = list(self.watched.position)
                yield f"id: {position}\ndata: {text}\n\n"
            elif not await self._change_after(known):
                yield ": still here\n\n"

    async def _change_after(self, known: int) -> bool:
        """Waits for a change, but no longer than STILL_S; whether there was one."""
        try:
            async with asyncio.timeout(STILL_S), self._changed:
                return bool(await self._changed.wait_for(lambda: self.closed or self.changes != known))
        except TimeoutError:
            return False

    def _position(self) -> str:
        return ",".join([self.name, str(self.changes), *map(str, self.watched.position)])

    def _update(self, rollouts: int, groups: int, trained: int) -> str:
        return as_json(self.watched.since(rollouts, groups, trained))


def application(watched: Watched, every_s: float = EVERY_S) -> Starlette:
    """The page at /, its changes at /events."""
    feed = Feed(watched, every_s)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(feed.run())
        try:
            yield
        finally:
            task.cancel()

    async def page(_: Request) -> HTMLResponse:
        return HTMLResponse(await feed.page(), headers={"Cache-Control": "no-store"})

    async def events(request: Request) -> StreamingResponse:
        after = request.headers.get("last-event-id") or request.query_params.get("after", "")
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(feed.events(after), media_type="text/event-stream", headers=headers)

    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"], www_redirect=False)
    app = Starlette(routes=[Route("/", page), Route("/events", events)], middleware=[hosts], lifespan=lifespan)
    app.state.feed = feed
    return app


class _Server(uvicorn.Server):
    """Ends the streams at the signal that ends it, which would wait for them forever otherwise."""

    def __init__(self, config: uvicorn.Config, feed: Feed) -> None:
        super().__init__(config)
        self._feed = feed

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        self._feed.close()


def serve(run: Path, port: int, most_rollouts: int, say: Callable[[str], Any] = print) -> None:
    """Serves the page until Ctrl-C.

    Args:
        port: 0 takes a free one.

    Raises:
        ConfigError: no run folder, or a port that is taken.
    """
    watched = Watched(run, most_rollouts)
    sock = bind(HOST, port)
    sock.listen()  # who opens the address as soon as it is printed is not refused
    say(f"http://{HOST}:{sock.getsockname()[1]}  shows {run} live; Ctrl-C ends this page and nothing else")
    app = application(watched)
    config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="on", timeout_graceful_shutdown=5)
    try:
        _Server(config, app.state.feed).run(sockets=[sock])
    except KeyboardInterrupt:
        pass
    finally:
        sock.close()
