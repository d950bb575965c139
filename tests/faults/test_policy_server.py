"""The stand-in for vLLM is token-exact: what it reports is what the published weights give."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from transformers import AutoModelForCausalLM

from environments.launch.processes import free_port
from environments.livecode.generation.completions import CompletionClient, SamplingParams
from tests.served import Served
from tests.support.policy_server import Engine, Server
from tests.support.proxy import Proxy
from trainer.config import TrainerConfig
from trainer.parallel import Parallel, distributed
from trainer.process.signals import StopRequest
from trainer.weight_sync import session
from trainer.weight_sync.publisher import DiskPublisher, WeightSyncError, probe, verify_sync
from trainer.weight_sync.vllm_routes import WeightServer

PROMPT = [1, 36, 37, 39, 40, 41, 1]


@pytest.fixture
def url(policy_model: Path) -> Iterator[str]:
    session = Served(Server(Engine(policy_model, token_s=0.005), 256).app())
    yield session.url
    session.stop()


class Policy:
    """The weights that are published, as transformers computes with them."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def change(self) -> None:
        torch.manual_seed(1)
        with torch.no_grad():
            for weight in self.model.parameters():
                weight.mul_(1 + 0.3 * torch.randn_like(weight))

    def logprobs(self, prompt: list[int], tokens: list[int], temperature: float = 1.0) -> list[float]:
        with torch.no_grad():
            logits = self.model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
        picked = (logits / temperature).log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])
        found: list[float] = picked[:, 0].tolist()
        return found


def test_greedy_and_sampled_logprobs_are_those_of_the_published_weights(
    url: str, policy_model: Path, tmp_path: Path
) -> None:
    policy = Policy(policy_model)
    policy.change()
    with pytest.raises(WeightSyncError, match="log-probabilities differ"):
        verify_sync(url, PROMPT, policy.logprobs, tolerance=1e-4)
    DiskPublisher([url], tmp_path).publish(policy.model, 3)
    assert verify_sync(url, PROMPT, policy.logprobs, version=3, tolerance=1e-4) < 1e-4
    drawn = probe(url, PROMPT, temperature=0.7, seed=1)
    assert drawn.logprobs == pytest.approx(policy.logprobs(PROMPT, drawn.tokens, 0.7), abs=1e-4)
    assert probe(url, PROMPT, temperature=0.7, seed=1).tokens == drawn.tokens


async def test_a_rollout_under_way_keeps_its_tokens_and_goes_on_with_the_new_weights(
    url: str, policy_model: Path, tmp_path: Path
) -> None:
    policy = Policy(policy_model)
    async with CompletionClient([url]) as client:
        await client.check(context=256)
        longest = asyncio.create_task(client.generate([1] * 8, SamplingParams(200, 1.0, seed=5)))
        samples = [asyncio.create_task(client.generate(PROMPT, SamplingParams(60, 1.0, seed=n))) for n in range(12)]
        await asyncio.sleep(0.1)
        await asyncio.to_thread(DiskPublisher([url], tmp_path).publish, policy.model, 1)
        done = await asyncio.gather(longest, *samples)
    assert {version for sample in done for version, _, _ in sample.versions} <= {0, 1}
    for sample in done:
        assert sample.versions[-1][2] == len(sample.ids)
    # The same weights under another name: the numbers are the model's, before and after.
    assert done[1].logprobs == pytest.approx(policy.logprobs(PROMPT, list(done[1].ids)), abs=1e-4)


def test_an_update_that_a_dead_trainer_left_open_does_not_bar_the_next_one(
    url: str, policy_model: Path, tmp_path: Path
) -> None:
    policy = Policy(policy_model)
    policy.change()
    begun: tuple[tuple[str, dict[str, Any] | None], ...] = (
        ("/pause?mode=keep", None),
        ("/init_weight_transfer_engine", {"init_info": {}}),
        ("/start_weight_update", {}),
    )
    for path, body in begun:
        httpx.post(f"{url}{path}", json=body, trust_env=False).raise_for_status()
    assert httpx.post(f"{url}/start_weight_update", json={}, trust_env=False).status_code == 500
    DiskPublisher([url], tmp_path).publish(policy.model, 4)
    assert verify_sync(url, PROMPT, policy.logprobs, version=4, tolerance=1e-4) < 1e-4


