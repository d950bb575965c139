"""Servers join and leave in mid-run: which of them get rollouts, and what becomes of those that run."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from environments.common.server_list import ListedServer
from environments.common.settings import ConfigError
from environments.livecode.config import load_run_config
from environments.livecode.generation import vllm_servers
from environments.livecode.generation.completions import CompletionClient
from tests.livecode.conftest import Generation
from tests.livecode.test_rollouts import SAMPLING
from tests.served import Served

Start = Callable[..., Any]


@pytest.fixture
def start(tokenizer: Any) -> Iterator[Start]:
    """Starts a stand-in; `.url` is its address."""
    with ExitStack() as stack:

        def started(**options: Any) -> Any:
            server: Any = Generation(tokenizer, **options)
            served = Served(server.app())
            stack.callback(served.stop)
            server.url, server.stop = served.url, served.stop
            return server

        yield started


def listed(*urls: str, leaving: Sequence[str] = ()) -> list[ListedServer]:
    return [ListedServer(url=url, leaving=url in leaving) for url in urls]


async def seen(client: CompletionClient, condition: Callable[[], bool]) -> None:
    """Asks for the version until it is so."""
    for _ in range(500):
        await client.weight_version()
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came to that")


async def busy(server: Any, requests: int) -> None:
    while server.running < requests:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


def taken(client: CompletionClient, url: str) -> bool:
    return any(one.url == url and one.state.eligible and not one.joined for one in client._pool.servers)


@pytest.mark.parametrize("version", ["default", "2", "9", "other-run"])
async def test_a_new_server_gets_no_rollout_before_it_has_the_weights_of_the_others(
    start: Start, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_servers, "_CHECK_AGAIN_S", 0.0)
    first, new = start(version="3"), start(version=version)
    async with CompletionClient([first.url]) as client:
        await client.check(context=4096)
        assert await client.weight_version() == 3
        client._pool.apply(listed(first.url, new.url))
        for _ in range(5):
            assert await client.weight_version() == 3  # nor does its version count
            await asyncio.sleep(0.02)
        await asyncio.gather(*(client.generate([1], SAMPLING) for _ in range(6)))
        assert (len(first.requests), new.requests) == (6, [])
        new.version = "3"
        await seen(client, lambda: taken(client, new.url))
        await asyncio.gather(*(client.generate([1], SAMPLING) for _ in range(6)))
        assert len(new.requests) == 3


async def test_a_new_server_that_does_not_fit_gets_nothing_and_ends_nothing(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    first, new = start(version="3"), start(version="3", max_model_len=512)
    async with CompletionClient([first.url]) as client:
        await client.check(context=4096)
        client._pool.apply(listed(first.url, new.url))
        await seen(client, lambda: "it gets no rollouts" in caplog.text)
        await asyncio.gather(*(client.generate([1], SAMPLING) for _ in range(4)))
        assert new.requests == []


async def test_a_server_that_leaves_finishes_its_rollouts_and_gets_no_new_ones(start: Start) -> None:
    first, other, released = start(version="3"), start(version="3"), threading.Event()
    first.script = lambda prompt, number: {"text": "done", "until": released}
    async with CompletionClient([first.url, other.url]) as client:
        await client.weight_version()
        running = [asyncio.create_task(client.generate([1], SAMPLING)) for _ in range(2)]
        await busy(first, 1)
        client._pool.apply(listed(other.url))
        await asyncio.gather(*(client.generate([1], SAMPLING) for _ in range(4)))
        first.version = "2"  # the trainer sends it nothing any more, and it does not hold the others back
        assert await client.weight_version() == 3
        assert (len(first.requests), len(other.requests)) == (1, 5)
        released.set()
        await asyncio.gather(*running)
        assert (len(first.requests), client.counters.resubmitted_failure) == (1, 0)
        client._pool.apply(listed(other.url))
        assert [one.url for one in client._pool.servers] == [other.url]


async def test_the_rollouts_of_a_server_that_is_preempted_are_sampled_by_others(start: Start) -> None:
    first, other = start(version="3"), start(version="3")
    first.script = lambda prompt, number: {"text": "never", "delay": 60.0}
    async with CompletionClient([first.url, other.url]) as client:
        await client.weight_version()
        running = [asyncio.create_task(client.generate([1], SAMPLING)) for _ in range(4)]
        await busy(first, 2)
        client._pool.apply(listed(first.url, other.url, leaving=[first.url]))
        first.stop()
        samples = await asyncio.gather(*running)
        assert {sample.finish_reason for sample in samples} == {"stop"}
        assert len(other.requests) == 4


async def test_a_machine_that_vanishes_while_it_leaves_hands_its_rollouts_over_soon(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_servers, "_LEAVING_SILENT_S", 0.0)
    monkeypatch.setattr(vllm_servers, "_SILENT_ANSWER_S", 0.05)
    monkeypatch.setattr(vllm_servers, "_ANSWER_S", 0.05)
    first, other = start(version="3"), start(version="3")
    first.script = lambda prompt, number: {"text": "never", "delay": 60.0}

    async with CompletionClient([first.url, other.url]) as client:
        await client.weight_version()
        running = [asyncio.create_task(client.generate([1], SAMPLING)) for _ in range(2)]
        await busy(first, 1)
        first.weight_info_silent = True
        client._pool.apply(listed(other.url))
        await seen(client, lambda: all(task.done() for task in running))
        assert len(other.requests) == 2


async def test_a_server_that_is_listed_again_is_checked_and_needs_the_weights_again(start: Start) -> None:
    first, other = start(version="3"), start(version="3")
    async with CompletionClient([first.url, other.url]) as client:
        await client.check(context=4096)
        await client.weight_version()
        client._pool.apply(listed(first.url, other.url, leaving=[other.url]))
        other.version = "default"
        client._pool.apply(listed(first.url, other.url))
        await seen(client, lambda: not client._pool.checks._running)
        await asyncio.gather(*(client.generate([1], SAMPLING) for _ in range(4)))
        assert other.requests == []
        other.version = "3"
        await seen(client, lambda: taken(client, other.url))


def test_servers_are_named_in_one_way(tmp_path: Path, model_dir: Path) -> None:
    (tmp_path / "list").write_text("http://a:1\n")
    model = ["--model", str(model_dir)]
    run = load_run_config(overrides=[*model, "--servers_from", str(tmp_path / "list")])
    assert run.servers_named == [str(tmp_path / "list")]
    with pytest.raises(ConfigError, match="servers names http://b:1 and servers_from names dns://c:1: leave one"):
        load_run_config(overrides=[*model, "--servers_from", "dns://c:1", "--servers", "http://b:1"])
    with pytest.raises(
        ConfigError, match=r"servers_from dns://c:1 with evaluation\.route chat, which takes one server"
    ):
        load_run_config(overrides=[*model, "--servers_from", "dns://c:1", "--evaluation.route", "chat"])
