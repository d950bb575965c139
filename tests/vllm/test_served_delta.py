"""Deltas in the running vLLM: bit for bit what a full update serves, and a torn one is followed by a full update."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.conftest import VllmServer
from trainer.weight_sync.delta import DeltaPublisher
from trainer.weight_sync.disk import DiskPublisher
from trainer.weight_sync.publisher import probe
from trainer.weight_sync.vllm_routes import PublishStats
from trainer.weight_sync.weight_delta import FILE, INFO

PROMPT = [1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411]


def served(server: VllmServer, version: int) -> list[float]:
    sampled = probe(server.url, PROMPT, tokens=8)
    assert sampled.versions == [(str(version), 0, 8)]
    return [*map(float, sampled.tokens), *sampled.logprobs]


def newest(folder: Path) -> Path:
    return max(folder.glob("version-*"), key=lambda path: int(path.name.rpartition("-")[2]))


def test_a_served_delta_is_bit_for_bit_the_full_update(vllm_server: VllmServer, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(vllm_server.model, dtype=torch.float32)
    weights: dict[str, Tensor] = dict(model.named_parameters())  # a tied head is one parameter
    deltas = DeltaPublisher([vllm_server.url], tmp_path / "deltas", dtype="bfloat16", full_every=9)
    stats: list[PublishStats] = []

    def publish(version: int) -> None:
        found = deltas.publish(weights, version)
        assert found is not None
        stats.append(found)

    def change(seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in weights.values():
                flat = weight.view(-1)
                places = torch.randint(flat.numel(), (flat.numel() // 50 + 1,), generator=draw)
                flat[places] = flat[places] * 1.5 + 0.01

    publish(0)
    for version in (1, 2):
        change(version)
        publish(version)
    of_deltas = served(vllm_server, 2)
    assert stats[2].bytes < 0.07 * stats[0].bytes
    damaged = newest(tmp_path / "deltas")
    assert (damaged / INFO).exists()

    full = DiskPublisher([vllm_server.url], tmp_path / "full", dtype="bfloat16")
    full.publish(weights, 3)
    assert served(vllm_server, 3) == of_deltas

    change(3)
    data = bytearray((damaged / FILE).read_bytes())
    data[-9] ^= 1
    (damaged / FILE).write_bytes(data)
    publish(4)
    assert not (newest(tmp_path / "deltas") / INFO).exists()
    assert served(vllm_server, 4) != of_deltas
