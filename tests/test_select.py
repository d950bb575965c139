"""`atropos select`: the better checkpoint is chosen by serving both; what is missing is said before anything runs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from environments.demo.processes import free_port
from environments.select import SelectConfig, select
from environments.settings import ConfigError
from trainer.checkpoints import Checkpoints
from trainer.config import OptimizerConfig
from trainer.optimizer import PolicyOptimizer
from trainer.parallel import distributed
from trainer.policy import Policy

CONFIGS = Path(__file__).parents[1] / "configs" / "demo"


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    config = SelectConfig(run=tmp_path, evaluation=CONFIGS / "environment.yaml", serving=CONFIGS / "server.yaml")
    with pytest.raises(ConfigError, match=r"no complete checkpoint in checkpoints/"):
        select(config, print)


@pytest.mark.slow  # starts a vLLM server four times
def test_the_better_of_two_checkpoints_is_chosen(smollm2: Path, tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "trainer.yaml").write_text(f"model: {smollm2}\nrun_dir: {tmp_path}\n")
    with distributed(device="cpu") as parallel:
        policy = Policy(smollm2, parallel)
        optimizer = PolicyOptimizer(policy, OptimizerConfig())
        checkpoints = Checkpoints(tmp_path / "checkpoints", parallel, keep_last=2)
        checkpoints.save(policy, optimizer, 1)
        checkpoints.wait()
        with torch.no_grad():
            for weight in policy.parameters():
                weight.mul_(0.5)
        checkpoints.save(policy, optimizer, 2)
        checkpoints.wait()
        checkpoints.close()
    del policy, optimizer
    words = ["--run", tmp_path, "--evaluation", CONFIGS / "environment.yaml", "--serving", CONFIGS / "server.yaml",
             "--screen_n", 1, "--screen_limit", 12, "--port", free_port()]  # fmt: skip
    command = [sys.executable, "-m", "environments.cli", "select", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    best = json.loads((tmp_path / "best.json").read_text())
    assert (best["checkpoint"], best["step"], best["set"]) == ("step-00000001", 1, "warmup:new_instances")
    assert best["against"][0]["checkpoint"] == "step-00000002"
    assert best["against"][0]["ci95"][0] > 0
    assert (tmp_path / "checkpoints" / "best").read_text().strip() == "step-00000001"
    rows = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [(row["checkpoint"][-1], row["stage"], row["n"]) for row in rows] == [
        ("1", "screen", 1), ("2", "screen", 1), ("1", "full", 4), ("2", "full", 4),
    ]  # fmt: skip
    shutil.rmtree(tmp_path / "checkpoints")
