"""Fetching from a hub: the real client against a server of the hub's routes on this machine."""

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

import pytest

COMMIT = "c" * 40
REPOSITORY = "NousResearch/RLVR_Coding_Problems"
FETCH = """
import sys
from environments.dataset.sources import RECIPES, download
from environments.common.settings import ConfigError
try:
    print([path.read_text() for path in download(RECIPES["rlvr"].sources[0])])
except ConfigError as error:
    print(error)
"""


class Hub(BaseHTTPRequestHandler):
    """One data set of two files; counts what is downloaded."""

    files: dict[str, bytes]
    downloaded: list[str]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        if not path.startswith((f"/api/datasets/{REPOSITORY}", f"/datasets/{REPOSITORY}/resolve/")):
            return self._send(404, b"{}", body, {"X-Error-Code": "RepoNotFound"})
        if path.startswith(f"/api/datasets/{REPOSITORY}/tree/"):
            tree = [{"type": "file", "path": n, "size": len(d), "oid": "0" * 40} for n, d in self.files.items()]
            return self._send(200, json.dumps(tree).encode(), body, {})
        if path.startswith("/api/"):
            siblings = [{"rfilename": name} for name in self.files]
            return self._send(
                200, json.dumps({"id": REPOSITORY, "sha": COMMIT, "siblings": siblings}).encode(), body, {}
            )
        name = path.partition(f"/resolve/{COMMIT}/")[2]
        data = self.files[name]
        if body:
            self.downloaded.append(name)
        mark = hashlib.sha256(data).hexdigest()
        return self._send(200, data, body, {"X-Repo-Commit": COMMIT, "ETag": f'"{mark}"'})

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
    files = {"data/rl_train.jsonl": b'{"problem": "s"}\n', "README.md": b"-"}
    handler = type("OneHub", (Hub,), {"files": files, "downloaded": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(url: str, home: Path) -> str:
    variables = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", FETCH],
        env={n: v for n, v in os.environ.items() if not n.lower().endswith("_proxy")} | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_only_the_sources_files_are_fetched_and_only_once(hub: tuple[str, type[Hub]], tmp_path: Path) -> None:
    url, handler = hub
    for _ in range(2):
        assert '{"problem": "s"}' in fetch(url, tmp_path)
    assert handler.downloaded == ["data/rl_train.jsonl"]


def test_a_hub_that_has_it_not_or_is_away_is_one_error_with_the_way_out(
    hub: tuple[str, type[Hub]], tmp_path: Path
) -> None:
    url, handler = hub
    handler.files = {}
    assert "--from" in fetch(url, tmp_path)
    away = fetch("http://127.0.0.1:9", tmp_path / "other")
    assert away.startswith(f"data build: source rlvr: {REPOSITORY} cannot be downloaded")
    assert "give local copies with --from DIR" in away
