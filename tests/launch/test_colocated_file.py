"""One file for one GPU in turns: what server and trainer get by it, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from environments.common.settings import ConfigError
from environments.launch.config import Parts, load_launch, parts
from environments.launch.serve_model import ServeConfig, serve_command

API, SERVER = "http://127.0.0.1:4001", "http://127.0.0.1:4002"


def made(tmp_path: Path, model: Path, *flags: str, server: dict[str, Any] | None = None) -> Parts:
    values = {
        "model": str(model),
        "problems": "warmup:train",
        "run_dir": str(tmp_path / "run"),
        "trainer": {"weights": {"backend": "colocated"}},
        "server": server or {},
    }
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(values))
    return parts(load_launch(["--config", str(file), *flags]), API, [SERVER])


def test_on_a_gpu_vllm_sleeps_and_takes_handles_and_both_sides_know_its_share(tmp_path: Path, smollm2: Path) -> None:
    found = made(tmp_path, smollm2, server={"device": "gpu"})
    assert found.server is not None
    assert (found.server.weight_transfer, found.server.sleep_mode) == ("ipc", True)
    assert found.trainer.weights.server_share == found.server.gpu_memory_utilization == 0.85
    argv, env = serve_command(found.server)
    assert "--enable-sleep-mode" in argv
    assert argv[argv.index("--weight-transfer-config") + 1] == '{"backend":"ipc"}'
    assert argv[argv.index("--gpu-memory-utilization") + 1] == "0.85"
    assert (env["VLLM_SERVER_DEV_MODE"], env["VLLM_ALLOW_INSECURE_SERIALIZATION"]) == ("1", "1")
    assert not found.trainer.weights.pause_while_training


def test_a_share_that_is_given_reaches_the_trainers_budget(tmp_path: Path, smollm2: Path) -> None:
    found = made(tmp_path, smollm2, server={"device": "gpu", "gpu_memory_utilization": 0.6})
    assert found.server is not None
    assert found.trainer.weights.server_share == found.server.gpu_memory_utilization == 0.6


def test_on_a_cpu_the_turns_are_the_same_and_weights_go_through_a_folder(tmp_path: Path, smollm2: Path) -> None:
    found = made(tmp_path, smollm2, server={"device": "cpu"})
    assert found.server is not None
    assert found.server.weight_transfer == "disk"
    argv, env = serve_command(found.server)
    assert "--enable-sleep-mode" not in argv  # a CPU build of vLLM refuses it, and has the routes all the same
    assert "VLLM_ALLOW_INSECURE_SERIALIZATION" not in env
    assert not found.trainer.weights.pause_while_training


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--environment.env.max_staleness", "2"], "environment.env.max_staleness 2 .* set it to 0 or 1"),
        (["--ranks", "2"], "ranks 2 with trainer.weights.backend colocated: .* set ranks: 1"),
        (["--server_gpus", "0", "--trainer_gpus", "1"], "server_gpus 0, trainer_gpus 1 .* give the same one twice"),
        (["--server.tensor_parallel_size", "2"], "server.tensor_parallel_size 2 .* leave it out"),
        (["--trainer.weights.pause_while_training", "true"], "pause_while_training True .* leave it out"),
    ],
)
def test_what_one_gpu_in_turns_cannot_have_is_one_error(
    tmp_path: Path, smollm2: Path, flags: list[str], why: str
) -> None:
    with pytest.raises(ConfigError, match=why):
        made(tmp_path, smollm2, *flags)


@pytest.mark.parametrize("staleness", ["0", "1"])
def test_staleness_is_zero_or_one(tmp_path: Path, smollm2: Path, staleness: str) -> None:
    found = made(tmp_path, smollm2, "--environment.env.max_staleness", staleness)
    assert found.environment.env.max_staleness == int(staleness)


def test_handles_are_taken_from_this_machine_alone(smollm2: Path) -> None:
    with pytest.raises(ValueError, match=r"host 0\.0\.0\.0 with weight_transfer 'ipc': .* set host: 127\.0\.0\.1"):
        ServeConfig(model=smollm2, device="gpu", weight_transfer="ipc", host="0.0.0.0")
    with pytest.raises(ValueError, match="weight_transfer 'ipc' needs a GPU"):
        ServeConfig(model=smollm2, device="cpu", weight_transfer="ipc")
