"""What the publisher does around the server: what changed, what it writes, and how it fails."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from environments.launch.processes import free_port
from trainer.weight_sync.publisher import DiskPublisher, WeightSyncError, checkpoint_tensors
from trainer.weight_sync.vllm_routes import PublishStats


def published(publisher: DiskPublisher, weights: dict[str, torch.Tensor], version: int) -> PublishStats:
    stats = publisher.publish(weights, version)
    assert stats is not None
    return stats


def test_changed_share_counts_the_served_numbers_that_differ(tmp_path: Path) -> None:
    publisher = DiskPublisher([], tmp_path)
    weights = {"a": torch.zeros(6), "b": torch.ones(2)}
    assert published(publisher, weights, 0).changed_share is None
    weights["a"][0] = 1.0
    assert published(publisher, weights, 1).changed_share == 1 / 8
    assert published(publisher, weights, 2).changed_share == 0.0


def test_an_update_that_bf16_rounds_away_changes_nothing(tmp_path: Path) -> None:
    publisher = DiskPublisher([], tmp_path, dtype="bfloat16")
    publisher.publish({"a": torch.ones(4)}, 0)
    assert published(publisher, {"a": torch.full((4,), 1.001)}, 1).changed_share == 0.0


def test_only_the_last_version_stays_on_disk(tmp_path: Path) -> None:
    publisher = DiskPublisher([], tmp_path)
    for version in range(3):
        publisher.publish({"a": torch.full((2,), float(version))}, version)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith("version-2-")
    assert load_file(left / "model.safetensors")["a"].tolist() == [2.0, 2.0]


def test_a_tied_head_and_wrapper_prefixes_are_left_out() -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = torch.nn.ModuleDict({"embed": torch.nn.Embedding(3, 2)})
            self.lm_head = torch.nn.Linear(2, 3, bias=False)
            embed = self.module["embed"]
            assert isinstance(embed, torch.nn.Embedding)
            self.lm_head.weight = embed.weight

    assert list(checkpoint_tensors(Tied(), torch.float32)) == ["embed.weight"]


def test_a_full_disk_is_one_clear_error() -> None:
    with pytest.raises(WeightSyncError, match=r"weights to /dev/full/weights, phase save"):
        DiskPublisher([], Path("/dev/full/weights")).publish({"a": torch.ones(1)}, 0)


def test_a_server_that_is_gone_is_named_with_the_phase(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(WeightSyncError, match=f"weights to {url}, phase pause: ConnectError"):
        DiskPublisher([url], tmp_path).publish({"a": torch.ones(1)}, 0)


class FailingServer(ThreadingHTTPServer):
    """Answers vLLM's routes and fails at one of them, as a worker does that dies in the middle of a load."""

    def __init__(self, fails_at: str) -> None:
        calls: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                path = self.path.partition("?")[0]
                calls.append(path)
                self.rfile.read(int(self.headers.get("content-length", 0)))
                self.send_response(500 if path == fails_at else 200)
                body = b'{"success": true}'
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.calls = calls
        self.url = f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def failing_server(request: pytest.FixtureRequest) -> Iterator[FailingServer]:
    server = FailingServer(request.param)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("failing_server", ["/update_weights"], indirect=True)
def test_half_loaded_weights_never_sample(failing_server: FailingServer, tmp_path: Path) -> None:
    with pytest.raises(WeightSyncError, match="stays paused") as raised:
        DiskPublisher([failing_server.url], tmp_path).publish({"a": torch.ones(1)}, 0)
    assert (raised.value.phase, raised.value.paused) == ("update", True)
    assert "/resume" not in failing_server.calls


@pytest.mark.parametrize("failing_server", ["/start_weight_update"], indirect=True)
def test_a_failure_before_any_weight_was_touched_resumes(failing_server: FailingServer, tmp_path: Path) -> None:
    with pytest.raises(WeightSyncError, match="phase start") as raised:
        DiskPublisher([failing_server.url], tmp_path).publish({"a": torch.ones(1)}, 0)
    assert not raised.value.paused
    assert failing_server.calls[-1] == "/resume"


class Living(ThreadingHTTPServer):
    """Answers vLLM's routes and knows which folder it loaded; as a new process it has none, under vLLM's own label."""

    def __init__(self, port: int = 0) -> None:
        self.version, self.folder, self.ready, self.paused = "default", "", False, False
        living = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self, status: int, body: dict[str, Any]) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self) -> None:
                self.answer(200, {"weight_version": living.version})

            def do_POST(self) -> None:
                path = self.path.partition("?")[0]
                body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or "null")
                if path == "/init_weight_transfer_engine":
                    living.ready = True
                elif not living.ready and path in ("/start_weight_update", "/update_weights"):
                    self.answer(500, {"error": "no engine"})
                    return
                elif path == "/update_weights":
                    living.folder = body["update_info"]["folder"]
                elif path == "/update_weight_version":
                    living.version = body["new_version"]
                living.paused = path != "/resume" if path in ("/pause", "/resume") else living.paused
                self.answer(200, {"success": True})

            def log_message(self, format: str, *args: object) -> None:
                pass

        super().__init__(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self._thread = threading.Thread(target=self.serve_forever)
        self._thread.start()

    def end(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


def test_a_server_that_is_gone_is_left_out_and_gets_the_weights_when_it_is_back(tmp_path: Path) -> None:
    first, second = Living(), Living()
    servers = [first, second]
    try:
        publisher = DiskPublisher([first.url, second.url], tmp_path)
        assert published(publisher, {"a": torch.ones(1)}, 1).missing == ()
        assert publisher.catch_up() == []
        port = second.server_port
        servers.remove(second)
        second.end()
        assert published(publisher, {"a": torch.zeros(1)}, 2).missing == (second.url,)
        assert (first.version, publisher.catch_up()) == ("2", [])
        back = Living(port)
        servers.append(back)
        assert publisher.catch_up() == [back.url]
        assert (back.version, back.folder, back.paused) == ("2", first.folder, False)
        assert load_file(Path(back.folder) / "model.safetensors")["a"].tolist() == [0.0]
        assert publisher.catch_up() == []
        servers.remove(back)
        back.end()
        again = Living(port)  # and one that was started again between two publications
        servers.append(again)
        assert published(publisher, {"a": torch.ones(1)}, 3).missing == ()
        assert (again.version, again.folder) == ("3", first.folder)
    finally:
        for server in servers:
            server.end()


def test_no_server_left_is_an_error(tmp_path: Path) -> None:
    urls = [f"http://127.0.0.1:{free_port()}" for _ in range(2)]
    with pytest.raises(WeightSyncError, match=f"weights to {urls[0]}, phase pause: ConnectError") as raised:
        DiskPublisher(urls, tmp_path).publish({"a": torch.ones(1)}, 0)
    assert raised.value.gone
