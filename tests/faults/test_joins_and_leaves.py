"""Servers join, leave and are preempted a hundred times in one run: each group counts once, and no token is of weights
that a server had before it joined.

The environment, the API server with its journal, the trainer's client and its publisher are real; the servers are
scripted, and a step only counts.
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from environments.api_server.journal import Journal
from environments.api_server.server import build
from environments.api_server.store import Store
from environments.common import server_list
from environments.common.server_list import ServerList, WatchedServers
from environments.livecode import serving as serving_module
from environments.livecode.config import RunConfig
from environments.livecode.generation import completions, server_pool, vllm_servers
from environments.livecode.problems.load import save_problems
from environments.tools.audit import audit
from tests.livecode.conftest import Generation, model_dir, tokenizer
from tests.livecode.test_environment import problem, serving
from tests.served import Served
from trainer.data.api_client import AtroposClient, StopWaiting
from trainer.weight_sync.publisher import DiskPublisher
from trainer.weight_sync.vllm_routes import WeightSyncError

__all__ = ["model_dir", "tokenizer"]  # fixtures
EVENTS = 100
GROUP, BATCH = 4, 8


class Updated(Generation):
    """A scripted server that takes weights from a folder; `early` are requests that came before it had any."""

    url = ""
    paused = False
    fits = True
    loaded = "default"
    early = 0

    async def generate(self, request: Request) -> Response:
        if (await request.json())["sampling_params"]["max_tokens"] > 1:
            self.early += self.loaded == "default"
            while self.paused:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return await super().generate(request)

    async def control(self, request: Request) -> Response:
        body = json.loads(await request.body() or b"null") or {}
        match request.url.path:
            case "/pause":
                self.paused = True
            case "/resume":
                self.paused = False
            case "/update_weights" if not self.fits:
                return JSONResponse({"error": {"message": "another model"}}, 500)
            case "/update_weights":
                self.loaded = step_of(Path(body["update_info"]["folder"]))
            case "/update_weight_version":
                self.version = body["new_version"]
        return JSONResponse({"success": True})

    async def is_paused(self, _: Request) -> Response:
        return JSONResponse({"is_paused": self.paused})

    def app(self) -> Starlette:
        controls = (
            *("pause", "resume", "init_weight_transfer_engine", "start_weight_update", "update_weights"),
            *("finish_weight_update", "update_weight_version", "reset_prefix_cache"),
        )
        routes = [Route(f"/{name}", self.control, methods=["POST"]) for name in controls]
        return Starlette(routes=[*super().app().routes, Route("/is_paused", self.is_paused), *routes])


def step_of(folder: Path) -> str:
    """The step in published weights; of a real model's the folder's name."""
    (file,) = folder.glob("*.safetensors")
    with safe_open(str(file), framework="pt") as tensors:
        (name,) = [name for name in tensors.keys() if name == "step"] or [""]  # noqa: SIM118
        return str(int(tensors.get_tensor(name))) if name else folder.name


class Fleet:
    """The servers, and the file that lists them."""

    def __init__(self, path: Path, tokenizer: Any, draw: random.Random) -> None:
        self.path, self.draw, self._tokenizer = path, draw, tokenizer
        self.all: list[Updated] = []
        self.listed: dict[str, bool] = {}  # address: whether it is marked as leaving
        self._running: dict[str, Served] = {}
        self._stopping: list[threading.Thread] = []

    def start(self) -> Updated:
        """A new server, not in the list yet."""
        server = Updated(self._tokenizer, script=lambda *_: {"text": "no program", "delay": self.draw.random() / 25})
        served = Served(server.app())
        server.url = served.url
        self._running[server.url] = served
        self.all.append(server)
        return server

    def join(self) -> Updated:
        server = self.start()
        self.listed[server.url] = False
        self.write()
        return server

    def mark(self, url: str) -> None:
        self.listed[url] = True
        self.write()

    def remove(self, url: str) -> None:
        self.listed.pop(url, None)
        self.write()

    def stop(self, url: str) -> None:
        """As SIGTERM's end: connections break."""
        if url in self._running:
            self._stopping.append(threading.Thread(target=self._running.pop(url).stop))
            self._stopping[-1].start()

    def write(self) -> None:
        beside = self.path.with_suffix(".new")
        beside.write_text("".join(f"{url}{' leaving' if mark else ''}\n" for url, mark in self.listed.items()))
        beside.replace(self.path)

    @property
    def answered(self) -> int:
        return sum(len(server.requests) - server.running for server in self.all)

    def close(self) -> None:
        for url in list(self._running):
            self.stop(url)
        for stopping in self._stopping:
            stopping.join()


