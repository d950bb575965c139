"""The turns of one GPU against a real vLLM on a CPU: its worker keeps the memory, its scheduler pauses as on a GPU."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import torch

from tests.conftest import VllmServer
from trainer.model.policy import Policy
from trainer.parallel import distributed
from trainer.weight_sync.colocated import ColocatedPublisher, FolderTransfer
from trainer.weight_sync.logprob_check import EXACT, check_probes, compare, policy_logprobs
from trainer.weight_sync.vllm_routes import WeightServer

PROMPT = [1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411]


def paused(url: str) -> bool:
    found: bool = httpx.get(f"{url}/is_sleeping", trust_env=False).json()["is_sleeping"]
    return found


def test_a_real_vllm_sleeps_takes_weights_and_continues_what_waited(vllm_server: VllmServer, tmp_path: Path) -> None:
    url = vllm_server.url
    server = WeightServer(url, 120.0)
    with distributed(60, "cpu") as parallel, ThreadPoolExecutor(2) as pool:
        policy = Policy(vllm_server.model, parallel, logprob_chunk=64)
        transfer = FolderTransfer(tmp_path, torch.float32)
        publisher = ColocatedPublisher(url, transfer, parallel, dtype=torch.float32, sleep_level=2)
        publisher.check()
        publisher.pause()
        publisher.publish(policy, 20, PROMPT)
        assert paused(url)
        first, _ = publisher.wake()
        assert not paused(url)
        assert first is not None
        check_probes(PROMPT, {url: first}, policy, "float32", 20)

        running = pool.submit(server.probe, PROMPT, tokens=150)
        time.sleep(1.0)  # it may also be done: then it has one version
        publisher.pause()
        late = pool.submit(server.probe, PROMPT, tokens=4)
        with torch.no_grad():
            for weight in policy.model.parameters():
                weight.mul_(1.02)
        publisher.publish(policy, 21, PROMPT)
        assert not late.done()
        second, seconds = publisher.wake()
        assert second is not None
        assert seconds > 0
        check_probes(PROMPT, {url: second}, policy, "float32", 21)
        assert [version for version, _, _ in late.result(120).versions] == ["21"]
        compare(url, late.result(), policy_logprobs(PROMPT, {url: late.result()}, policy)[url], EXACT, 21)
        whole = running.result(120)
        assert len(whole.tokens) == 150
        assert {version for version, _, _ in whole.versions} <= {"20", "21"}
        with torch.no_grad():
            for weight in policy.model.parameters():
                weight.div_(1.02)
        publisher.pause()
        publisher.publish(policy, 22)
        publisher.wake()
    assert list(tmp_path.iterdir()) == []
