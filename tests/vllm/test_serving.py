"""The serving command: what stands in it, and what it refuses before vLLM starts."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from environments.serving import ServeConfig, main, serve_command
from environments.settings import ConfigError


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
    with pytest.raises(ConfigError, match=f"model = {tmp_path}: no config.json there"):
        serve_command(ServeConfig(model=tmp_path))


def test_nccl_without_a_gpu_is_refused_with_the_fix(model: Path) -> None:
    with pytest.raises(ConfigError, match="weight_transfer 'nccl' needs a GPU: set weight_transfer: disk"):
        main(["--model", str(model), "--device", "cpu", "--weight_transfer", "nccl"])


def test_a_port_in_use_is_named(model: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port = {port}: cannot listen on 127.0.0.1"):
            main(["--model", str(model), "--port", str(port)])


def test_dry_run_prints_the_command_and_starts_nothing(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", str(model), "--dry-run", "true"]) == 0
    assert "-m vllm.entrypoints.openai.api_server --model" in capsys.readouterr().out
