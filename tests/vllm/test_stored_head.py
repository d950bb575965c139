"""Models whose files hold a tied head as well, as the official Qwen3-0.6B does, with weights by `disk` into a vLLM."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from environments.launch.processes import Child, free_port
from environments.launch.serve_model import ServeConfig, serve_command
from trainer.model.policy import Policy
from trainer.parallel import distributed
from trainer.weight_sync.disk import DiskPublisher
from trainer.weight_sync.logprob_check import check_probes, probe_prompt
from trainer.weight_sync.vllm_routes import WeightSyncError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # starts vLLM servers of its own


def make(folder: Path, change: float) -> Path:
    torch.manual_seed(3)
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
    sizes: dict[str, Any] = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
    config = Qwen3Config(**sizes, **heads, max_position_embeddings=256, tie_word_embeddings=True, initializer_range=0.2)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + change
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(params=[0.0, 0.5], ids=["equal", "different"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Path, float]]:
    model = make(tmp_path / "model", request.param)
    config = ServeConfig(model=model, port=free_port(), max_model_len=128, dtype="float32", max_num_seqs=4,
                         enforce_eager=True, kv_cache_gib=0.2, extra_args=["--skip-tokenizer-init"])  # fmt: skip
    command, env = serve_command(config)
    child = Child("vLLM", command, tmp_path / "vllm.log", env)
    try:
        child.wait_ready(f"{config.url}/health", 400.0)
        yield config.url, model, request.param
    finally:
        child.stop()


def test_a_stored_head_is_served_as_it_is_trained(served: tuple[str, Path, float], tmp_path: Path) -> None:
    url, model, differs = served
    if differs:  # the trainer refuses such a folder; a tied policy into this server has to fail as well
        make(tmp_path / "tied", 0.0)
        model = tmp_path / "tied"
    with distributed(deadline_s=60, device="cpu") as alone:
        policy = Policy(model, alone)
        publisher = DiskPublisher([url], tmp_path / "weights", initial=model)
        prompt = probe_prompt(128, 128)
        if differs:
            with pytest.raises(WeightSyncError, match=r"1 tensors differ, first lm_head.weight"):
                publisher.publish(policy, 0, prompt)
            return
        for version in (0, 1, 2):
            stats = publisher.publish(policy, version, prompt)
            assert stats is not None
            found = check_probes(prompt, stats.probes, policy, "float32", version)
            assert found is not None
            assert found.largest < 2e-3
            with torch.no_grad():
                for weight in policy.parameters():
                    weight.mul_(1.05)
