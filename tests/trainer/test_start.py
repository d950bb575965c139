"""Starting in a folder that was used: the same command resumes, and nothing of an earlier run is lost by accident."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed.tensor import DTensor

from environments.common.errors import ConfigError
from environments.common.run_folder import claim
from environments.common.settings import load
from tests.trainer.conftest import make_groups
from tests.trainer.test_run import ROOT
from trainer import start
from trainer.checkpoint_folder import CheckpointError
from trainer.checkpoints import Checkpoints
from trainer.config import OptimizerConfig, TrainerConfig
from trainer.model.policy import Policy
from trainer.optimizer import PolicyOptimizer
from trainer.parallel import Parallel
from trainer.tracking import run_id

STEPS = 5


def checkpoint(run: Path, step: int, latest: bool = True) -> Path:
    """A folder that passes for a complete checkpoint wherever no tensor is read."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "meta.json").write_text(json.dumps({"format": 2, "step": step}))
    if latest:
        (folder.parent / "latest").write_text(folder.name + "\n")
    return folder


def config_of(run: Path, *flags: str) -> TrainerConfig:
    return load(TrainerConfig, ["--model", "m", "--run_dir", str(run), "--steps", str(STEPS), *flags])


def content(run: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != start.LOCK}


def test_the_same_command_goes_on_after_the_newest_checkpoint(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    with start.taken(config) as first:
        assert (first.checkpoint, first.resumed, first.step) == (None, False, 0)
    checkpoint(tmp_path, 1)
    newest = checkpoint(tmp_path, 2)
    with start.taken(config) as second:
        assert (second.checkpoint, second.resumed, second.step) == (newest, True, 2)


def test_auto_needs_no_pointer_where_a_death_came_before_it(tmp_path: Path) -> None:
    newest = checkpoint(tmp_path, 3, latest=False)
    assert start.beginning(config_of(tmp_path)).checkpoint == newest


@pytest.mark.parametrize("empty", ["", "null", "None"])
@pytest.mark.parametrize("left", ["checkpoint", "metrics.jsonl", "trained.jsonl"])
def test_starting_over_in_a_used_folder_is_refused_with_both_ways_on(tmp_path: Path, left: str, empty: str) -> None:
    if left == "checkpoint":
        checkpoint(tmp_path, 3)
    else:
        (tmp_path / left).write_text("{}\n")
    claim(tmp_path)
    before = content(tmp_path)
    with pytest.raises(ConfigError, match=r"--checkpoint.resume auto to resume .* --run_dir and another folder"):
        with start.taken(config_of(tmp_path, "--checkpoint.resume", empty)):
            pass
    assert content(tmp_path) == before


def test_a_stage_before_does_not_excuse_starting_over(tmp_path: Path) -> None:
    stage, run = tmp_path / "stage", tmp_path / "run"
    chosen = checkpoint(stage, 7)
    flags = ["--init_from.run", str(stage), "--init_from.select", "latest"]
    found = start.beginning(config_of(run, *flags))
    assert (found.checkpoint, found.resumed, found.step) == (chosen, False, 0)
    own = checkpoint(run, 2)
    with pytest.raises(ConfigError, match="step-00000002"):
        start.beginning(config_of(run, *flags, "--checkpoint.resume", ""))
    assert start.beginning(config_of(run, *flags)).checkpoint == own


def test_a_checkpoint_of_another_run_does_not_push_the_runs_own_out(tmp_path: Path) -> None:
    other, run = checkpoint(tmp_path / "other", 9), tmp_path / "run"
    assert start.beginning(config_of(run, "--checkpoint.resume", str(other))).step == 9
    checkpoint(run, 2)
    with pytest.raises(ConfigError, match="step-00000002 of its own, which would be lost"):
        start.beginning(config_of(run, "--checkpoint.resume", str(other)))
    own = run / "checkpoints" / "step-00000002"
    assert start.beginning(config_of(run, "--checkpoint.resume", str(own))).checkpoint == own


@pytest.mark.parametrize("which", ["latest", "best", "step-00000004"])
def test_a_checkpoint_that_is_not_there_is_bad_input(tmp_path: Path, which: str) -> None:
    with pytest.raises(CheckpointError, match=which) as caught:
        start.beginning(config_of(tmp_path, "--checkpoint.resume", which))
    assert caught.value.exit_code == 2


def test_options_that_changed_since_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with start.taken(config_of(tmp_path, "--optimizer.lr", "0.001")):
        pass
    checkpoint(tmp_path, 5)
    with caplog.at_level(logging.INFO), start.taken(config_of(tmp_path, "--optimizer.lr", "0.0005")):
        pass
    assert "option optimizer.lr is now 0.0005; the run began with 0.001" in caplog.text
    assert "all 5 steps are done: a higher --steps trains further, another --run_dir starts over" in caplog.text


HOLD = """
import sys
from environments.common.settings import load
from trainer import start
from trainer.config import TrainerConfig
with start.taken(load(TrainerConfig, sys.argv[1:])):
    print("taken", flush=True)
    sys.stdin.read()
"""


def test_a_second_trainer_on_one_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "RELEASED_WITHIN_S", 0.3)
    words = [sys.executable, "-c", HOLD, "--model", "m", "--run_dir", str(tmp_path)]
    with subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "taken\n"
        before = content(tmp_path)
        with pytest.raises(ConfigError, match=f"run_dir {tmp_path}: another trainer is running there"):
            with start.taken(config_of(tmp_path, "--optimizer.lr", "0.5")):
                pass
        assert content(tmp_path) == before
        first.kill()
    with start.taken(config_of(tmp_path)):
        pass


