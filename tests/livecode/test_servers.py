"""Servers are checked before work starts, left out while they are of no use, and named with what is wrong."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

import pytest

from environments.livecode.generation import vllm_servers
from environments.livecode.generation.completions import CompletionClient
from environments.livecode.generation.vllm_servers import (
    RolloutDeadlineExceeded,
    RolloutError,
    ServerAway,
    ServerRefused,
    parse_version,
)
from tests.livecode.conftest import Generation
from tests.livecode.test_rollouts import SAMPLING, closed_port
from tests.served import Served


async def test_a_good_server_passes_the_check(generation: Any) -> None:
    async with CompletionClient([generation.url]) as client:
        await client.check(context=4096)
        assert await client.weight_version() == 0


async def test_a_server_that_is_down_is_named_at_start() -> None:
    url = closed_port()
    async with CompletionClient([url]) as client:
        with pytest.raises(ServerAway, match=f"{url} does not answer.*Start vLLM"):
            await client.check(context=10)


async def test_a_run_that_goes_on_does_without_a_server_that_is_away_until_it_is_back(
    generation: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_servers, "_CHECK_AGAIN_S", 0.0)
    url = closed_port()
    generation.version = "3"
    back = Generation(tokenizer, version="2")
    async with CompletionClient([url, generation.url]) as client:
        with pytest.raises(ServerAway):  # at its first start a run wants all of them
            await client.check(context=4096)
        await client.check(context=4096, patience_s=60.0)
        assert await client.weight_version() == 3
        back.max_model_len = 512  # started again with another context
        served = Served(back.app(), port=int(url.rpartition(":")[2]))
        try:
            for _ in range(3):
                assert await client.weight_version() == 3
                await asyncio.sleep(0.1)
            await asyncio.gather(*(client.generate([1], SAMPLING) for _ in range(4)))
            assert back.requests == []
            back.max_model_len = 4096
            for _ in range(500):
                await asyncio.sleep(0.02)
                if await client.weight_version() == 2:
                    break
            assert await client.weight_version() == 2
            asked = len(back.requests)
            await asyncio.gather(*(client.generate([1], SAMPLING) for _ in range(4)))
            assert len(back.requests) == asked + 2
        finally:
            served.stop()


async def test_a_run_that_goes_on_waits_for_its_first_server(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_servers, "_WAIT_FOR_FIRST_S", 0.1)
    url = closed_port()
    async with CompletionClient([url]) as client:
        with pytest.raises(RolloutError, match=f"no server after 0.2 s: servers: {url} does not answer"):
            await client.check(context=10, patience_s=0.2)
        waiting = asyncio.create_task(client.check(context=10, patience_s=60.0))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        served = Served(Generation(tokenizer, version="3").app(), port=int(url.rpartition(":")[2]))
        try:
            await waiting
            assert await client.weight_version() == 3
        finally:
            served.stop()


async def test_where_a_trainer_has_named_weights_before_those_without_a_name_are_not_step_0(generation: Any) -> None:
    async with CompletionClient([generation.url]) as client:
        client.published = True  # as the run's folder says
        assert await client.weight_version() is None
        generation.version = "0"
        assert await client.weight_version() == 0


async def test_a_context_above_the_servers_names_the_flag(generation: Any) -> None:
    generation.max_model_len = 512
    async with CompletionClient([generation.url]) as client:
        with pytest.raises(ServerRefused, match=r"512 tokens, env.context is 1024.*--max_model_len 1024"):
            await client.check(context=1024)


async def test_a_server_without_health_is_no_vllm_and_the_message_names_the_chat_route(generation: Any) -> None:
    async with CompletionClient([generation.url + "/openai"]) as client:
        with pytest.raises(ServerRefused, match=r"no vLLM.*--evaluation.route chat"):
            await client.check(context=1024)


async def test_logprobs_before_the_temperature_are_noticed(generation: Any) -> None:
    generation.raw_logprobs = True
    async with CompletionClient([generation.url]) as client:
        with pytest.raises(ServerRefused, match="--logprobs-mode processed_logprobs"):
            await client.check(context=10)


async def test_the_oldest_served_version_counts(generation: Any, tokenizer: Any) -> None:
    generation.version = "12"
    served = Served(Generation(tokenizer, version="11").app())
    try:
        async with CompletionClient([generation.url, served.url, closed_port()]) as client:
            assert await client.weight_version() == 11
    finally:
        served.stop()


async def test_a_server_that_came_back_gets_nothing_before_it_has_the_current_weights(
    generation: Any, tokenizer: Any
) -> None:
    back = Generation(tokenizer)
    generation.version = "3"
    served = Served(back.app())
    try:
        async with CompletionClient([generation.url, served.url]) as client:
            assert await client.weight_version() == 3
            samples = await asyncio.gather(*(client.generate([1], SAMPLING) for _ in range(4)))
            assert {sample.versions[0][0] for sample in samples} == {3}
            assert back.requests == []
            back.version = "3"
            assert await client.weight_version() == 3
            await asyncio.gather(*(client.generate([1], SAMPLING) for _ in range(4)))
            assert len(back.requests) == 2
            back.version = "default"  # started again, and asked before anybody has looked
            samples = await asyncio.gather(*(client.generate([1], SAMPLING) for _ in range(4)))
            assert {sample.versions[0][0] for sample in samples} == {3}
    finally:
        served.stop()


async def test_rollouts_of_a_server_that_stands_still_go_elsewhere(
    generation: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_servers, "_ANSWER_S", 0.2)
    monkeypatch.setattr(vllm_servers, "_SILENT_S", 0.5)
    generation.script = lambda prompt, number: {"text": "ab"}
    generation.version = "3"
    asked: list[bytes] = []
    opened: list[asyncio.StreamWriter] = []

    async def stand_still(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened.append(writer)
        head = await reader.readuntil(b"\r\n\r\n")
        if b"POST" in head:
            asked.append(head)

    still = await asyncio.start_server(stand_still, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{still.sockets[0].getsockname()[1]}"
    async with CompletionClient([url, generation.url]) as client:
        work = asyncio.gather(*(client.generate([1], SAMPLING) for _ in range(8)))
        while not work.done():
            assert await client.weight_version() == 3
            await asyncio.sleep(0.05)
        assert all(list(one.ids) == [*tokenizer.encode("ab"), tokenizer.eos_token_id] for one in await work)
        assert client.counters.resubmitted_failure == len(asked) == 4
        await client.generate([1], SAMPLING)
        assert len(asked) == 4
    for writer in opened:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    still.close()
    await still.wait_closed()


async def test_a_server_that_stays_at_older_weights_holds_nobody_up(
    generation: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Generation(tokenizer, version="4")
    old.script = lambda prompt, number: {"text": "ab", "delay": 60.0}  # paused
    generation.script = lambda prompt, number: {"text": "ab"}
    generation.version = "4"
    served = Served(old.app())
    try:
        async with CompletionClient([served.url, generation.url]) as client:
            assert await client.weight_version() == 4
            work = asyncio.create_task(client.generate([1], SAMPLING))
            for _ in range(3000):
                await asyncio.sleep(0.01)
                if old.running:
                    break
            generation.version = "5"
            assert await client.weight_version() == 4
            assert not work.done()
            monkeypatch.setattr(vllm_servers, "_SILENT_S", 0.0)
            await asyncio.sleep(0.01)
            assert await client.weight_version() == 5
            assert client.troubles == f"{served.url} has other weights than most servers"
            assert (await work).versions[0][0] == 5
            await asyncio.gather(*(client.generate([1], SAMPLING) for _ in range(4)))
            assert len(old.requests) == 1
            old.version = "5"
            assert await client.weight_version() == 5
            assert client.troubles == ""
    finally:
        served.stop()


async def test_where_all_servers_are_silent_no_rollout_is_given_up(
    generation: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_servers, "_SILENT_S", 0.0)
    monkeypatch.setattr(vllm_servers, "_ANSWER_S", 1e-6)  # as in an update, which all get at the same time
    monkeypatch.setattr(vllm_servers, "_SILENT_ANSWER_S", 1e-6)
    generation.script = lambda prompt, number: {"text": "ab", "delay": 0.5}
    async with CompletionClient([generation.url]) as client:
        work = asyncio.create_task(client.generate([1], SAMPLING))
        while not work.done():
            assert await client.weight_version() is None
            await asyncio.sleep(0.02)
        assert await client.weight_version() is None
        assert client.counters.resubmitted_failure == 0
        assert client.troubles == f"{generation.url} does not answer"
        await client.generate([1], SAMPLING)
        assert client.troubles == ""  # a rollout is a sign of life too


async def test_a_server_that_names_no_weights_is_not_silent(generation: Any, tokenizer: Any) -> None:
    plain = Generation(tokenizer)
    app = plain.app()
    app.router.routes = [route for route in app.router.routes if route.path != "/weight_info"]  # type: ignore[attr-defined]
    served = Served(app)
    try:
        async with CompletionClient([served.url, generation.url]) as client:
            assert await client.weight_version() == 0
            await asyncio.gather(*(client.generate([1], SAMPLING) for _ in range(4)))
        assert len(plain.requests) == len(generation.requests) == 2
    finally:
        served.stop()


async def test_an_aborted_first_request_is_no_misfit(generation: Any) -> None:
    generation.first_reason = "abort"
    async with CompletionClient([generation.url]) as client:
        with pytest.raises(ServerAway, match=r"a first request failed: .*finish_reason 'abort'"):
            await client.check(context=10)


async def test_connections_notice_a_machine_that_went_away_without_a_word(generation: Any) -> None:
    async with CompletionClient([generation.url]) as client, client._connections.lane() as http:
        async with http.stream("GET", generation.url + "/health") as response:
            connected = response.extensions["network_stream"].get_extra_info("socket")
            assert connected.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60


async def test_without_a_server_that_has_the_weights_rollouts_wait(generation: Any) -> None:
    generation.version = "3"
    async with CompletionClient([generation.url], deadline_s=30) as client:
        assert await client.weight_version() == 3
        generation.version = "default"
        assert await client.weight_version() is None
        waiting = asyncio.create_task(client.generate([1], SAMPLING))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        assert generation.requests == []
        generation.version = "0"  # a trainer that went back to its beginning says so
        assert await client.weight_version() == 0
        assert (await waiting).versions[0][0] == 0
    async with CompletionClient([generation.url], deadline_s=0.2) as client:
        await client.weight_version()
        generation.version = "default"
        await client.weight_version()
        with pytest.raises(RolloutDeadlineExceeded, match="waits for the current weights"):
            await client.generate([1], SAMPLING)


def test_a_version_is_an_optimizer_step() -> None:
    assert (parse_version("default"), parse_version("0"), parse_version("41")) == (0, 0, 41)
    with pytest.raises(ServerRefused, match="'v2' is not a number of batches"):
        parse_version("v2")
