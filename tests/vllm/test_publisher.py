"""What the publisher does around the server: what changed, what it writes, and how it fails."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from environments.demo.processes import free_port
from trainer.weights import DiskPublisher, WeightSyncError, checkpoint_tensors, make_publisher


def test_changed_share_counts_the_served_numbers_that_differ(tmp_path: Path) -> None:
    publisher = DiskPublisher([], tmp_path)
    weights = {"a": torch.zeros(6), "b": torch.ones(2)}
    assert publisher.publish(weights, 0).changed_share is None
    weights["a"][0] = 1.0
    assert publisher.publish(weights, 1).changed_share == 1 / 8
    assert publisher.publish(weights, 2).changed_share == 0.0


def test_an_update_that_bf16_rounds_away_changes_nothing(tmp_path: Path) -> None:
    publisher = DiskPublisher([], tmp_path, dtype="bfloat16")
    publisher.publish({"a": torch.ones(4)}, 0)
    assert publisher.publish({"a": torch.full((4,), 1.001)}, 1).changed_share == 0.0


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
            self.lm_head.weight = self.module["embed"].weight

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


def test_backends_that_are_not_built_say_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"weights\.backend = 'nccl' is not built yet: use disk"):
        make_publisher("nccl", [], tmp_path)