@pytest.fixture
def fleet(tmp_path: Path, tokenizer: Any) -> Iterator[Fleet]:
    made = Fleet(tmp_path / "servers", tokenizer, random.Random(0))
    yield made
    made.close()


def publisher_of(fleet: Fleet, folder: Path) -> tuple[DiskPublisher, WatchedServers]:
    watched = WatchedServers(ServerList(str(fleet.path), "weights.servers_from"))
    return DiskPublisher(watched, folder, deadline_s=20.0), watched


def weights(step: int) -> dict[str, torch.Tensor]:
    return {"step": torch.tensor([float(step)])}


def test_a_server_that_joins_gets_the_last_publication_and_one_that_leaves_no_more(
    fleet: Fleet, tmp_path: Path
) -> None:
    first, second = fleet.join(), fleet.join()
    publisher, watched = publisher_of(fleet, tmp_path / "weights")
    publisher.publish(weights(1), 1)
    assert publisher.behind() == []
    third = fleet.start()
    third.version = "1"  # of another run: the name alone proves nothing
    fleet.listed |= {third.url: False}
    fleet.mark(first.url)
    publisher.pause()  # for a step; the next publication comes without the one that leaves
    watched.look()
    assert publisher.behind() == [second.url, third.url]
    assert publisher.catch_up() == [second.url, third.url]
    assert (third.version, third.loaded, third.paused) == ("1", "1", False)
    stats = publisher.publish(weights(2), 2)
    assert stats is not None
    assert stats.missing == ()
    assert [server.loaded for server in (first, second, third)] == ["1", "2", "2"]
    for _ in range(500):
        if not first.paused:
            break
        threading.Event().wait(0.01)
    assert not first.paused  # its rollouts can end


def test_a_new_server_that_cannot_take_the_weights_ends_no_publication_and_is_left_alone(
    fleet: Fleet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = fleet.join()
    publisher, watched = publisher_of(fleet, tmp_path / "weights")
    publisher.publish(weights(1), 1)
    bad = fleet.join()
    bad.fits = False
    watched.look()
    stats = publisher.publish(weights(2), 2)
    assert stats is not None
    assert stats.missing == (bad.url,)
    assert "another model" in caplog.text
    assert publisher.behind() == []
    assert (first.loaded, bad.loaded) == ("2", "default")


def test_where_every_server_leaves_the_publication_is_tried_again(fleet: Fleet, tmp_path: Path) -> None:
    first = fleet.join()
    publisher, watched = publisher_of(fleet, tmp_path / "weights")
    fleet.mark(first.url)
    watched.look()
    with pytest.raises(WeightSyncError, match="every server is leaving") as raised:
        publisher.publish(weights(1), 1)
    assert raised.value.gone
    fleet.join()
    watched.look()
    publisher.publish(weights(1), 1)
    assert [server.loaded for server in fleet.all] == ["default", "1"]


class Trainer(threading.Thread):
    """Takes batches, writes what it took, publishes; until it is stopped."""

    def __init__(self, url: str, run: Path, fleet: Fleet) -> None:
        super().__init__(daemon=True)
        self.run_dir, self.stopped, self.steps = run, threading.Event(), 0
        self.api = AtroposClient(url, poll_s=0.02)
        self.api.register(batch_size=BATCH, max_token_len=-1, starting_step=0, num_steps=10**6)
        self.publisher, self.watched = publisher_of(fleet, run / "weights")
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._publish(0)
            while True:
                groups = self.api.lease(self.steps, 60.0, self._on_wait)
                row = {"step": self.steps, "groups": [group.group_id for group in groups], "dropped": {}}
                with (self.run_dir / "trained.jsonl").open("a") as file:
                    file.write(json.dumps(row) + "\n")
                self.steps += 1
                self.watched.look()
                self._publish(self.steps)
                self.api.acknowledge(self.steps)
        except StopWaiting:
            pass
        except BaseException as error:  # raised by the test
            self.error = error

    def _publish(self, version: int) -> None:
        while not self.stopped.is_set():
            try:
                self.publisher.publish(weights(version), version)
                return
            except WeightSyncError as error:
                if not error.gone:
                    raise
                self.watched.look()

    def _on_wait(self, _: float) -> None:
        if self.stopped.is_set():
            raise StopWaiting("stopped")
        self.watched.look()
        if self.publisher.behind():
            self.publisher.catch_up()


@asynccontextmanager
async def training(run: Path, fleet: Fleet) -> AsyncIterator[Trainer]:
    with ExitStack() as stack:
        store = Store(Journal(run / "api.journal"))
        api = Served(build(store))
        stack.callback(store.close)
        stack.callback(api.stop)
        trainer = Trainer(api.url, run, fleet)
        trainer.url = api.url  # type: ignore[attr-defined]
        trainer.start()
        try:
            yield trainer
        finally:
            trainer.stopped.set()
            await asyncio.to_thread(trainer.join, 60.0)
            trainer.api.close()


async def until(condition: Callable[[], bool], trainer: Trainer) -> None:
    for _ in range(6000):
        if condition():
            return
        assert trainer.error is None, trainer.error
        await asyncio.sleep(0.005)
    raise AssertionError("it never came to that")


def one_event(fleet: Fleet, draw: random.Random) -> None:
    """A server joins or leaves: marked, taken from the list, preempted after it was announced or without a word."""
    staying = [url for url, leaving in fleet.listed.items() if not leaving]
    if len(staying) < 2 or (len(staying) < 5 and draw.random() < 0.5):
        fleet.join()
        return
    url = draw.choice(staying)
    match draw.choice(["marked", "removed", "announced", "preempted"]):
        case "marked":
            fleet.mark(url)
        case "removed":
            fleet.remove(url)
        case "announced":
            fleet.mark(url)
            fleet.stop(url)
        case "preempted":
            fleet.stop(url)
            fleet.remove(url)
    for marked in [one for one, leaving in fleet.listed.items() if leaving and draw.random() < 0.5]:
        fleet.remove(marked)
        fleet.stop(marked)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])  # slow: other moments
