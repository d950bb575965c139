"""New weights in the running vLLM: proven by its log-probabilities against transformers' on the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from environments.launch.processes import Child, free_port
from environments.launch.serve_model import ServeConfig, serve_command
from tests.conftest import VllmServer
from trainer.weight_sync.publisher import DiskPublisher, WeightSyncError, probe, verify_sync

TOLERANCE = 2e-3
PROMPT = [1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411]
LONG_PROMPT = [7 + 31 * i % 40_000 for i in range(300)]  # fills whole cache blocks


class Policy:
    """A transformers model that changes from version to version, and the publisher that serves it."""

    def __init__(self, server: VllmServer, folder: Path) -> None:
        self.server = server
        self.model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(server.model, dtype=torch.float32)
        self.publisher = DiskPublisher([server.url], folder, initial=server.model)
        self.version = 0
        self._original = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def publish(self) -> None:
        self.publisher.publish(self.model, self.version)

    def change(self) -> None:
        """Noise on every tensor; the tied embedding is also scaled, so that a head left behind shows at once."""
        self.version += 1
        generator = torch.Generator().manual_seed(self.version)
        with torch.no_grad():
            for name, tensor in self.model.named_parameters():
                noise = torch.randn(tensor.shape, generator=generator)
                tensor.copy_(self._original[name] * (1 + 0.05 * noise))
            embedding = self.model.get_input_embeddings().weight
            assert isinstance(embedding, torch.Tensor)
            embedding.mul_(1 + 0.1 * (self.version % 3 + 1))

    def logprobs(self, prompt: list[int], tokens: list[int], temperature: float = 1.0) -> list[float]:
        with torch.no_grad():
            logits = self.model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        picked = (logits / temperature).log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])
        found: list[float] = picked[:, 0].tolist()
        return found


@pytest.fixture(scope="module")
def policy(vllm_server: VllmServer, tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return Policy(vllm_server, tmp_path_factory.mktemp("weights"))


def worst(served: list[float], own: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(served, own, strict=True))


def test_served_log_probabilities_are_those_of_the_published_weights(policy: Policy) -> None:
    policy.change()
    policy.publish()
    sampled = probe(policy.server.url, PROMPT, tokens=24, temperature=0.7, seed=1)
    assert verify_sync(policy.server.url, PROMPT, policy.logprobs, version=policy.version) <= TOLERANCE
    assert worst(sampled.logprobs, policy.logprobs(PROMPT, sampled.tokens, 0.7)) <= TOLERANCE
    assert sampled.versions == [(str(policy.version), 0, 24)]


@pytest.mark.slow  # starts a vLLM of its own, twice
def test_a_server_that_was_killed_gets_the_current_weights_when_it_is_back(smollm2: Path, tmp_path: Path) -> None:
    config = ServeConfig(model=smollm2, port=free_port(), enforce_eager=True, kv_cache_gib=1.0)
    command, env = serve_command(config)
    child = Child("vLLM", command, tmp_path / "first.log", env)
    try:
        child.wait_ready(f"{config.url}/health", 280.0)
        policy = Policy(VllmServer(config.url, smollm2, child), tmp_path / "weights")
        policy.change()
        policy.publish()
        assert policy.publisher.catch_up() == []
        child.stop()
        assert policy.publisher.catch_up() == []
        child = Child("vLLM", command, tmp_path / "second.log", env)
        child.wait_ready(f"{config.url}/health", 280.0)
        with pytest.raises(WeightSyncError, match="tokens carry weight version"):
            verify_sync(config.url, PROMPT, policy.logprobs, version=1)
        assert policy.publisher.catch_up() == [config.url]
        assert verify_sync(config.url, PROMPT, policy.logprobs, version=1) < TOLERANCE
    finally:
        child.stop()


def test_an_output_head_left_behind_is_detected(policy: Policy) -> None:
    old_head = policy.model.get_output_embeddings().weight.detach().clone()
    policy.change()
    policy.publish()

    def with_old_head(prompt: list[int], tokens: list[int]) -> list[float]:
        with torch.no_grad():
            hidden = policy.model.base_model(torch.tensor([prompt + tokens])).last_hidden_state[0]
        logprobs = (hidden[len(prompt) - 1 : -1] @ old_head.T).log_softmax(-1)
        found: list[float] = logprobs.gather(1, torch.tensor(tokens)[:, None])[:, 0].tolist()
        return found

    with pytest.raises(WeightSyncError, match="phase verify: log-probabilities differ"):
        verify_sync(policy.server.url, PROMPT, with_old_head)


def test_a_cached_prompt_is_computed_again_with_new_weights(policy: Policy) -> None:
    probe(policy.server.url, LONG_PROMPT, tokens=1)
    before = prefix_hits(policy.server.url)
    probe(policy.server.url, LONG_PROMPT, tokens=1)
    assert prefix_hits(policy.server.url) > before  # the cache does hold the old weights' keys and values
    policy.change()
    policy.publish()
    assert verify_sync(policy.server.url, LONG_PROMPT, policy.logprobs, tokens=8) <= TOLERANCE


def test_a_running_request_goes_on_with_the_new_weights(policy: Policy) -> None:
    policy.change()
    policy.publish()
    old = policy.version
    sampling = {"temperature": 0.7, "seed": 3, "max_tokens": 48, "ignore_eos": True, "logprobs": 0}
    body = {"token_ids": PROMPT, "sampling_params": sampling, "stream": True}
    tokens: list[int] = []
    logprobs: list[float] = []
    with httpx.Client(base_url=policy.server.url, timeout=120, trust_env=False) as client:
        with client.stream("POST", "/inference/v1/generate", json=body) as answer:
            for line in answer.iter_lines():
                if not line.startswith("data: {"):
                    continue
                choice = json.loads(line.removeprefix("data: "))["choices"][0]
                tokens += choice["token_ids"]
                logprobs += [entry["logprob"] for entry in (choice["logprobs"] or {"content": []})["content"]]
                if policy.version == old and len(tokens) >= 4:
                    policy.publisher.pause()  # so that the request cannot end before the weights are there
                    under_old = policy.logprobs(PROMPT, tokens, 0.7)
                    policy.change()
                    policy.publish()
    assert choice["finish_reason"] == "length"
    assert len(tokens) == 48
    first, second = choice["weight_versions"]
    assert (first["version"], first["start"]) == (str(old), 0)
    assert (second["version"], second["start"], second["end"]) == (str(policy.version), first["end"], 48)
    assert worst(logprobs[: len(under_old)], under_old) <= TOLERANCE
    own = policy.logprobs(PROMPT, tokens, 0.7)
    assert worst(logprobs[first["end"] :], own[first["end"] :]) <= TOLERANCE


def test_weights_of_another_model_are_refused_and_the_old_ones_go_on(policy: Policy, tmp_path: Path) -> None:
    policy.change()
    policy.publish()
    publisher = DiskPublisher([policy.server.url], tmp_path)
    with pytest.raises(WeightSyncError, match=r"phase update: .*does not fit the served model") as raised:
        publisher.publish({"model.norm.weight": torch.ones(8)}, 99)
    assert not raised.value.paused
    assert verify_sync(policy.server.url, PROMPT, policy.logprobs, version=policy.version) <= TOLERANCE


def test_an_update_that_a_dead_trainer_left_open_does_not_bar_the_next_one(policy: Policy, tmp_path: Path) -> None:
    url = policy.server.url
    begun: tuple[tuple[str, dict[str, Any] | None], ...] = (
        ("/pause?mode=keep", None),
        ("/init_weight_transfer_engine", {"init_info": {}}),
        ("/start_weight_update", {}),
    )
    for path, body in begun:
        httpx.post(f"{url}{path}", json=body, timeout=60, trust_env=False).raise_for_status()
    policy.change()
    DiskPublisher([url], tmp_path).publish(policy.model, policy.version)
    assert verify_sync(url, PROMPT, policy.logprobs, version=policy.version) <= TOLERANCE


def prefix_hits(url: str) -> float:
    text = httpx.get(f"{url}/metrics", trust_env=False).text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("vllm:prefix_cache_hits_total"))
