"""A LoRA adapter in the running vLLM: proven by its log-probabilities against the trainer's."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch

from environments.common.served_adapter import SERVED_ADAPTER
from environments.launch.processes import Child, free_port
from environments.launch.serve_model import ServeConfig, serve_command
from environments.livecode.generation.completions import CompletionClient, SamplingParams
from tests.vllm.test_weight_sync import LONG_PROMPT, PROMPT, TOLERANCE
from trainer.adapter_config import AdapterConfig
from trainer.model.loading import LORA, copy_own_rows
from trainer.model.policy import Policy
from trainer.parallel import distributed
from trainer.weight_sync.logprob_check import check_probes, policy_logprobs
from trainer.weight_sync.publisher import AdapterPublisher, DiskPublisher, WeightSyncError
from trainer.weight_sync.update_phases import ServerUpdate
from trainer.weight_sync.vllm_routes import Probe, WeightServer

ADAPTER = AdapterConfig(rank=8)


@pytest.fixture(scope="module")
def url(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A vLLM that serves adapters."""
    config = ServeConfig(model=smollm2, port=free_port(), enforce_eager=True, kv_cache_gib=1.0, max_lora_rank=8)
    command, env = serve_command(config)
    child = Child("vLLM", command, tmp_path_factory.mktemp("vllm") / "vllm.log", env)
    try:
        child.wait_ready(f"{config.url}/health", 280.0)
        yield config.url
    finally:
        child.stop()


@pytest.fixture(scope="module")
def policy(smollm2: Path) -> Iterator[Policy]:
    with distributed(deadline_s=60, device="cpu") as parallel:
        yield Policy(smollm2, parallel, activation_checkpointing="none", adapter=ADAPTER)


def change(policy: Policy, seed: int) -> None:
    """Another adapter, far from zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in policy.model.state_dict().items():  # which gives the shards back that FSDP keeps gathered
        if LORA in name:
            spread = 0.02 if ".lora_B." in name else weight.shape[1] ** -0.5
            copy_own_rows(weight, spread * torch.randn(weight.shape, generator=generator))


def difference(url: str, policy: Policy, prompt: list[int], version: int) -> float:
    """The largest one between the served adapter and the policy, which must carry the version."""
    sampled = WeightServer(url, 120.0, SERVED_ADAPTER).probe(prompt)
    found = check_probes(prompt, {url: sampled}, policy, "float32", version)
    assert found is not None
    return found.largest


async def test_the_served_adapter_is_the_trainers_before_and_after_an_update(
    url: str, policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher = AdapterPublisher([url], tmp_path / "weights", ADAPTER, policy.path)
    publisher.check()

    # Version 0: zero, so the model itself, and what the start's adapter computes.
    publisher.publish(policy, 0)
    assert difference(url, policy, LONG_PROMPT, 0) <= TOLERANCE

    # An update, with the old adapter's keys and values in the cache.
    before = policy_logprobs(PROMPT, {url: WeightServer(url, 120.0, SERVED_ADAPTER).probe(PROMPT)}, policy)[url]
    change(policy, 1)
    stats = publisher.publish(policy, 1, PROMPT)
    assert stats is not None
    assert stats.bytes == sum(tensor.numel() * 4 for tensor in policy.adapter_state().values())
    assert check_probes(PROMPT, stats.probes, policy, "float32", 1) is not None
    assert difference(url, policy, LONG_PROMPT, 1) <= TOLERANCE
    after = policy_logprobs(PROMPT, stats.probes, policy)[url]
    assert max(abs(a - b) for a, b in zip(before, after, strict=True)) > 0.05  # the adapter does something

    # The environment samples through it.
    async with CompletionClient([url]) as client:
        await client.check(context=512)
        rollout = await client.generate(PROMPT, SamplingParams(8, 1.0, seed=5))
    assert rollout.versions == [(1, 0, 8)]
    probe = type(stats.probes[url])(list(rollout.ids), list(rollout.logprobs))
    own = policy_logprobs(PROMPT, {url: probe}, policy)[url]
    assert max(abs(a - b) for a, b in zip(rollout.logprobs, own, strict=True)) <= TOLERANCE

    # An adapter that does not arrive, without an error, is found.
    with monkeypatch.context() as patched:
        patched.setattr(ServerUpdate, "load_adapter", lambda *_: None)
        change(policy, 2)
        stats = publisher.publish(policy, 2, PROMPT)
        assert stats is not None
        with pytest.raises(WeightSyncError, match="phase verify: log-probabilities differ"):
            check_probes(PROMPT, stats.probes, policy, "float32", 2)
    publisher.publish(policy, 3)
    assert difference(url, policy, PROMPT, 3) <= TOLERANCE

    # What cannot be loaded leaves the adapter as it was, and the server running.
    wide = AdapterConfig(rank=16)
    too_wide = Policy(policy.path, policy.parallel, activation_checkpointing="none", adapter=wide)
    with pytest.raises(WeightSyncError, match=r"phase update: .*rank 16.*served weights are unchanged") as raised:
        AdapterPublisher([url], tmp_path / "wide", wide, policy.path).publish(too_wide, 4)
    assert not raised.value.paused
    assert difference(url, policy, PROMPT, 3) <= TOLERANCE


async def test_a_request_from_before_an_update_gets_the_new_adapter_and_brings_the_old_one_back_for_nobody(
    url: str, policy: Policy, tmp_path: Path
) -> None:
    publisher = AdapterPublisher([url], tmp_path / "weights", ADAPTER, policy.path)
    change(policy, 5)
    publisher.publish(policy, 5)
    async with CompletionClient([url]) as client:
        await client.check(context=512)
        asked = [client.generate(PROMPT, SamplingParams(200, 1.0, seed=seed)) for seed in range(8)]
        running = [asyncio.create_task(one) for one in asked]
        await asyncio.sleep(1.5)
        change(policy, 6)
        stats = publisher.publish(policy, 6, PROMPT)
        assert stats is not None
        assert check_probes(PROMPT, stats.probes, policy, "float32", 6) is not None
        assert difference(url, policy, LONG_PROMPT, 6) <= TOLERANCE
        for folder in (tmp_path / "weights").glob("version-5-*"):
            shutil.rmtree(folder)
        rollouts = await asyncio.gather(*running)
    under_way = [rollout for rollout in rollouts if [version for version, *_ in rollout.versions] == [5, 6]]
    assert under_way
    for rollout in under_way:
        own = policy_logprobs(PROMPT, {url: Probe(list(rollout.ids), list(rollout.logprobs))}, policy)[url]
        _, first, last = rollout.versions[1]
        assert max(abs(a - b) for a, b in zip(rollout.logprobs[first:last], own[first:last], strict=True)) <= TOLERANCE


def test_whole_weights_are_refused_at_the_start_and_by_the_server(url: str, policy: Policy, tmp_path: Path) -> None:
    publisher = DiskPublisher([url], tmp_path)
    with pytest.raises(WeightSyncError, match=r"phase health: .*start it without max_lora_rank, or set adapter.rank"):
        publisher.check()
    with pytest.raises(WeightSyncError, match=r"phase update: .*started with --enable-lora.*unchanged") as raised:
        publisher.publish(policy, 9)
    assert not raised.value.paused
    assert not httpx.get(f"{url}/is_paused", trust_env=False).json()["is_paused"]
