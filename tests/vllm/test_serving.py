"""The serving command: what stands in it, and what it refuses before vLLM starts."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoConfig, Qwen3Config, Qwen3ForCausalLM

from environments.common.settings import ConfigError
from environments.common.yarn import yarn_overrides
from environments.launch.processes import free_port
from environments.launch.serve_model import ServeConfig, main, serve_command


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def flag(argv: list[str], name: str) -> str:
    return argv[argv.index(name) + 1]


def test_log_probabilities_are_those_after_the_temperature(model: Path) -> None:
    argv, _ = serve_command(ServeConfig(model=model))
    assert flag(argv, "--logprobs-mode") == "processed_logprobs"


def test_rollout_and_weight_routes_are_open(model: Path) -> None:
    argv, env = serve_command(ServeConfig(model=model))
    assert "--enable-scale-out" in argv
    assert flag(argv, "--weight-transfer-config") == '{"backend":"disk"}'
    assert env["VLLM_SERVER_DEV_MODE"] == "1"
    assert env["VLLM_PLUGINS"] == "atropos_livecode_disk_weights"


def test_a_cpu_serves_float32_on_every_core(model: Path) -> None:
    argv, env = serve_command(ServeConfig(model=model, device="cpu", cpu_threads=2))
    assert flag(argv, "--dtype") == "float32"
    assert (env["VLLM_CPU_OMP_THREADS_BIND"], env["OMP_NUM_THREADS"]) == ("nobind", "2")


def test_a_gpu_serves_bfloat16(model: Path) -> None:
    argv, env = serve_command(ServeConfig(model=model, device="gpu", weight_transfer="nccl"))
    assert flag(argv, "--dtype") == "bfloat16"
    assert "OMP_NUM_THREADS" not in env


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"model {tmp_path}: no model there \(no config.json\)"):
        serve_command(ServeConfig(model=tmp_path))


def test_nccl_without_a_gpu_is_refused_with_the_fix(model: Path) -> None:
    with pytest.raises(ConfigError, match="weight_transfer 'nccl' needs a GPU: set weight_transfer: disk"):
        main(["--model", str(model), "--device", "cpu", "--weight_transfer", "nccl"])


def test_a_port_in_use_is_named(model: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"host = 127.0.0.1, port = {port}: cannot listen there"):
            main(["--model", str(model), "--port", str(port)])


QWEN3 = {"model_type": "qwen3", "max_position_embeddings": 40960, "rope_theta": 1000000}


@pytest.mark.parametrize("described", [
    QWEN3, {**QWEN3, "rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 1000000}},
])  # fmt: skip
def test_yarn_is_asked_for_as_the_recipe_evaluates(model: Path, described: dict[str, Any]) -> None:
    (model / "config.json").write_text(json.dumps(described))
    argv, _ = serve_command(ServeConfig(model=model, max_model_len=81920, yarn_factor=2.5))
    assert json.loads(flag(argv, "--hf-overrides")) == {
        "max_position_embeddings": 81920,
        "rope_parameters": {"rope_type": "yarn", "rope_theta": 1000000, "factor": 2.5,
                            "original_max_position_embeddings": 32768},
    }  # fmt: skip
    assert flag(argv, "--max-model-len") == "81920"


def test_a_factor_that_does_not_reach_names_one_that_does(model: Path) -> None:
    (model / "config.json").write_text(json.dumps(QWEN3))
    with pytest.raises(ConfigError, match=r"yarn_factor 2 reaches 65536 tokens .*; set yarn_factor 2.5"):
        serve_command(ServeConfig(model=model, max_model_len=81920, yarn_factor=2))
    (model / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="no rotary embedding"):
        serve_command(ServeConfig(model=model, yarn_factor=2))


@pytest.mark.slow  # starts a vLLM server of its own
def test_a_served_model_computes_transformers_yarn(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "original_max_position_embeddings": 64}
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
    sizes: dict[str, Any] = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
    config = Qwen3Config(**sizes, **heads, max_position_embeddings=64, tie_word_embeddings=False, rope_parameters=rope)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    overrides = yarn_overrides(folder, 4.0, 256)
    extended = AutoConfig.from_pretrained(folder, **overrides)
    ids = torch.randint(0, 64, (1, 200))
    with torch.no_grad():
        logits = Qwen3ForCausalLM.from_pretrained(folder, config=extended, dtype=torch.float32)(ids).logits[0]
        plain = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits[0]
    port = free_port()
    serving = ServeConfig(model=folder, port=port, max_model_len=256, yarn_factor=4.0, dtype="float32", max_num_seqs=4,
                          enforce_eager=True, kv_cache_gib=0.2, extra_args=["--skip-tokenizer-init"])  # fmt: skip
    argv, variables = serve_command(serving)
    server = subprocess.Popen(argv, env=os.environ | variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            assert server.poll() is None
            try:
                if httpx.get(f"{serving.url}/health").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.5)
        body = {
            "token_ids": ids[0].tolist(),
            "sampling_params": {"max_tokens": 1, "prompt_logprobs": 0, "temperature": 1},
        }
        answer = httpx.post(f"{serving.url}/inference/v1/generate", json=body, timeout=120).raise_for_status().json()
    finally:
        server.terminate()
        server.wait(60)
    rows = answer["prompt_logprobs"][1:]
    served = torch.tensor([row[str(token)]["logprob"] for row, token in zip(rows, ids[0, 1:].tolist(), strict=True)])
    wanted = logits[:-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    other = plain[:-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    assert (served - wanted).abs().max() < 1e-3
    assert (served - other).abs().max() > 1e-2  # and without YaRN it would show


def test_dry_run_prints_the_command_and_starts_nothing(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", str(model), "--dry-run", "true"]) == 0
    assert "-m vllm.entrypoints.openai.api_server --model" in capsys.readouterr().out
