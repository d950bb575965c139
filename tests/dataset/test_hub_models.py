"""A model's name on the hub is taken wherever a folder is: the real client against a server of the hub's routes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.support.forked import Forked

ROOT = Path(__file__).resolve().parents[2]
NAME = "somebody/Tiny"
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 64, "hidden_size": 16,
    "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
    "max_position_embeddings": 4096, "tie_word_embeddings": True, "rope_theta": 10000.0, "rms_norm_eps": 1e-6,
}  # fmt: skip


class Hub(BaseHTTPRequestHandler):
    """One model; counts what is downloaded."""

    files: dict[str, bytes]
    downloaded: list[str]
    refusal: tuple[int, str] = (404, "RepoNotFound")
    known = NAME

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        commit = "c" * 40
        if not path.startswith((f"/api/models/{self.known}", f"/{self.known}/resolve/")):
            return self._send(self.refusal[0], b"{}", body, {"X-Error-Code": self.refusal[1]})
        if path.startswith(f"/api/models/{self.known}/tree/"):
            tree = [{"type": "file", "path": n, "size": len(d), "oid": "0" * 40} for n, d in self.files.items()]
            return self._send(200, json.dumps(tree).encode(), body, {})
        if path.startswith("/api/"):
            told = {"id": self.known, "sha": commit, "siblings": [{"rfilename": name} for name in self.files]}
            return self._send(200, json.dumps(told).encode(), body, {})
        data = self.files[path.partition(f"/resolve/{commit}/")[2]]
        if body:
            self.downloaded.append(path.rpartition("/")[2])
        mark = hashlib.sha256(data).hexdigest()
        return self._send(200, data, body, {"X-Repo-Commit": commit, "ETag": f'"{mark}"'})

    def _send(self, status: int, data: bytes, body: bool, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[tuple[str, type[Hub]]]:
    files = {
        "config.json": json.dumps(CONFIG).encode(),
        "tokenizer_config.json": b"{}",
        "tokenizer.json": b"{ }",
        "model.safetensors": b"weights",
        "README.md": b"-",
        "original/consolidated.pth": b"-",
    }
    handler = type("OneHub", (Hub,), {"files": files, "downloaded": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    thread.join()
    server.server_close()


def run(url: str, home: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    given = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    plain = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    kind = subprocess.Popen if words[0] == "-c" else Forked  # a few modules alone, or torch as well
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with kind([sys.executable, *words], env=plain | given | variables, cwd=ROOT, **pipes) as process:
        out, error = process.communicate(timeout=280)
    return subprocess.CompletedProcess(words, process.returncode, out, error)


FOLDER = """
import sys
from environments.common.errors import LivecodeError, report
from environments.common.hub import model_folder
try:
    print(model_folder(sys.argv[1], weights=sys.argv[2] == "True"))
except LivecodeError as error:
    sys.exit(report(error))
"""


def test_a_model_is_downloaded_once_and_only_what_is_needed(hub: tuple[str, type[Hub]], tmp_path: Path) -> None:
    url, handler = hub
    small = ["config.json", "tokenizer.json", "tokenizer_config.json"]
    for _ in range(2):
        done = run(url, tmp_path, "-c", FOLDER, NAME, "False")
        assert done.returncode == 0, done.stderr
        assert sorted(path.name for path in Path(done.stdout.strip()).iterdir()) == small
    assert sorted(handler.downloaded) == small
    for _ in range(2):
        done = run(url, tmp_path, "-c", FOLDER, NAME, "True")
        assert (Path(done.stdout.strip()) / "model.safetensors").read_bytes() == b"weights"
    assert sorted(handler.downloaded) == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    offline = run("http://127.0.0.1:9", tmp_path, "-c", FOLDER, NAME, "True", HF_HUB_OFFLINE="1")
    assert offline.stdout == done.stdout, offline.stderr


def test_the_budget_and_the_server_take_a_name(hub: tuple[str, type[Hub]], tmp_path: Path) -> None:
    url, handler = hub
    words = ("-m", "trainer.budget", "--model", NAME, "--gpus", "1", "--batch.context", "1024")
    done = run(url, tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert "on 1 x h100" in done.stdout
    served = run(url, tmp_path, "-m", "environments.cli", "serve-model", "--model", NAME, "--dry-run")
    assert served.returncode == 0, served.stderr
    assert "models--somebody--Tiny/snapshots/" in served.stdout
    assert "model.safetensors" not in handler.downloaded  # neither needs the weights


COMMANDS = {
    "environment": ("-m", "environments.cli", "run-env", "livecode", "evaluate", "--model", "{name}",
                    "--env.run_dir", "{folder}/run"),
    "trainer": ("trainer/main.py", "--model", "{name}", "--run_dir", "{folder}/run"),
    "serve-model": ("-m", "environments.cli", "serve-model", "--model", "{name}"),
    "budget": ("-m", "trainer.budget", "--model", "{name}"),
    "demo": ("-m", "environments.cli", "demo", "--model", "{name}", "--run-dir", "{folder}/run"),
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_a_name_that_nobody_knows_is_one_line_in_every_command(
    hub: tuple[str, type[Hub]], tmp_path: Path, command: str
) -> None:
    words = [word.format(name="nobody/nothing", folder=tmp_path) for word in COMMANDS[command]]
    done = run(hub[0], tmp_path, *words)
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error model nobody/nothing: neither a folder nor a model on the hub"), done.stderr
    assert "Traceback" not in done.stderr


def test_a_hub_that_is_away_a_gate_and_offline_are_said_in_seconds(hub: tuple[str, type[Hub]], tmp_path: Path) -> None:
    url, handler = hub
    away = run("http://127.0.0.1:9", tmp_path, "-c", FOLDER, NAME, "True")
    assert f"model {NAME}: no folder, and the hub at http://127.0.0.1:9 cannot be reached (ConnectError)" in away.stderr
    offline = run(url, tmp_path, "-c", FOLDER, NAME, "True", HF_HUB_OFFLINE="1")
    assert f"model {NAME}: not on this machine, and HF_HUB_OFFLINE forbids to download it" in offline.stderr
    handler.refusal = (403, "GatedRepo")
    gated = run(url, tmp_path, "-c", FOLDER, "somebody/Gated", "True")
    assert "its owner wants a permission: ask for it on the hub and set HF_TOKEN" in gated.stderr
    nothing = run(url, tmp_path, "-c", FOLDER, "gpt-fake", "True")
    assert "model gpt-fake: no model there (no config.json); give a model's folder, or a name" in nothing.stderr
