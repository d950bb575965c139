"""What the API server seldom meets: a taken port, a full disk, a body that stops, more bodies than fit, a reset."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message

from environments.api_server import journal, request_bodies
from environments.api_server.journal import Journal
from environments.api_server.launch import AddressError, PortInUseError, bind
from environments.api_server.request_bodies import AT_ONCE, Bodies
from environments.api_server.server import build
from environments.api_server.store import Store
from tests.api.conftest import Api
from tests.served import Served


def test_a_taken_port_is_named_with_the_fix() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortInUseError, match=f"port {port} on 127.0.0.1 is in use.*choose another --port"):
            bind("127.0.0.1", port)


def test_a_kind_of_address_that_this_machine_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_of_it(*_: Any) -> socket.socket:
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))

    monkeypatch.setattr("environments.api_server.launch.socket.socket", none_of_it)
    with pytest.raises(AddressError, match="--host ::1: this machine has no such addresses"):
        bind("::1", 8000)


@pytest.mark.parametrize(("number", "status"), [(errno.ENOSPC, 507), (errno.EDQUOT, 507), (errno.EIO, 500)])
def test_a_disk_that_refuses_keeps_the_group_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, status: int
) -> None:
    store = Store(Journal(tmp_path / "journal"))
    served = Served(build(store, most_bytes=1 << 20))
    api = Api(served.url)
    try:
        api.register()
        api.send("a")
        with monkeypatch.context() as patch:

            def refuse(*_: Any, **__: Any) -> int:
                raise OSError(number, os.strerror(number))

            patch.setattr(Journal, "add", refuse)
            answer = api.http.post("/scored_data", json=_group("b"))
        assert answer.status_code == status
        assert ("free space, then send again" in answer.text) is (status == 507)
        assert api.status() == (0, 1)
        assert [one["status"] for one in api.send("b")] == ["received"]  # sent again it is taken
        counted = 'disk_full"} 1.0' in api.http.get("/metrics").text
        assert counted is (status == 507)
    finally:
        api.http.close()
        served.stop()
        store.close()


def _group(name: str) -> dict[str, Any]:
    return {"tokens": [[1, 2]], "masks": [[-100, 2]], "scores": [1.0], "group_overrides": {"group_id": name}}


def test_a_reset_empties_the_journal_too(tmp_path: Path) -> None:
    store = Store(Journal(tmp_path / "journal"))
    served = Served(build(store, most_bytes=1 << 20, allow_reset=True))
    api = Api(served.url)
    api.register()
    api.send("a", "b")
    api.lease(0)
    assert api.http.get("/reset_data").text == "Reset successful"
    assert api.status() == (0, 0)
    assert [one["status"] for one in api.send("a")] == ["received"]
    api.http.close()
    served.stop()
    store.close()
    again = Store(Journal(tmp_path / "journal"))
    assert (list(again.waiting), again.leases, again.held) == (["a"], [], {"a"})
    again.close()


def test_a_closed_journal_has_nothing_to_tidy(tmp_path: Path) -> None:
    closed = Journal(tmp_path / "journal")
    closed.close()
    closed.close()
    assert closed.tidy() is False
    assert journal._begins_as_old(tmp_path / "none") is False


async def answered(bodies: Bodies, receive: Any, length: int) -> list[Message]:
    """What is sent to the caller of a POST with this Content-Length."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"content-length", str(length).encode())]
    scope = {"type": "http", "method": "POST", "path": "/", "headers": headers, "query_string": b""}
    await bodies(scope, receive, send)
    return sent


async def no_app(*_: Any) -> None:
    raise AssertionError("a body that is refused reaches the app")


async def test_a_body_that_stops_is_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_bodies, "SILENCE_S", 0.0)
    [start, body] = await answered(Bodies(no_app, 100), asyncio.Event().wait, 50)
    assert start["status"] == 408
    assert (b"connection", b"close") in [(name.lower(), value) for name, value in start["headers"]]
    assert b"no byte of the body came" in body["body"]


async def test_a_body_beyond_what_may_be_on_its_way_is_503_and_the_room_comes_back() -> None:
    bodies, hold = Bodies(no_app, 100), asyncio.Event()

    def sender() -> Any:
        pieces = iter([b"x" * 90])

        async def receive() -> Message:
            for piece in pieces:
                return {"type": "http.request", "body": piece, "more_body": True}
            await hold.wait()
            return {"type": "http.disconnect"}

        return receive

    held = [asyncio.create_task(answered(bodies, sender(), 100)) for _ in range(AT_ONCE)]
    await asyncio.sleep(0)
    assert bodies._arriving == 90 * AT_ONCE
    [start, body] = await answered(bodies, sender(), 100)
    assert (start["status"], b"more bodies are on their way" in body["body"]) == (503, True)
    hold.set()
    assert await asyncio.gather(*held) == [[]] * AT_ONCE  # who hung up gets no answer
    assert bodies._arriving == 0
