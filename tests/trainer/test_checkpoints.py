"""Checkpoints: resuming equals going on, half-written ones do not exist, and an export loads in transformers."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from environments import cli
from tests.support.forked import completed, forked
from tests.trainer.two_ranks import start, train, weights
from trainer.checkpoints import CheckpointError, Checkpoints, point_best
from trainer.model.export import ExportError, save_hf
from trainer.model.policy import Policy
from trainer.optimizer import PolicyOptimizer
from trainer.parallel import Parallel, distributed


def dies_in_its_second_save(model: Path, folder: Path, reached: str) -> None:
    """At the first call of the function that is named."""
    with distributed(60, "cpu") as parallel:
        state = start(model, parallel)
        checkpoints = Checkpoints(folder, parallel)
        checkpoints.save(*state, 1)
        checkpoints.wait()
        with patch(reached, lambda *_: os.kill(os.getpid(), signal.SIGKILL)):
            checkpoints.save(*state, 2)
            checkpoints.wait()


def atropos(words: list[str]) -> None:
    cli.app(words)


def assert_same(ours: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 0.0) -> None:
    """Equal to within `tolerance` times each tensor's norm."""
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        assert (ours[name] - value).norm() <= tolerance * value.norm(), name


def test_resuming_equals_the_uninterrupted_run(alone: Parallel, model_path: Path, tmp_path: Path) -> None:
    policy, optimizer = start(model_path, alone)
    train(policy, optimizer, alone, 2)
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    saving = Checkpoints(tmp_path, alone)
    saving.save(policy, optimizer, 2, {"epoch": [1, "a"]})
    losses = train(policy, optimizer, alone, 2)  # changes the weights while they are being written
    drawn = (torch.rand(1).item(), random.random(), np.random.rand())
    saving.wait()

    resumed, fresh = start(model_path, alone)
    restored = Checkpoints(tmp_path, alone).load("latest", resumed, fresh)
    assert (restored.step, restored.extra, fresh.updates) == (2, {"epoch": [1, "a"]}, 2)
    assert train(resumed, fresh, alone, 2) == losses
    assert (torch.rand(1).item(), random.random(), np.random.rand()) == drawn
    assert_same(weights(resumed), weights(policy))


def test_what_two_ranks_saved_one_rank_goes_on_with(
    alone: Parallel, models: dict[str, Path], two_ranks: dict[Any, Any]
) -> None:
    policy, optimizer = start(models["llama"], alone)
    restored = Checkpoints(two_ranks["folder"] / "by-two", alone).load("latest", policy, optimizer)
    assert (restored.step, restored.extra) == (2, {"lease": 5})
    train(policy, optimizer, alone, 1)
    assert_same(weights(policy), two_ranks["after three"], tolerance=1e-5)


def test_what_one_rank_saved_two_ranks_go_on_with(
    alone: Parallel, models: dict[str, Path], two_ranks: dict[Any, Any]
) -> None:
    policy, optimizer = start(models["llama"], alone)
    train(policy, optimizer, alone, 3)
    assert_same(two_ranks["resumed from one"], weights(policy), tolerance=1e-5)


def test_a_missing_checkpoint_is_an_error_on_every_rank(two_ranks: dict[Any, Any]) -> None:
    for rank in (two_ranks["missing"], two_ranks["missing of rank 1"]):
        assert rank.startswith("UnusableCheckpoint: checkpoint 'step-00000009'")
        assert rank.endswith("complete ones here: step-00000002")


def test_latest_without_any_checkpoint_is_an_error(alone: Parallel, models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"checkpoint 'latest': .* has none; give a checkpoint's folder"):
        Checkpoints(tmp_path, alone).load("latest", *start(models["llama"], alone))


def saved(checkpoints: Checkpoints, policy: Policy, optimizer: PolicyOptimizer, step: int, **extra: int) -> Path:
    """A checkpoint that is complete."""
    folder = checkpoints.save(policy, optimizer, step, extra)
    checkpoints.wait()
    return folder