def servers(parallel: Parallel, port: int, folder: Path, stop: StopRequest) -> session.ServerSession:
    config = TrainerConfig(model=folder, run_dir=folder)
    return session.ServerSession(DiskPublisher([f"http://127.0.0.1:{port}"], folder), config, parallel, stop)


def test_the_trainer_waits_for_its_only_server_to_come_back(policy_model: Path, tmp_path: Path) -> None:
    port, weights = free_port(), dict(Policy(policy_model).model.state_dict())
    with distributed(device="cpu") as parallel, ThreadPoolExecutor(1) as trainer:
        waits = servers(parallel, port, tmp_path, StopRequest(60))
        publishing = trainer.submit(waits.patiently, weights, 2)  # type: ignore[arg-type]
        time.sleep(1.5)
        assert not publishing.done()
        session = Served(Server(Engine(policy_model, token_s=0.0), 256).app(), port)
        assert len(list(tmp_path.iterdir())) <= 1  # what could not be published does not pile up
        stats = publishing.result(60)
        assert stats is not None
        assert stats.missing == ()
    assert probe(session.url, PROMPT).versions == [("2", 0, 16)]
    session.stop()


def test_a_trainer_that_is_to_end_does_not_wait(policy_model: Path, tmp_path: Path) -> None:
    stop = StopRequest(60)
    stop.requested = True
    with distributed(device="cpu") as parallel:
        waits = servers(parallel, free_port(), tmp_path, stop)
        with pytest.raises(WeightSyncError, match="phase pause: ConnectError"):
            waits.patiently({"a": torch.ones(1)}, 2)  # type: ignore[arg-type]


def test_weights_without_a_pause_are_refused(url: str, tmp_path: Path) -> None:
    begun: dict[str, dict[str, Any]] = {"/init_weight_transfer_engine": {"init_info": {}}, "/start_weight_update": {}}
    for path, sent in begun.items():
        httpx.post(f"{url}{path}", json=sent, trust_env=False).raise_for_status()
    body = {"update_info": {"folder": str(tmp_path)}}
    refused = httpx.post(f"{url}/update_weights", json=body, trust_env=False)
    assert (refused.status_code, "without a pause" in refused.text) == (500, True)


@pytest.fixture
def second(policy_model: Path) -> Iterator[Proxy]:
    """One more server, behind a network that can be cut."""
    session = Served(Server(Engine(policy_model, token_s=0.005), 256).app())
    proxy = Proxy(session.url)
    yield proxy
    proxy.close()
    session.stop()


@pytest.mark.parametrize(
    "route",
    [
        *("update_weights", "reset_prefix_cache", "update_weight_version"),
        # Slow: such a server is asked to go on, and each time it is waited for.
        *(pytest.param(route, marks=pytest.mark.slow) for route in ("init_weight_transfer_engine", "resume")),
    ],
)
def test_one_of_several_servers_that_hangs_in_an_update_is_left_out_and_brought_up_later(
    url: str, second: Proxy, policy_model: Path, tmp_path: Path, route: str
) -> None:
    policy = Policy(policy_model)
    policy.change()
    publisher = DiskPublisher([url, second.url], tmp_path, deadline_s=60.0)
    publisher.servers[1] = WeightServer(second.url, 1.0)
    second.stall_after = f"POST /{route}".encode()
    stats = publisher.publish(policy.model, 1)
    assert stats is not None
    assert stats.missing == (second.url,)
    assert probe(url, PROMPT).versions == [("1", 0, 16)]
    second.stall_after = None
    second.set("open")
    publisher.servers[1] = WeightServer(second.url, 60.0)
    # After the resume only the answer was lost: it serves the new weights, and nothing is to be done.
    behind = [] if route == "resume" else [second.url]
    assert publisher.behind() == behind
    assert publisher.catch_up() == behind
    assert publisher.catch_up() == []
    assert verify_sync(second.url, PROMPT, policy.logprobs, version=1, tolerance=1e-4) < 1e-4


