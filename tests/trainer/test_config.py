"""The trainer's options: the set is frozen, and combinations that make no sense are refused with the fix."""

import subprocess
import sys
from pathlib import Path

import pytest

from environments.common.settings import ConfigError, load, option_names
from trainer.config import TrainerConfig

ROOT = Path(__file__).resolve().parents[2]
BASE = ["--model", "m", "--run_dir", "r"]
COLOCATED = ["--weights.backend", "colocated", "--weights.servers", "http://127.0.0.1:1"]

# A new option is a decision: add it here, with its sentence in trainer/config.py.
OPTIONS = """
model run_dir steps seed activation_checkpointing compile logprob_chunk memory_gib keep_batches record_tokens use_wandb
trackers tracked_rollouts
init_from.run init_from.select init_from.optimizer
adapter.rank adapter.alpha adapter.targets adapter.dropout
objective.name objective.clip_low objective.clip_high objective.dual_clip objective.kl_coefficient
objective.reference objective.reference_decay objective.reference_offload
objective.old_logprobs objective.importance_weight objective.tis_cap
objective.icepop_low objective.icepop_high objective.sequence_mask_low objective.sequence_mask_high
objective.optimizer_steps_per_batch
objective.overlong_baseline
optimizer.lr optimizer.betas optimizer.weight_decay optimizer.eps optimizer.warmup_steps optimizer.decay
optimizer.decay_share optimizer.max_grad_norm optimizer.state optimizer.moments
batch.rollouts batch.group_size batch.context batch.max_tokens batch.temperature batch.untrainable
api.url api.batch_deadline_s
weights.backend weights.servers weights.servers_from weights.dtype weights.pause_mode weights.deadline_s weights.wait_s
weights.verify_every weights.nccl_address weights.full_every weights.pause_while_training weights.sleep_level
weights.server_share
checkpoint.every checkpoint.keep_last checkpoint.resume checkpoint.stop_deadline_s checkpoint.export
""".split()


def test_the_set_of_options_is_frozen() -> None:
    assert list(option_names(TrainerConfig)) == OPTIONS


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--objective.name", "ppo"], ["'ppo'", "grpo, dapo, gspo, gspo+, dr_grpo"]),
        (["--objective.name", "gspo+", "--objective.dual_clip", "3"], ["dual_clip", "use grpo or dapo"]),
        (["--objective.name", "gspo", "--objective.old_logprobs", "sampler"], ["recompute"]),
        (["--objective.old_logprobs", "sampler", "--objective.sequence_mask_low", "0.5"], ["no mismatch", "recompute"]),
        (["--objective.old_logprobs", "sampler", "--objective.importance_weight", "icepop"], ["recompute"]),
        (["--objective.name", "gspo"], ["differs from grpo only by", "optimizer_steps_per_batch to 2"]),
        (["--objective.name", "gspo+"], ["differs from dapo only by", "objective.name to dapo"]),
        (["--objective.reference", "ema", "--adapter.rank", "4"], ["is its base", "objective.reference: frozen"]),
        (
            ["--objective.reference", "frozen", "--objective.reference_offload", "true", "--adapter.rank", "4"],
            ["objective.reference_offload with adapter.rank 4", "leave it out"],
        ),
        (["--batch.rollouts", "20", "--batch.group_size", "8"], ["not divisible", "set rollouts to 16 or 24"]),
        (["--batch.max_tokens", "512", "--batch.context", "640"], ["max_tokens 512 < context 640"]),
        (
            ["--trackers", "wandb,neptune"],
            ["'neptune' is unknown: choose one of wandb, tensorboard, mlflow, trackio"],
        ),
        (["--weights.dtype", "float8"], ["weights.dtype", "'float8'"]),
        (["--weights.backend", "ipc"], ["weights.backend", "'disk', 'nccl' or 'colocated'"]),
        (["--weights.sleep_level", "2"], ["weights.sleep_level 2 has no effect", "set weights.backend: colocated"]),
        (["--weights.server_share", "0.5"], ["weights.server_share 0.5 has no effect"]),
        (["--weights.backend", "colocated"], ["weights.servers []", "one server shares the trainer's GPU"]),
        (
            [*COLOCATED, "--weights.servers", "http://127.0.0.1:1,http://127.0.0.1:2"],
            ["one server shares the trainer's GPU", "set weights.backend: nccl"],
        ),
        ([*COLOCATED, "--weights.pause_while_training", "true"], ["weights.pause_while_training True", "leave it out"]),
        ([*COLOCATED, "--weights.pause_mode", "abort"], ["weights.pause_mode abort", "keeps its requests"]),
        ([*COLOCATED, "--weights.sleep_level", "3"], ["weights.sleep_level"]),
        ([*COLOCATED, "--adapter.rank", "4"], ["weights.backend colocated with adapter.rank 4", "backend: disk"]),
        (["--weights.nccl_address", "10.0.0.1"], ["nccl_address '10.0.0.1'", "set weights.backend: nccl"]),
        (["--steps", "0"], ["steps"]),
        (["--steps", "true"], ["steps"]),
        (["--optimizer.betas", "1.5,2"], ["optimizer.betas.0 = ", "less than 1"]),
        (["--optimizer.betas", "0.9,1"], ["optimizer.betas.1 = ", "less than 1"]),
        (["--optimizer.lr", "inf"], ["optimizer.lr"]),
        (["--optimizer.eps", "nan"], ["optimizer.eps"]),
        (["--api.url", "localhost:8000"], ["api.url", "http://HOST:PORT"]),
        (["--weights.servers", '["http://a:1", "http://a:1/"]'], ["weights.servers names http://a:1 twice"]),
        (["--weights.servers", "localhost:8001"], ["weights.servers", "http://HOST:PORT"]),
        (["--objective.clip_lo", "0.1"], ["Did you mean objective.clip_low?"]),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_fix(flags: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(TrainerConfig, [*BASE, *flags])
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("file", "name"),
    [("trainer", "dapo"), ("trainer_grpo", "grpo"), ("trainer_gspo", "gspo"), ("trainer_gspo_plus", "gspo+")],
)
def test_every_objective_has_a_shipped_configuration_that_differs_in_the_objective_only(file: str, name: str) -> None:
    used = load(TrainerConfig, ["--config", str(ROOT / f"configs/demo/{file}.yaml")])
    demo = load(TrainerConfig, ["--config", str(ROOT / "configs/demo/trainer.yaml")])
    assert used.objective.name == name
    assert used.batch.groups == 8
    assert used.model_copy(update={"objective": demo.objective}) == demo


def test_main_runs_from_another_folder_and_lists_its_options(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "trainer" / "main.py"), "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "--objective.name" in done.stdout


def test_bad_settings_end_before_anything_starts(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "trainer" / "main.py"), *BASE, "--batch.rollouts", "9"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "not divisible" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_recipes_stages_differ_in_their_context_and_their_beginning() -> None:
    first, second = (
        load(TrainerConfig, ["--config", str(ROOT / f"configs/nouscoder-14b/train-{stage}.yaml")])
        for stage in ("32k", "40k")
    )
    assert (first.batch.context, second.batch.context) == (32_768, 40_960)
    assert (second.init_from.run, second.init_from.select) == (first.run_dir, "best")
    same = {"run_dir": first.run_dir, "batch": first.batch, "init_from": first.init_from}
    assert second.model_copy(update=same) == first
