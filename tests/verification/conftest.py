"""The judge's HTTP service as a real process."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from environments.launch.processes import free_port

TOKEN = "a token that is long enough"


@dataclass
class Service:
    """A running service."""

    url: str
    process: subprocess.Popen[bytes]
    tests_dir: Path

    def client(self, token: str | None = TOKEN) -> httpx.Client:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60)


Start = Callable[..., Service]


@contextlib.contextmanager
def starting(folder: Path) -> Iterator[Start]:
    """Starts services; ends them all."""
    started: list[subprocess.Popen[bytes]] = []

    def start(**settings: str) -> Service:
        port, tests_dir = free_port(), folder / f"tests-{len(started)}"
        wanted = {"port": str(port), "token": TOKEN, "workers": "1", "tests_dir": str(tests_dir)} | settings
        variables = {f"VERIFIER_{name.upper()}": value for name, value in wanted.items()}
        process = subprocess.Popen(
            [sys.executable, "-m", "verifier_app", "serve"], env=os.environ | variables, stderr=subprocess.DEVNULL
        )
        started.append(process)
        url = f"http://127.0.0.1:{port}"
        for _ in range(600):
            with contextlib.suppress(httpx.TransportError):
                httpx.get(url + "/health")
                return Service(url, process, tests_dir)
            assert process.poll() is None
            time.sleep(0.05)
        raise AssertionError("the service does not start")

    try:
        yield start
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(30)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with starting(tmp_path) as make:
        yield make


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One for the tests that leave it as it was."""
    with starting(tmp_path_factory.mktemp("service")) as make:
        yield make(workers="2", max_body_mb="2")
