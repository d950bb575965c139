"""Both routes of the real vLLM give the same rollout."""

from __future__ import annotations

import pytest

from environments.livecode.generation.completions import CompletionClient, SamplingParams
from tests.conftest import VllmServer


async def test_completions_give_the_ids_and_logprobs_of_generate(vllm_server: VllmServer) -> None:
    prompt, sampling = list(range(40, 80)), SamplingParams(24, 0.0)
    samples = []
    async with CompletionClient([vllm_server.url]) as client:
        await client.check(context=64)
        (server,) = client._pool.servers
        assert not server.completions
        for server.completions in (False, True):
            samples.append(await client.generate(prompt, sampling))
    first, second = samples
    assert first.ids == second.ids
    assert first.logprobs == pytest.approx(second.logprobs, abs=1e-4)
    assert first.finish_reason == second.finish_reason