def test_a_server_that_may_be_half_loaded_is_not_resumed_by_a_later_failure(
    url: str, second: Proxy, policy_model: Path, tmp_path: Path
) -> None:
    policy = Policy(policy_model)
    folder, target = tmp_path / "weights", f"http://{second.target[0]}:{second.target[1]}"
    publisher = DiskPublisher([url, second.url], folder, deadline_s=60.0)
    publisher.servers[1] = WeightServer(second.url, 2.0)
    second.stall_after = b"POST /update_weights"
    assert publisher.publish(policy.model, 1).missing == (second.url,)  # type: ignore[union-attr]
    second.stall_after = None
    second.set("open")
    publisher.servers[1] = WeightServer(second.url, 60.0)
    # The next update fails before anything is read: of the one before nobody knows.
    (file,) = folder.glob("*/model.safetensors")
    file.rename(tmp_path / "aside")
    assert publisher.catch_up() == []
    assert httpx.get(f"{target}/is_paused", trust_env=False).json() == {"is_paused": True}
    # Nor by the next trainer.
    fresh = DiskPublisher([second.url], tmp_path / "fresh", deadline_s=60.0)
    with pytest.raises(WeightSyncError, match="stays paused"):
        fresh._update(fresh.servers[0], tmp_path, "1")
    assert httpx.get(f"{target}/is_paused", trust_env=False).json() == {"is_paused": True}
    (tmp_path / "aside").rename(file)
    assert publisher.catch_up() == [second.url]
    assert verify_sync(second.url, PROMPT, policy.logprobs, version=1, tolerance=1e-4) < 1e-4


def test_a_server_that_does_not_sample_after_its_update_ends_the_run(
    url: str, policy_model: Path, tmp_path: Path
) -> None:
    slow = Served(Server(Engine(policy_model, token_s=5.0), 256).app())
    publisher = DiskPublisher([url, slow.url], tmp_path, deadline_s=60.0)
    publisher.servers[1] = WeightServer(slow.url, 5.0)
    try:
        with pytest.raises(WeightSyncError, match=f"weights to {slow.url}, phase verify: no answer") as raised:
            publisher.publish(Policy(policy_model).model, 1, PROMPT)
    finally:
        slow.stop()
    assert not raised.value.late


@pytest.mark.parametrize("order", [1, -1])
def test_where_one_server_hangs_and_the_others_are_gone_these_are_waited_for(
    second: Proxy, policy_model: Path, tmp_path: Path, order: int
) -> None:
    gone = f"http://127.0.0.1:{free_port()}"
    second.stall_after = b"POST /update_weights"
    publisher = DiskPublisher([second.url, gone][::order], tmp_path, deadline_s=1.0)
    with pytest.raises(WeightSyncError, match=f"weights to {gone}, phase pause: ConnectError") as raised:
        publisher.publish(Policy(policy_model).model, 1)
    assert raised.value.gone
    assert len(list(tmp_path.iterdir())) == 1  # the one that hangs may still read it


def test_the_only_server_that_hangs_in_an_update_ends_it(second: Proxy, policy_model: Path, tmp_path: Path) -> None:
    second.stall_after = b"POST /update_weights"
    with pytest.raises(WeightSyncError, match="phase update: no answer within 1 s; it stays paused"):
        DiskPublisher([second.url], tmp_path, deadline_s=1.0).publish(Policy(policy_model).model, 1)


def test_servers_are_asked_for_their_health_side_by_side(tmp_path: Path) -> None:
    asked = threading.Barrier(3)

    def health() -> PlainTextResponse:
        asked.wait(10)
        return PlainTextResponse("")

    app = FastAPI()
    app.get("/health")(health)
    three = [Served(app) for _ in range(3)]
    try:
        DiskPublisher([server.url for server in three], tmp_path, deadline_s=20.0).check()
    finally:
        for server in three:
            server.stop()


def test_a_trainer_that_goes_on_starts_without_a_server_that_is_gone(url: str, tmp_path: Path) -> None:
    publisher = DiskPublisher([url, f"http://127.0.0.1:{free_port()}"], tmp_path)
    with pytest.raises(WeightSyncError, match=r"phase health: ConnectError.*start vLLM there first"):
        publisher.check()
    publisher.check(resumed=True)
    with pytest.raises(WeightSyncError, match=r"HTTP 404: weights\.servers names something else"):
        DiskPublisher([f"{url}/v1"], tmp_path).check(resumed=True)
