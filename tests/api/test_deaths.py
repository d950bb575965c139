"""A server that is killed at any moment: no group is lost, none is served twice in one lineage."""

from __future__ import annotations

import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

from environments.api_server.journal import Journal
from tests.api.conftest import Api, group

T = TypeVar("T")
GROUPS = 16


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def forks() -> Iterator[subprocess.Popen[str]]:
    """A process that has imported the server and forks one for each life."""
    argv = [sys.executable, "-m", "tests.api.mortal"]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        yield process


class Immortal:
    """Starts the server again each time it dies, and repeats what was not answered, as the clients do."""

    def __init__(self, path: Path, rng: random.Random, forks: subprocess.Popen[str]) -> None:
        self.path, self.rng, self.forks = path, rng, forks
        self.port = free_port()
        self.api = Api(f"http://127.0.0.1:{self.port}")
        self._start()

    def _start(self) -> None:
        while not self._lives():  # it may die while it reads its journal
            pass

    def _lives(self) -> bool:
        assert self.forks.stdin is not None
        assert self.forks.stdout is not None
        self.forks.stdin.write(f"{self.port} {self.rng.randint(1, 400)} {self.path}\n")
        self.forks.stdin.flush()
        self.pid = int(self.forks.stdout.readline())
        while Path(f"/proc/{self.pid}").exists():
            try:
                self.api.http.get("/health")
                return True
            except httpx.TransportError:
                time.sleep(0.005)
        self._died()
        return False

    def _died(self) -> None:
        assert self.forks.stdout is not None
        assert int(self.forks.stdout.readline()) == -signal.SIGKILL

    def ask(self, call: Callable[[], T]) -> T:
        while True:
            try:
                return call()
            except httpx.TransportError:
                self._died()
                self._start()

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self._died()
        self.api.http.close()


def post(api: Api, path: str, body: dict[str, int]) -> None:
    api.http.post(path, json=body).raise_for_status()


@pytest.mark.parametrize("seed", range(50))
def test_killed_at_any_operation_on_the_disk_it_loses_nothing_and_serves_nothing_twice(
    tmp_path: Path, seed: int, forks: subprocess.Popen[str]
) -> None:
    rng = random.Random(seed)
    server = Immortal(tmp_path / "journal", rng, forks)
    try:
        api, ask = server.api, server.ask
        ask(api.register)
        sent: list[str] = []
        trained: dict[int, list[str]] = {}  # the lineage
        before: dict[int, list[str]] = {}  # of lineages that were left, what came at a step
        step = durable = 0
        while len(trained) < GROUPS // 2:
            action = rng.random()
            if action < 0.5 and len(sent) < GROUPS:
                name = f"g{len(sent)}"
                ask(partial(api.send, name))
                sent.append(name)
                if rng.random() < 0.3:  # an environment that was not answered sends it again
                    ask(lambda: api.send(rng.choice(sent)))
            elif action < 0.8:
                found = ask(partial(api.lease, step))
                if found:
                    assert found == before.get(step, found), "another batch than the last time"
                    trained[step] = found
                    step += 1
            elif action < 0.9:
                durable = step
                ask(partial(post, api, "/ack", {"checkpoint_step": step}))
            else:  # the trainer dies
                before |= trained
                trained = {number: batch for number, batch in trained.items() if number < durable}
                step = durable
                ask(partial(post, api, "/rollback", {"step": step}))
        assert [name for number in sorted(trained) for name in trained[number]] == sent
        assert ask(lambda: api.lease(step)) is None
    finally:
        server.close()


class Command:
    """`atropos run-api --journal`, once it answers or has ended."""

    def __init__(self, journal: Path, **options: Any) -> None:
        port = free_port()
        argv = [sys.executable, "-m", "environments.cli", "run-api", "--port", str(port), "--journal", str(journal)]
        self.process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, **options)
        self.api = Api(f"http://127.0.0.1:{port}")
        end = time.monotonic() + 60
        while self.process.poll() is None and time.monotonic() < end:
            try:
                self.api.http.get("/health").raise_for_status()
                break
            except httpx.TransportError:
                time.sleep(0.05)

    def kill(self) -> str:
        """By kill -9; what it had said."""
        self.process.kill()
        self.api.http.close()
        said: str = self.process.communicate()[1]
        return said

    def said(self) -> str:
        """What it says before it ends by itself, as one that cannot start."""
        text = self.process.communicate(timeout=240)[1]
        self.api.http.close()
        assert self.process.returncode == 2
        assert "Traceback" not in text
        return " ".join(text.split())


def test_the_command_killed_and_started_again_has_its_queue_and_its_leases(tmp_path: Path) -> None:
    command = Command(tmp_path / "journal")
    command.api.register()
    command.api.send("a", "b", "c")
    assert command.api.lease(0) == ["a", "b"]
    command.kill()
    command = Command(tmp_path / "journal")
    assert command.api.lease(0) == ["a", "b"]
    command.api.send("d")
    assert command.api.lease(1) == ["c", "d"]
    assert "1 groups wait, 1 batches are leased" in command.kill()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"atropos-livecode journal 1\n", "which atropos-livecode reads up to commit 582f97f"),
        (b"some notes of mine, not to be overwritten", "not a file of this version"),
    ],
)
def test_a_file_that_is_no_journal_of_this_version_is_left_alone(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "journal"
    path.write_bytes(content)
    assert reason in Command(path).said()
    assert path.read_bytes() == content


def test_one_journal_has_one_server(tmp_path: Path) -> None:
    held = Journal(tmp_path / "journal")
    assert "another process keeps this file" in Command(tmp_path / "journal").said()
    held.close()


def test_a_full_disk_is_507_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "journal"

    def small_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))

    command = Command(path, preexec_fn=small_disk)
    command.api.register()
    command.api.send("a", "b")
    full = command.api.http.post("/scored_data", json=group("large", 9000))
    assert full.status_code == 507
    assert full.json()["detail"] == "the journal's disk is full: free space, then send again"
    assert command.api.lease(0) == ["a", "b"], "the rest goes on"
    assert "is not taken, and must be sent again" in command.kill()
    command = Command(path)
    assert command.api.lease(0) == ["a", "b"]
    assert command.api.send("large") == [{"status": "received"}]
    command.kill()
