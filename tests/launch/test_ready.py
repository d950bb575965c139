"""Who waits for whom at the start, and what is said about it."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from environments.common.settings import ConfigError
from environments.launch.processes import free_port
from environments.launch.serve_model import ServeConfig, serve_command
from tests.served import Served
from tests.support.forked import completed
from trainer.weight_sync.vllm_routes import WeightServer, WeightSyncError, check_all

# What serve-model does before it becomes vLLM: here it becomes a server that is ready after a while.
BECOMES = """
import os, sys
from environments.launch.serve_model import say_when_ready
say_when_ready(sys.argv[1], "vLLM is ready: here")
os.execv(sys.executable, [sys.executable, "-S", "-c", sys.argv[2], sys.argv[1]])
"""
LATE = """
import http.server, sys, time
asked = []
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        asked.append(1)
        self.send_response(200 if len(asked) > 2 else 503)
        self.end_headers()
    def log_message(self, *_): pass
server = http.server.HTTPServer(("127.0.0.1", int(sys.argv[1].split(":")[2].split("/")[0])), Handler)
server.timeout = 0.1
while True:
    server.handle_request()
"""


def becoming(code: str, url: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", BECOMES, url, code], stdout=subprocess.PIPE, text=True)


def test_readiness_is_said_by_a_process_that_ends_with_it() -> None:
    url = f"http://127.0.0.1:{free_port()}/health"
    server = becoming(LATE, url)
    assert server.stdout is not None
    with server.stdout as out:
        line = out.readline()
        assert line.startswith("vLLM is ready: here, after ")
        # Only the server is left to hold the pipe: the one that spoke has ended, and is no child of the server's.
        assert Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text() == ""
        server.kill()
        server.wait()
        assert out.read() == ""


def test_a_server_that_dies_at_its_start_is_never_called_ready() -> None:
    server = becoming("raise SystemExit(3)", f"http://127.0.0.1:{free_port()}/health")
    out, _ = server.communicate(timeout=240)  # returns when nobody holds the pipe any more
    assert (server.returncode, out) == (3, "")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 2048}))
    return tmp_path


def test_vllm_s_own_log_is_quiet_unless_asked_for(model: Path) -> None:
    assert serve_command(ServeConfig(model=model))[1]["VLLM_LOGGING_LEVEL"] == "ERROR"
    assert serve_command(ServeConfig(model=model, vllm_log="info"))[1]["VLLM_LOGGING_LEVEL"] == "INFO"


def test_a_server_that_compiles_nothing_does_not_compile_at_its_first_request_either(model: Path) -> None:
    eager, compiled = (serve_command(ServeConfig(model=model, device="cpu", enforce_eager=e))[1] for e in (True, False))
    assert eager["TORCHDYNAMO_DISABLE"] == "1"
    assert "TORCHDYNAMO_DISABLE" not in compiled


def test_a_context_beyond_the_model_s_positions_is_refused_before_vllm_starts(model: Path) -> None:
    assert serve_command(ServeConfig(model=model, max_model_len=2048))
    with pytest.raises(ConfigError, match="max_model_len = 2049: the model has 2048 positions"):
        serve_command(ServeConfig(model=model, max_model_len=2049))


def test_every_address_is_reached_from_this_machine(model: Path) -> None:
    assert ServeConfig(model=model, host="0.0.0.0", port=7).local_url == "http://127.0.0.1:7"
    assert ServeConfig(model=model, host="10.0.0.1", port=7).local_url == "http://10.0.0.1:7"


def healthy(port: int, status: int = 200) -> Served:
    async def health(_: Any) -> Response:
        return Response(status_code=status)

    return Served(Starlette(routes=[Route("/health", health)]), port)


def test_the_trainer_waits_for_servers_that_start_later(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    server = WeightServer(f"http://127.0.0.1:{port}", 10.0)
    started: list[Served] = []
    timer = threading.Timer(1.5, lambda: started.append(healthy(port)))
    timer.start()
    with caplog.at_level(logging.INFO, "trainer.weight_sync.vllm_routes"):
        check_all([server], resumed=False, wait_s=60.0)
    timer.join()
    started[0].stop()
    said = [record.getMessage() for record in caplog.records if "waiting for vLLM" in record.getMessage()]
    assert len(said) == 1
    assert f"http://127.0.0.1:{port}" in said[0]


def test_the_trainer_waits_for_no_server_that_will_never_fit() -> None:
    other = healthy(free_port(), 404)
    begun = time.monotonic()
    with pytest.raises(WeightSyncError, match="something else than a vLLM server"):
        check_all([WeightServer(other.url, 10.0)], resumed=False, wait_s=600.0)
    assert time.monotonic() - begun < 300
    other.stop()
    with pytest.raises(WeightSyncError, match="start vLLM there first"):
        check_all([WeightServer(f"http://127.0.0.1:{free_port()}", 10.0)], resumed=False, wait_s=0.1)


def test_no_request_is_logged_by_the_trainer(smollm2: Path, tmp_path: Path) -> None:
    """The trainer as a process, up to its first error: httpx would log a line for each request by then."""
    vllm = healthy(free_port())
    main = str(Path(__file__).resolve().parents[2] / "trainer" / "main.py")
    flags = ["--model", str(smollm2), "--run_dir", str(tmp_path / "run"), "--weights.servers", vllm.url]
    words = [sys.executable, main, *flags, "--api.url", vllm.url, "--checkpoint.export", "false"]
    done = completed(words, COLUMNS="200")
    vllm.stop()
    assert done.returncode == 1
    assert f"{vllm.url}/contract" in done.stderr.splitlines()[-1]
    assert "HTTP Request" not in done.stderr