async def test_a_hundred_joins_and_leaves_lose_and_repeat_no_group(
    tmp_path: Path, model_dir: Path, fleet: Fleet, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_list, "WATCH_S", 0.02)
    monkeypatch.setattr(server_pool, "_LOOK_S", 0.02)
    monkeypatch.setattr(serving_module, "_POLL_S", 0.02)
    monkeypatch.setattr(vllm_servers, "_CHECK_AGAIN_S", 0.05)
    monkeypatch.setattr(completions, "_WAIT_FOR_WEIGHTS_S", 0.02)
    monkeypatch.setattr(completions, "BACKOFF_S", (0.01, 0.1))
    draw, run = random.Random(seed), tmp_path / "run"
    run.mkdir()
    save_problems([problem(number) for number in range(6)], tmp_path / "problems.jsonl")
    for _ in range(3):
        fleet.join()
    async with training(run, fleet) as trainer:
        env = {
            "problems": str(tmp_path / "problems.jsonl"), "group_size": GROUP, "context": 2048, "max_new_tokens": 100,
            "run_dir": str(run), "max_concurrent_rollouts": 16, "max_staleness": 4, "dynamic_sampling": False,
            "rollout_server_url": trainer.url,  # type: ignore[attr-defined]
        }  # fmt: skip
        config = RunConfig.model_validate({"model": str(model_dir), "servers_from": str(fleet.path), "env": env})
        async with serving(config) as (_, task):
            await until(lambda: fleet.answered > 8 or task.done(), trainer)
            for _ in range(EVENTS):
                before = fleet.answered
                one_event(fleet, draw)
                wanted = before + draw.randrange(1, 6)
                await until(lambda wanted=wanted: fleet.answered >= wanted or task.done(), trainer)  # type: ignore[misc]
            done = trainer.steps
            await until(lambda: trainer.steps >= done + 2 or task.done(), trainer)
            assert not task.done(), task.result()
    assert trainer.error is None
    assert sum(server.early for server in fleet.all) == 0
    joined = fleet.all[3:]
    assert sum(bool(server.requests) for server in joined) >= len(joined) // 3  # the others left before they were ready
    found = audit(run)
    assert found.violations == []
    counts = found.counts
    assert counts["groups trained on"] == BATCH // GROUP * counts["steps trained"] > 20
    assert counts["dropped by the environment: infrastructure"] == 0
    on_the_way = counts["groups in an outbox"] + counts["groups waiting at the API server"]
    dropped = sum(n for name, n in counts.items() if name.startswith("dropped by the environment"))
    assert counts["groups made"] == counts["groups trained on"] + dropped + on_the_way
