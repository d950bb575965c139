"""The client of the generation server: token-exact, and no rollout lost to a server's trouble."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import sys
from typing import Any

import httpx
import pytest

from environments.livecode.generation import connections
from environments.livecode.generation.completions import CompletionClient, SamplingParams
from environments.livecode.generation.vllm_responses import GENERATE, Unusable, only_choice, sampled
from environments.livecode.generation.vllm_servers import RolloutDeadlineExceeded, ServerRefused
from tests.livecode.conftest import Generation
from tests.served import Served

SAMPLING = SamplingParams(max_new_tokens=50, temperature=0.7)


def closed_port() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


async def test_a_sample_is_the_engines_ids_with_their_logprobs(generation: Any, tokenizer: Any) -> None:
    generation.script = lambda prompt, number: {"text": "ab"}
    async with CompletionClient([generation.url]) as client:
        sample = await client.generate([1, 2, 3], SAMPLING)
    assert list(sample.ids) == [*tokenizer.encode("ab"), tokenizer.eos_token_id]
    assert list(sample.logprobs) == [-0.5, -0.501, -0.502]
    assert (sample.finish_reason, sample.versions) == ("stop", [(0, 0, 3)])


async def test_a_pool_of_connections_stays_small_however_many_rollouts_run(generation: Any) -> None:
    # A pool's work for one request grows with its connections.
    generation.script = lambda prompt, number: {"text": "ab", "delay": 0.5}
    async with CompletionClient([generation.url]) as client:
        await asyncio.gather(*(client.generate([1], SAMPLING) for _ in range(150)))
        pools = [lane.http._transport._pool.connections for lane in client._connections.lanes]  # type: ignore[attr-defined]
        assert generation.most_running > 64
        assert len(pools) == 3
        assert max(map(len, pools)) <= 64
        assert all(lane.running == 0 for lane in client._connections.lanes)


async def test_answers_that_stall_in_their_middle_hold_up_no_other(
    generation: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "STALL_S", 0.3)
    generation.script = lambda prompt, number: {"text": "ab"}
    stalled: list[asyncio.StreamWriter] = []

    async def stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if b"POST" in await reader.readuntil(b"\r\n\r\n"):
            writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"cho')
            stalled.append(writer)

    server = await asyncio.start_server(stall, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with CompletionClient([f"http://127.0.0.1:{port}", generation.url]) as client:
        samples = await asyncio.gather(*(client.generate([1], SAMPLING) for _ in range(24)))
        assert len(stalled) >= 8  # more than are received at the same time
        assert client.counters.resubmitted_failure >= 8
    assert all(list(one.ids) == [*tokenizer.encode("ab"), tokenizer.eos_token_id] for one in samples)
    for writer in stalled:
        writer.close()
    server.close()
    await server.wait_closed()


async def test_nothing_of_an_answer_waits_for_a_garbage_collection(generation: Any) -> None:
    async with CompletionClient([generation.url]) as client:
        gc.collect()  # what the tests before have left
        gc.disable()
        try:
            await client.generate([1], SAMPLING)
            left = [one for one in gc.get_objects() if type(one) is httpx.Response and one.url.path == GENERATE]
        finally:
            gc.enable()
    assert left == []


async def test_a_long_sample_takes_twelve_bytes_a_token(generation: Any, tokenizer: Any) -> None:
    generation.script = lambda prompt, number: {"text": "ab" * 5000}
    async with CompletionClient([generation.url]) as client:
        sample = await client.generate([1], SamplingParams(max_new_tokens=20_000, temperature=0.7))
    assert len(sample.ids) == 10_001
    assert sys.getsizeof(sample.ids) + sys.getsizeof(sample.logprobs) < 13 * 10_001


async def test_the_request_samples_the_whole_distribution(generation: Any) -> None:
    async with CompletionClient([generation.url]) as client:
        await client.generate([1, 2, 3], SamplingParams(50, 0.7, seed=11))
    assert generation.requests[0]["token_ids"] == [1, 2, 3]
    params = generation.requests[0]["sampling_params"]
    assert (params["temperature"], params["top_p"], params["top_k"], params["seed"]) == (0.7, 1.0, 0, 11)


async def test_tokens_of_two_weight_versions_keep_their_spans(generation: Any) -> None:
    def update_midway(prompt: str, number: int) -> dict[str, Any]:
        asyncio.get_running_loop().call_later(0.05, setattr, generation, "version", "8")
        return {"text": "abcdef", "delay": 0.2}

    generation.version, generation.script = "7", update_midway
    async with CompletionClient([generation.url]) as client:
        sample = await client.generate([1], SAMPLING)
    assert sample.versions == [(7, 0, 3), (8, 3, 7)]


async def test_an_abort_is_sent_again_and_counted(generation: Any) -> None:
    answers = [{"text": "a", "finish_reason": "abort"}, {"text": "b", "finish_reason": "length"}]
    generation.script = lambda prompt, number: answers[number]
    async with CompletionClient([generation.url]) as client:
        sample = await client.generate([1], SAMPLING)
        assert client.counters.resubmitted_abort == 1
    assert (sample.finish_reason, len(sample.ids)) == ("length", 1)


async def test_a_number_that_stands_for_nan_is_refused(generation: Any) -> None:
    generation.script = lambda prompt, number: {"text": "a", "logprobs": [-0.5, -9999.0]}
    async with CompletionClient([generation.url]) as client:
        with pytest.raises(ServerRefused, match="not finite; the served weights are damaged"):
            await client.generate([1], SAMPLING)


async def test_a_logprob_just_above_zero_is_zero(generation: Any) -> None:
    generation.script = lambda prompt, number: {"text": "a", "logprobs": [1e-7, -0.5]}
    async with CompletionClient([generation.url]) as client:
        assert list((await client.generate([1], SAMPLING)).logprobs) == [0.0, -0.5]


async def test_a_dead_server_costs_no_rollout(generation: Any) -> None:
    async with CompletionClient([closed_port(), generation.url]) as client:
        samples = await asyncio.gather(*(client.generate([1], SAMPLING) for _ in range(6)))
        assert client.counters.resubmitted_failure >= 1
    assert len(samples) == 6


async def test_a_server_in_trouble_is_one_line_in_the_log(generation: Any, caplog: pytest.LogCaptureFixture) -> None:
    dead = closed_port()
    async with CompletionClient([dead, generation.url]) as client:
        await asyncio.gather(*(client.generate([1], SAMPLING) for _ in range(20)))
    lines = [record.message for record in caplog.records if "in trouble" in record.message]
    assert len(lines) == 1
    assert dead in lines[0]


async def test_a_server_that_fails_is_left_alone_for_a_while(generation: Any, tokenizer: Any) -> None:
    broken = Generation(tokenizer, status=500)
    served = Served(broken.app())
    try:
        async with CompletionClient([served.url, generation.url]) as client:
            await client.generate([1], SAMPLING)
            failed = client.counters.resubmitted_failure
            for _ in range(5):
                await client.generate([1], SAMPLING)
            assert client.counters.resubmitted_failure == failed == 1
    finally:
        served.stop()


async def test_the_least_loaded_server_comes_first(generation: Any, tokenizer: Any) -> None:
    second = Generation(tokenizer)
    served = Served(second.app())
    for server in (generation, second):
        server.script = lambda prompt, number: {"text": "a", "delay": 0.3}
    try:
        async with CompletionClient([generation.url, served.url]) as client:
            await asyncio.gather(*(client.generate([1], SAMPLING) for _ in range(8)))
    finally:
        served.stop()
    assert (len(generation.requests), len(second.requests)) == (4, 4)


async def test_no_server_in_time_is_a_deadline_with_the_last_reason() -> None:
    async with CompletionClient([closed_port()], deadline_s=0.5) as client:
        with pytest.raises(RolloutDeadlineExceeded, match=r"within 0.5 s: .*ConnectError"):
            await client.generate([1], SAMPLING)


@pytest.mark.parametrize(("status", "fix"), [(403, "--enable-scale-out"), (404, "not a vLLM"), (400, "scripted")])
async def test_a_refusal_is_not_tried_again_and_names_the_fix(generation: Any, status: int, fix: str) -> None:
    generation.status = status
    async with CompletionClient([generation.url]) as client:
        with pytest.raises(ServerRefused, match=fix):
            await client.generate([1], SAMPLING)


async def test_a_server_without_the_route_gives_rollouts_by_completions(
    generation: Any, caplog: pytest.LogCaptureFixture
) -> None:
    generation.scale_out, generation.version = False, "3"
    async with CompletionClient([generation.url]) as client:
        await client.check(context=100)
        sample = await client.generate([1, 2, 3], SamplingParams(50, 0.5, seed=11))
    assert (list(sample.ids), list(sample.logprobs)) == ([5, 7], [-0.35, -0.1])
    assert (sample.finish_reason, sample.versions) == ("stop", [(3, 0, 2)])
    body = generation.requests[-1]
    assert (body["prompt"], body["model"], body["return_token_ids"]) == ([1, 2, 3], "m", True)
    assert (body["temperature"], body["top_p"], body["top_k"], body["seed"]) == (0.5, 1.0, 0, 11)
    assert "start vLLM with --enable-scale-out" in caplog.text


async def test_a_server_that_dies_under_a_rollout_costs_none(tokenizer: Any) -> None:
    first, second = Generation(tokenizer), Generation(tokenizer)
    first.script = lambda prompt, number: {"text": "a", "delay": 60.0}
    second.script = lambda prompt, number: {"text": "b"}
    dying, living = Served(first.app()), Served(second.app())
    try:
        async with CompletionClient([dying.url, living.url]) as client:
            asked = asyncio.create_task(client.generate([1], SAMPLING))
            for _ in range(1000):
                await asyncio.sleep(0 if first.running else 0.01)
            dying.stop()
            sample = await asyncio.wait_for(asked, 20)
    finally:
        living.stop()
    assert list(sample.ids) == [*tokenizer.encode("b"), tokenizer.eos_token_id]
    assert client.counters.resubmitted_failure == 1


def test_what_is_no_rollout_is_said() -> None:
    def of(**fields: Any) -> bytes:
        return json.dumps({"choices": [fields]}).encode()

    for body, message in (
        (b"<html>", "not an answer of vLLM"),
        (b'{"choices": []}', "0 choices, need one"),
        (b'{"choices": [{}, {}]}', "2 choices, need one"),
        (of(token_ids=["7"]), r"not an answer of vLLM: Expected `int`"),
        (of(token_ids=[7], logprobs={"content": [{"token_id": 7, "logprob": float("nan")}]}), "not an answer of vLLM"),
    ):
        with pytest.raises(Unusable, match=message):
            only_choice(body)
    for content, message in (
        ([], "1 token ids with log-probabilities of 0 others"),
        ([{"token_id": 8, "logprob": -1.0}], "log-probabilities of 1 others"),
        ([{"token_id": 7, "logprob": -9999.0}], "not finite"),
    ):
        with pytest.raises(Unusable, match=message):
            sampled(only_choice(of(token_ids=[7], logprobs={"content": content})))
