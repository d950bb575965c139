"""`atropos select`: the better checkpoint is chosen by serving both; what is missing is said before anything runs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from environments.common.settings import ConfigError
from environments.launch.processes import free_port
from environments.tools.select_checkpoint import SelectConfig, begin, digest, select, settings_of
from tests.trainer.conftest import models
from trainer.checkpoints import FORMAT, Checkpoints
from trainer.config import OptimizerConfig
from trainer.model.policy import Policy
from trainer.optimizer import PolicyOptimizer
from trainer.parallel import distributed

__all__ = ["models"]  # the fixture
CONFIGS = Path(__file__).parents[2] / "configs" / "demo"


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    config = SelectConfig(run=tmp_path, evaluation=CONFIGS / "environment.yaml", serving=CONFIGS / "server.yaml")
    with pytest.raises(ConfigError, match=r"no complete checkpoint in checkpoints/"):
        select(config, print)


def record(correct: int, n: int) -> dict[str, Any]:
    per_problem = {f"p{number}": [f"t{number}", correct, n] for number in range(8)}
    return {"set": "warmup:new_instances", "n": n, "temperature": 0.7, "seed": 0, "profile": None, "profiles": {},
            "pass_at_1": correct / n, "ci95": [0.0, 1.0], "per_problem": per_problem}  # fmt: skip


def test_a_selection_that_was_cut_off_scores_nothing_twice(models: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "config").mkdir(parents=True)
    (run / "config" / "trainer.yaml").write_text(f"model: {models['llama']}\nrun_dir: {run}\n")
    evaluation, serving = tmp_path / "evaluation.yaml", tmp_path / "serving.yaml"
    evaluation.write_text(
        'env: {context: 128, max_new_tokens: 16}\nevaluation: {n: 4, problems: ["warmup:new_instances"]}\n'
    )
    serving.write_text("max_model_len: 128\n")
    for step in (1, 2):
        folder = run / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "meta.json").write_text(json.dumps({"format": FORMAT, "step": step, "shapes": {}}))
    config = SelectConfig(run=run, evaluation=evaluation, serving=serving)

    def keep(step: int, stage: str, n: int, correct: int, **changes: Any) -> None:
        """What `select` leaves of a score."""
        path = run / "checkpoints" / f"step-{step:08d}"
        serve, settings = settings_of(config, path, "warmup:new_instances", n, stage)
        kept = run / "select" / path.name / stage / "score.json"
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps({"digest": digest(path, serve, settings), "record": record(correct, n)} | changes))

    for step, screened, full in ((1, 1, 3), (2, 2, 2)):
        keep(step, "screen", 2, screened)
        keep(step, "full", 4, full)
    said: list[str] = []
    best = select(config, said.append)  # there is no server, and the checkpoints cannot be loaded
    assert (best["checkpoint"], best["pass_at_1"]) == ("step-00000001", 0.75)
    assert (run / "checkpoints" / "best").read_text().strip() == "step-00000001"
    assert [line for line in said if line.endswith("scored before")] == [
        "screen step-00000001: pass@1 0.500, scored before", "screen step-00000002: pass@1 1.000, scored before",
        "full step-00000002: pass@1 0.500, scored before", "full step-00000001: pass@1 0.750, scored before",
    ]  # fmt: skip
    keep(2, "full", 4, 2, digest="of other settings")
    with pytest.raises(ConfigError, match="step-00000002"):  # it is scored anew, which fails here
        select(config, said.append)


def test_samples_of_another_checkpoint_are_not_gone_on_with(tmp_path: Path) -> None:
    folder = tmp_path / "screen"
    begin(folder, "first")
    (folder / "samples").write_text("of the first")
    begin(folder, "first")
    assert (folder / "samples").exists()
    begin(folder, "second")
    assert [path.name for path in folder.iterdir()] == ["digest"]


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
    for expected in (0, 4):  # a second selection takes the scores of the first
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("scored before") == expected
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
