"""The `nccl` publisher into a real vLLM with its own `nccl` engine, over gloo: proven by log-probabilities.

tests/support/gloo_nccl.py says what is replaced. NCCL itself, several GPUs of one server and the order of CUDA streams
were not run.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from environments.launch.processes import Child, free_port
from environments.launch.serve_model import PLUGIN, ServeConfig, serve_command
from tests.support import gloo_nccl
from trainer.model.policy import Policy
from trainer.parallel import Parallel, distributed
from trainer.weight_sync import nccl as weights_nccl
from trainer.weight_sync.logprob_check import EXACT, check_probes, probe_prompt
from trainer.weight_sync.nccl import NcclPublisher
from trainer.weight_sync.vllm_routes import PublishStats, WeightSyncError

pytestmark = [
    pytest.mark.slow,  # starts a vLLM of its own, with another weight transfer than the session's
    pytest.mark.timeout(900),
]
SLOTS = 2
LONG = {"temperature": 0.7, "seed": 5, "max_tokens": 500, "ignore_eos": True, "logprobs": 0}


@pytest.fixture(scope="module")
def stale(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """While this file is there, the server leaves its tied head as it was."""
    return tmp_path_factory.mktemp("stale") / "stale"


@pytest.fixture(scope="module")
def url(smollm2: Path, stale: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("nccl")
    config = ServeConfig(
        model=smollm2,
        port=free_port(),
        enforce_eager=True,
        kv_cache_gib=0.5,
        max_num_seqs=SLOTS,
        # `weight_transfer: nccl` is refused on a CPU; the last flag counts.
        extra_args=["--weight-transfer-config", '{"backend":"nccl"}'],
        extra_env={
            "PYTHONPATH": gloo_nccl.plugin_path(folder / "plugin"),
            "VLLM_PLUGINS": f"{PLUGIN},{gloo_nccl.PLUGIN}",
            gloo_nccl.STALE: str(stale),
        },
    )
    command, env = serve_command(config)
    child = Child("vLLM", command, folder / "vllm.log", env)
    try:
        child.wait_ready(f"{config.url}/health", 400.0)
        yield config.url
    finally:
        child.stop()


@pytest.fixture
def alone() -> Iterator[Parallel]:
    with distributed(deadline_s=60, device="cpu") as parallel:
        yield parallel


@pytest.fixture
def policy(smollm2: Path, alone: Parallel) -> Policy:
    return Policy(smollm2, alone)


@pytest.fixture
def publisher(url: str, alone: Parallel, monkeypatch: pytest.MonkeyPatch) -> NcclPublisher:
    gloo_nccl.install(monkeypatch.setattr)
    monkeypatch.setattr(weights_nccl, "check_machine", lambda device: None)
    return NcclPublisher([url], alone, dtype="float32", deadline_s=200.0, buffer_bytes=32 * 2**20)


def change(policy: Policy, seed: int) -> None:
    """Noise on every tensor; the tied embedding is also scaled, so that a head left behind shows at once."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in policy.model.state_dict().items():
            local = tensor.to_local()
            local.mul_(1 + 0.05 * torch.randn(local.shape, generator=generator))
            if "embed_tokens" in name:
                local.mul_(1.2)


def published(publisher: NcclPublisher, policy: Policy, version: int, prompt: list[int]) -> PublishStats:
    stats = publisher.publish(policy, version, prompt)
    assert stats is not None
    return stats


def prompt_of(policy: Policy) -> list[int]:
    return probe_prompt(policy.model.config.vocab_size, 640)


def test_served_log_probabilities_are_those_of_the_published_weights(publisher: NcclPublisher, policy: Policy) -> None:
    publisher.check()
    prompt = prompt_of(policy)
    for version in (1, 2):  # the second through the group of the first
        change(policy, version)
        stats = published(publisher, policy, version, prompt)
        found = check_probes(prompt, stats.probes, policy, "float32", version)
        assert found is not None
        assert found.largest <= EXACT.largest
    assert (stats.changed_share or 0.0) > 0.99


def test_a_tied_head_that_stays_stale_is_found(publisher: NcclPublisher, policy: Policy, stale: Path) -> None:
    prompt = prompt_of(policy)
    change(policy, 3)
    stale.touch()
    try:
        stats = published(publisher, policy, 3, prompt)
    finally:
        stale.unlink()
    with pytest.raises(WeightSyncError, match="phase verify: log-probabilities differ"):
        check_probes(prompt, stats.probes, policy, "float32", 3)


def test_a_busy_server_is_probed_before_its_requests_go_on(publisher: NcclPublisher, policy: Policy, url: str) -> None:
    prompt = prompt_of(policy)
    publisher.publish(policy, 4)
    ended: list[list[dict[str, Any]]] = []

    def generate() -> None:
        body = {"token_ids": prompt, "sampling_params": LONG}
        answer = httpx.post(f"{url}/inference/v1/generate", json=body, timeout=600, trust_env=False)
        ended.append(answer.json()["choices"][0]["weight_versions"])

    requests = [threading.Thread(target=generate) for _ in range(2 * SLOTS)]
    for request in requests:
        request.start()
    while running(url) < SLOTS:
        pass
    change(policy, 5)
    stats = published(publisher, policy, 5, prompt)
    assert ended == []  # every slot is taken and requests wait, and the probe has been answered
    found = check_probes(prompt, stats.probes, policy, "float32", 5)
    assert found is not None
    assert found.largest <= EXACT.largest
    for request in requests:
        request.join()
    # Those that ran were kept, with both versions; those that waited began with the new one.
    versions = sorted([span["version"] for span in spans] for spans in ended)
    assert versions == [["4", "5"]] * SLOTS + [["5"]] * SLOTS


def running(url: str) -> int:
    text = httpx.get(f"{url}/metrics", timeout=60, trust_env=False).text
    return sum(
        int(float(line.split()[-1])) for line in text.splitlines() if line.startswith("vllm:num_requests_running")
    )