NEW = {"lr": 5e-4, "betas": (0.8, 0.99), "weight_decay": 0.1, "eps": 1e-6}


def trained(policy: Policy, optimizer: PolicyOptimizer) -> PolicyOptimizer:
    from trainer.model.packing import pack

    (micro,) = pack(make_groups([(6, [4, 5])]), [[1.0, -1.0]], 64, device=policy.device)
    (-policy.logprobs(micro)[0].sum()).backward()
    optimizer.step()
    return optimizer


def test_the_optimizers_options_are_the_configurations_after_a_resume(
    models: dict[str, Path], tmp_path: Path, alone: Parallel
) -> None:
    policy = Policy(models["qwen3"], alone)
    checkpoints = Checkpoints(tmp_path, alone)
    saved = trained(policy, PolicyOptimizer(policy, OptimizerConfig(lr=1e-3)))
    path = checkpoints.save(policy, saved, 1)
    checkpoints.wait()
    other = Policy(models["qwen3"], alone)
    resumed = PolicyOptimizer(other, OptimizerConfig(**NEW))
    checkpoints.load(str(path), other, resumed)
    checkpoints.close()
    assert resumed.updates == 1
    moments = [state["exp_avg"].full_tensor() for state in resumed.adamw.state.values()]
    assert len(moments) == len(resumed.parameters)
    assert any(one.abs().sum() > 0 for one in moments)
    for group in resumed.adamw.param_groups:
        decay = NEW["weight_decay"] if group["params"][0].ndim >= 2 else 0.0
        wanted = {**NEW, "weight_decay": decay}
        assert {name: group[name] for name in wanted} == wanted
    # And the next update is AdamW's with them: torch's own, from the same moments.
    one = resumed.parameters[0]
    assert isinstance(one, DTensor)
    before, state = one.full_tensor().clone(), resumed.adamw.state[one]
    average, square, steps = (state[name].clone() for name in ("exp_avg", "exp_avg_sq", "step"))
    gradient = torch.ones_like(before)
    for weight in resumed.parameters:
        weight.grad = torch.ones_like(weight)
    norm = resumed.step().grad_norm
    gradient *= min(1.0, resumed.config.max_grad_norm / norm)
    average = 0.8 * average.full_tensor() + 0.2 * gradient
    square = 0.99 * square.full_tensor() + 0.01 * gradient**2
    count = float(steps) + 1
    step = average / (1 - 0.8**count) / ((square / (1 - 0.99**count)).sqrt() + 1e-6)
    expected = before * (1 - 5e-4 * 0.1) - 5e-4 * step
    assert torch.allclose(one.full_tensor(), expected, atol=1e-7)


WANDB = """
import os, sys
from environments.common.errors import ConfigError
from environments.common.settings import load
from trainer.config import TrainerConfig
from trainer.tracking import tracking
config = load(TrainerConfig, sys.argv[1:])
try:
    with tracking(config):
        pass
except ConfigError as error:
    print(error)
os.environ["WANDB_MODE"] = "offline"
import wandb
wandb.teardown()
for step in (1, 1, 2):  # a step that comes again after a resume is logged again
    with tracking(config) as (tracker,):
        tracker.log(step, {"loss": 0.5})
        tracker.rollouts(step, [{"step": step, "completion": "print(1)", "overlong": False}])
        print(tracker.id)
"""


def test_weights_and_biases_wants_a_key_or_offline_and_gets_one_run_for_a_folder(tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    run = tmp_path / "run"
    run.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", WANDB, "--model", "m", "--run_dir", str(run), "--use_wandb", "true"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**kept, "HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), "WANDB_SILENT": "true"},
    )
    assert done.returncode == 0, done.stderr
    refusal, *ids = done.stdout.splitlines()
    assert refusal.startswith("use_wandb true: no API key for Weights & Biases. Run `wandb login`")
    assert ids == [run_id(run)] * 3
    tables = [json.loads(path.read_text()) for path in run.glob("wandb/offline-run-*/files/media/table/train/*.json")]
    assert {tuple(one["columns"]) for one in tables} == {("step", "completion", "overlong")}
    assert sorted(one["data"] for one in tables) == [[[step, "print(1)", False]] for step in (1, 1, 2)]


OPTIONAL = [
    *("memory_gib", "init_from.run", "objective.clip_low", "objective.clip_high", "objective.dual_clip"),
    *("objective.sequence_mask_low", "objective.sequence_mask_high", "weights.nccl_address", "checkpoint.resume"),
]


def test_empty_is_written_in_three_ways_by_flag_and_in_a_file(tmp_path: Path) -> None:
    written = tmp_path / "trainer.yaml"
    for name in OPTIONAL:
        for empty in ("", "null", "None"):
            config = config_of(tmp_path, f"--{name}", empty)
            section, _, field = name.rpartition(".")
            assert getattr(getattr(config, section) if section else config, field) is None, (name, empty)
        for empty in ("", "''", "null", '"null"', "None", "~"):
            line = f"{section}: {{{field}: {empty}}}" if section else f"{field}: {empty}"
            written.write_text(f"model: m\nrun_dir: r\n{line}\n")
            config = load(TrainerConfig, ["--config", str(written)])
            assert getattr(getattr(config, section) if section else config, field) is None, (name, empty)