def test_a_save_that_fails_is_an_error_and_leaves_the_older_one_in_use(
    alone: Parallel, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, optimizer = start(models["llama"], alone)
    checkpoints = Checkpoints(tmp_path, alone)
    first = saved(checkpoints, policy, optimizer, 1)

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("trainer.checkpoints.publish_folder", full_disk)
        checkpoints.save(policy, optimizer, 2)
        with pytest.raises(CheckpointError, match=r"No space left on device.*the older ones are untouched"):
            checkpoints.wait()
    assert (checkpoints.complete(), checkpoints.durable) == ([first], 1)
    assert checkpoints.load("latest", policy, optimizer).step == 1
    assert [path.name for path in tmp_path.glob(".step-*")] == [".step-00000002"]
    saved(checkpoints, policy, optimizer, 3)
    assert not list(tmp_path.glob(".step-*"))


@pytest.mark.parametrize("reached", ["trainer.checkpoints.write_text", "trainer.checkpoints.publish_folder"])
def test_a_process_killed_while_it_writes_leaves_the_older_one_in_use(
    alone: Parallel, models: dict[str, Path], tmp_path: Path, reached: str
) -> None:
    died = forked(dies_in_its_second_save, models["llama"], tmp_path, reached)
    died.join()
    assert died.returncode == -signal.SIGKILL
    policy, optimizer = start(models["llama"], alone)
    checkpoints = Checkpoints(tmp_path, alone)
    assert [path.name for path in checkpoints.complete()] == ["step-00000001"]
    assert checkpoints.load("latest", policy, optimizer).step == 1


def test_only_what_is_written_is_acknowledged(two_ranks: dict[Any, Any]) -> None:
    assert (two_ranks["durable"], two_ranks["durable of rank 1"]) == (2, None)


def test_a_folder_without_its_last_file_is_not_loaded(alone: Parallel, models: dict[str, Path], tmp_path: Path) -> None:
    policy, optimizer = start(models["llama"], alone)
    checkpoints = Checkpoints(tmp_path, alone)
    (saved(checkpoints, policy, optimizer, 4) / "meta.json").unlink()
    for which in ("latest", "step-00000004", str(tmp_path / "step-00000004")):
        with pytest.raises(CheckpointError, match="missing or incomplete"):
            checkpoints.load(which, policy, optimizer)


def test_a_damaged_checkpoint_is_one_clear_error(alone: Parallel, models: dict[str, Path], tmp_path: Path) -> None:
    policy, optimizer = start(models["llama"], alone)
    checkpoints = Checkpoints(tmp_path, alone)
    for part in saved(checkpoints, policy, optimizer, 4).glob("*.distcp"):
        part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"step-00000004 cannot be read .*give an older one"):
        checkpoints.load("latest", policy, optimizer)


def test_the_last_ones_are_kept_and_latest_is_the_newest(
    alone: Parallel, models: dict[str, Path], tmp_path: Path
) -> None:
    policy, optimizer = start(models["llama"], alone)
    checkpoints = Checkpoints(tmp_path, alone, keep_last=2)
    for step in (5, 6, 7, 3):  # 3: after a resume from an older step
        saved(checkpoints, policy, optimizer, step)
    assert [path.name for path in checkpoints.complete()] == ["step-00000003", "step-00000007"]
    assert checkpoints.load("latest", policy, optimizer).step == 3


def test_the_best_one_is_kept_beside_the_last_ones(alone: Parallel, models: dict[str, Path], tmp_path: Path) -> None:
    policy, optimizer = start(models["llama"], alone)
    checkpoints = Checkpoints(tmp_path, alone, keep_last=1)
    saved(checkpoints, policy, optimizer, 1)
    point_best(tmp_path, "step-00000001")
    for step in (2, 3):
        saved(checkpoints, policy, optimizer, step)
    assert [path.name for path in checkpoints.complete()] == ["step-00000001", "step-00000003"]
    assert checkpoints.load("best", policy, optimizer).step == 1


def test_a_new_stage_takes_the_weights_and_nothing_else(
    alone: Parallel, models: dict[str, Path], tmp_path: Path
) -> None:
    policy, optimizer = start(models["llama"], alone)
    train(policy, optimizer, alone, 1)
    saved(Checkpoints(tmp_path, alone), policy, optimizer, 1)
    fresh, moments = start(models["llama"], alone)
    Checkpoints(tmp_path, alone).load("latest", fresh, None)
    assert_same(weights(fresh), weights(policy))
    assert (moments.updates, moments.adamw.state_dict()["state"]) == (0, {})


def test_saving_a_step_again_replaces_it(alone: Parallel, models: dict[str, Path], tmp_path: Path) -> None:
    policy, optimizer = start(models["llama"], alone)
    checkpoints = Checkpoints(tmp_path, alone)
    saved(checkpoints, policy, optimizer, 1, attempt=1)
    saved(checkpoints, policy, optimizer, 1, attempt=2)
    assert checkpoints.load("latest", policy, optimizer).extra == {"attempt": 2}


