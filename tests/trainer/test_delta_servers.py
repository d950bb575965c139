"""Servers under deltas: one that was away, refuses a delta or finds it torn gets all weights."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from environments.launch.processes import free_port
from tests.trainer.delta_weights import Weights, cut, flip, is_delta, loaded, published, same_bits
from trainer.weight_sync.delta import DeltaPublisher
from trainer.weight_sync.vllm_routes import UNCHANGED, WeightSyncError
from trainer.weight_sync.weight_delta import (
    FILE,
    DeltaError,
    chain_of,
)


class Server(ThreadingHTTPServer):
    """Answers vLLM's routes, and reads what it is given as vLLM's worker does; `refuses` deltas or hangs up."""

    def __init__(self, port: int = 0) -> None:
        self.version, self.refuses, self.gone = "default", False, False
        self.folders: list[Path] = []
        self.kinds: list[bool] = []
        """Whether each was a delta."""
        self.weights: dict[str, Tensor] = {}
        server = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self, status: int, body: dict[str, Any]) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self) -> None:
                self.answer(200, {"weight_version": server.version})

            def do_POST(self) -> None:
                path = self.path.partition("?")[0]
                body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or "null")
                if server.gone:
                    self.connection.close()
                    return
                if path == "/update_weights":
                    folder = Path(body["update_info"]["folder"])
                    server.folders.append(folder)
                    server.kinds.append(is_delta(folder))
                    try:
                        if server.refuses and is_delta(folder):
                            raise DeltaError("not shared")
                        server.weights = {name: tensor.clone() for name, tensor in loaded(folder).items()}
                    except DeltaError as error:
                        self.answer(500, {"error": f"{error} ({UNCHANGED})"})
                        return
                elif path == "/update_weight_version":
                    server.version = body["new_version"]
                self.answer(200, {"success": True})

            def log_message(self, format: str, *args: object) -> None:
                pass

        super().__init__(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def end(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    found = [Server(), Server()]
    yield found
    for server in found:
        server.end()


def serves(server: Server, weights: Weights) -> bool:
    return all(same_bits(server.weights[name], tensor) for name, tensor in weights.now.items())


def test_a_server_that_was_started_again_or_was_away_gets_all_weights(servers: list[Server], tmp_path: Path) -> None:
    first, second = servers
    publisher = DeltaPublisher([first.url, second.url], tmp_path, dtype="bfloat16", full_every=9)
    weights = Weights()
    for version in range(2):
        publisher.publish(weights.next(), version)
    second.gone = True
    for version in range(2, 4):
        assert published(publisher, weights.next(), version).missing == (second.url,)
    assert serves(first, weights)
    assert not serves(second, weights)
    second.gone, second.version, second.weights = False, "default", {}  # another process, with its start's weights
    assert publisher.catch_up() == [second.url]
    assert (second.version, serves(second, weights)) == ("3", True)
    second.version, second.weights = "default", {}
    publisher.publish(weights.next(), 4)
    assert first.kinds[-1]
    assert serves(first, weights)
    assert serves(second, weights)


def test_a_delta_that_a_server_refuses_is_followed_by_all_weights_and_stands_on_them_next(
    servers: list[Server], tmp_path: Path
) -> None:
    first, second = servers
    publisher = DeltaPublisher([first.url, second.url], tmp_path, dtype="bfloat16", full_every=9)
    weights = Weights()
    publisher.publish(weights.next(), 0)
    second.refuses = True
    published(publisher, weights.next(), 1)
    assert second.kinds == [False, True, False]
    assert first.kinds == [False, True]
    second.refuses = False
    published(publisher, weights.next(), 2)
    chain = chain_of(second.folders[-1])
    assert (chain.base, len(chain.deltas)) == (second.folders[2], 1)
    assert set(tmp_path.iterdir()) == set(chain.folders)
    assert serves(first, weights)
    assert serves(second, weights)


@pytest.mark.parametrize("torn", [flip, cut])
def test_a_delta_that_is_torn_after_it_was_written_is_followed_by_all_weights(
    servers: list[Server], tmp_path: Path, torn: Callable[[Path], None]
) -> None:
    first, _ = servers
    publisher = DeltaPublisher([first.url], tmp_path, dtype="bfloat16", full_every=9)
    weights = Weights()
    for version in range(2):
        publisher.publish(weights.next(), version)
    torn(first.folders[-1] / FILE)
    first.version = "default"
    assert publisher.catch_up() == [first.url]
    assert first.kinds[2:] == [True, False]
    assert serves(first, weights)
    assert publisher.catch_up() == []
    publisher.publish(weights.next(), 2)
    assert (first.kinds[-1], serves(first, weights)) == (True, True)


def test_a_publication_that_no_server_got_is_repeated_as_a_delta_of_what_they_have(tmp_path: Path) -> None:
    server = Server(port := free_port())
    publisher = DeltaPublisher([server.url], tmp_path, dtype="bfloat16", full_every=9)
    weights = Weights()
    publisher.publish(weights.next(), 0)
    server.end()
    weights.next()
    for _ in range(2):
        with pytest.raises(WeightSyncError) as raised:
            publisher.publish(weights.now, 1)
        assert raised.value.gone
    server = Server(port)
    try:
        published(publisher, weights.now, 1)
        assert len(chain_of(server.folders[-1]).deltas) == 1
        assert serves(server, weights)
    finally:
        server.end()
