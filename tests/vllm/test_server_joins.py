"""The real vLLM joins a run, and is preempted: the other server of the run is a scripted one."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from environments.common.server_list import ServerList, WatchedServers
from environments.launch.processes import Child, free_port
from environments.launch.serve_model import ServeConfig, serve_command
from environments.livecode.generation.completions import CompletionClient, SamplingParams
from tests.faults.test_joins_and_leaves import Fleet, fleet, model_dir, tokenizer
from trainer.weight_sync.publisher import DiskPublisher

__all__ = ["fleet", "model_dir", "tokenizer"]  # fixtures
PROMPT = [1, 9690, 198, 2683, 359]


@pytest.mark.slow  # starts a vLLM of its own, which ends in the middle
@pytest.mark.timeout(600)
async def test_vllm_gets_the_weights_before_its_first_rollout_and_sigterm_loses_none(
    smollm2: Path, tmp_path: Path, fleet: Fleet
) -> None:
    first = fleet.join()
    watched = WatchedServers(ServerList(str(fleet.path), "weights.servers_from"))
    publisher = DiskPublisher(watched, tmp_path / "weights", deadline_s=60.0)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    publisher.publish(model, 1)
    config = ServeConfig(model=smollm2, port=free_port(), enforce_eager=True, kv_cache_gib=1.0)
    command, env = serve_command(config)
    child = Child("vLLM", command, tmp_path / "vllm.log", env)
    try:
        await asyncio.to_thread(child.wait_ready, f"{config.url}/health", 280.0)
        async with CompletionClient([first.url], watched=watched) as client:
            await client.check(context=512)
            assert await client.weight_version() == 1
            fleet.listed[config.url] = False
            fleet.write()
            watched.look()
            await seen(client, lambda server: server.url == config.url and not server.state.unchecked)
            sampling = SamplingParams(16, 1.0)
            await asyncio.gather(*(client.generate(PROMPT, sampling) for _ in range(4)))
            assert len(first.requests) == 4
            assert publisher.behind() == [config.url]
            assert await asyncio.to_thread(publisher.catch_up) == [config.url]
            await seen(client, lambda server: server.url == config.url and not server.joined)
            joined = await asyncio.gather(*(client.generate(PROMPT, sampling) for _ in range(4)))
            assert len(first.requests) == 6
            assert {sample.versions[0][0] for sample in joined} == {1}

            long = SamplingParams(400, 1.0)
            running = [asyncio.create_task(client.generate(PROMPT, long)) for _ in range(6)]
            await asyncio.sleep(1.0)
            child.process.send_signal(signal.SIGTERM)
            fleet.remove(config.url)
            watched.look()
            samples = await asyncio.gather(*running)
            assert {sample.finish_reason for sample in samples} <= {"stop", "length"}
            assert client.counters.resubmitted_failure + client.counters.resubmitted_abort > 0
    finally:
        child.stop()


async def seen(client: CompletionClient, condition: Any) -> None:
    for _ in range(600):
        await client.weight_version()
        if any(condition(server) for server in client._pool.servers):
            return
        await asyncio.sleep(0.1)
    raise AssertionError("it never came to that")