def test_a_checkpoint_of_another_model_names_the_first_difference(
    alone: Parallel, models: dict[str, Path], tmp_path: Path
) -> None:
    checkpoints = Checkpoints(tmp_path, alone)
    saved(checkpoints, *start(models["llama"], alone), 1)
    with pytest.raises(CheckpointError, match=r"another model: lm_head.weight has shape none there and \[61, 32\]"):
        checkpoints.load("latest", *start(models["qwen3"], alone))


def test_an_export_loads_in_transformers_with_the_trained_weights(
    alone: Parallel, model_path: Path, tmp_path: Path
) -> None:
    source = shutil.copytree(model_path, tmp_path / "source")
    (source / "tokenizer.json").write_text("{}")
    (source / "chat_template.jinja").write_text("{{ messages }}")
    policy, optimizer = start(source, alone)
    train(policy, optimizer, alone, 1)
    folder = save_hf(policy, tmp_path / "export", source)
    assert (folder / "chat_template.jinja").read_text() == "{{ messages }}"
    both: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    loaded, report = both
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert loaded.dtype == torch.float32
    assert_same(dict(loaded.named_parameters()), weights(policy))


def test_an_export_has_the_files_and_keys_that_transformers_writes(
    alone: Parallel, model_path: Path, tmp_path: Path
) -> None:
    source = shutil.copytree(model_path, tmp_path / "source")
    (source / "tokenizer.json").write_text("{}")
    folder = save_hf(start(source, alone)[0], tmp_path / "export", source)
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in source.iterdir())
    ours, theirs = (json.loads((path / "config.json").read_text()) for path in (folder, source))
    assert ours == theirs
    # The whole file: names, order, types and bytes.
    assert (folder / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()


def test_an_export_in_bf16_says_so_in_its_configuration(
    alone: Parallel, models: dict[str, Path], tmp_path: Path
) -> None:
    source = shutil.copytree(models["llama"], tmp_path / "source")
    (source / "tokenizer.json").write_text("{}")
    policy, _ = start(source, alone)
    folder = save_hf(policy, tmp_path / "export", source, torch.bfloat16)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(folder, dtype="auto").dtype == torch.bfloat16


def test_the_export_command_writes_the_checkpoint_that_is_asked_for(
    alone: Parallel, models: dict[str, Path], tmp_path: Path
) -> None:
    source = shutil.copytree(models["qwen3"], tmp_path / "source")
    (source / "tokenizer.json").write_text("{}")
    run = tmp_path / "run"
    (run / "config").mkdir(parents=True)
    settings = "model: {}\nrun_dir: {}\nbatch: {{context: 64, max_tokens: 64}}\n"
    (run / "config" / "trainer.yaml").write_text(settings.format(source, run))
    policy, optimizer = start(source, alone)
    checkpoints = Checkpoints(run / "checkpoints", alone)
    expected = {}
    for step in (1, 2):
        train(policy, optimizer, alone, 1)
        saved(checkpoints, policy, optimizer, step)
        expected[step] = weights(policy)
    point_best(run / "checkpoints", "step-00000001")

    def command(*words: str) -> subprocess.CompletedProcess[str]:
        return completed(atropos, ["export", *words])

    for which, step in (("latest", 2), ("best", 1)):
        done = command(str(run), "--out", str(tmp_path / which), "--checkpoint", which)
        assert done.returncode == 0, done.stderr
        assert f"the weights after step {step}, float32" in done.stdout
        model = AutoModelForCausalLM.from_pretrained(tmp_path / which)
        assert_same(dict(model.named_parameters()), expected[step])
    absent = command(str(run), "--out", str(tmp_path / "x"), "--checkpoint", "step-00000009")
    assert (absent.returncode, "Traceback" in absent.stderr) == (2, False)
    assert "complete ones here: step-00000001, step-00000002" in absent.stderr.replace("\n", " ")
    assert "no config/trainer.yaml" in command(str(tmp_path), "--out", str(tmp_path / "x")).stderr


def test_an_export_never_overwrites_its_source_or_something_else(
    alone: Parallel, models: dict[str, Path], tmp_path: Path
) -> None:
    policy, _ = start(models["llama"], alone)
    source = tmp_path / "source"
    source.mkdir()
    with pytest.raises(ExportError, match="no tokenizer files there"):
        save_hf(policy, tmp_path / "export", source)
    (source / "tokenizer.json").write_text("{}")
    with pytest.raises(ExportError, match="is the model that the run began with"):
        save_hf(policy, source, source)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").write_text("keep me")
    with pytest.raises(ExportError, match="exists and is no model"):
        save_hf(policy, tmp_path / "notes", source)
