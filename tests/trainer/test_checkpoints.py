"""Checkpoints: resuming equals going on, half-written ones do not exist, and an export loads in transformers."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.trainer.two_ranks import start, train, weights
from trainer.checkpoints import CheckpointError, Checkpoints
from trainer.export import ExportError, save_hf
from trainer.parallel import Parallel


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
    Checkpoints(tmp_path, alone).save(policy, optimizer, 2, {"epoch": [1, "a"]})
    losses = train(policy, optimizer, alone, 2)
    drawn = (torch.rand(1).item(), random.random())

    resumed, fresh = start(model_path, alone)
    restored = Checkpoints(tmp_path, alone).load("latest", resumed, fresh)
    assert (restored.step, restored.extra, fresh.updates) == (2, {"epoch": [1, "a"]}, 2)
    assert train(resumed, fresh, alone, 2) == losses
    assert (torch.rand(1).item(), random.random()) == drawn
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
        assert rank.startswith("CheckpointError: checkpoint 'step-00000009'")
        assert rank.endswith("complete ones here: step-00000002")


def test_latest_without_any_checkpoint_is_an_error(alone: Parallel, models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"checkpoint 'latest': .* has none; give a checkpoint's folder"):
        Checkpoints(tmp_path, alone).load("latest", *start(models["llama"], alone))


def test_a_save_that_dies_leaves_the_older_one_in_use(
    alone: Parallel, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, optimizer = start(models["llama"], alone)
    checkpoints = Checkpoints(tmp_path, alone)
    first = checkpoints.save(policy, optimizer, 1)

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("trainer.checkpoints._random_state", full_disk)
        with pytest.raises(OSError, match="No space left"):
            checkpoints.save(policy, optimizer, 2)
    assert checkpoints.complete() == [first]
    assert checkpoints.load("latest", policy, optimizer).step == 1
    assert [path.name for path in tmp_path.glob(".step-*")] == [".step-00000002"]
    checkpoints.save(policy, optimizer, 3)
    assert not list(tmp_path.glob(".step-*"))


def test_a_folder_without_its_last_file_is_not_loaded(alone: Parallel, models: dict[str, Path], tmp_path: Path) -> None:
    policy, optimizer = start(models["llama"], alone)
    checkpoints = Checkpoints(tmp_path, alone)
    (checkpoints.save(policy, optimizer, 4) / "meta.json").unlink()
    for which in ("latest", "step-00000004", str(tmp_path / "step-00000004")):
        with pytest.raises(CheckpointError, match="missing or incomplete"):
            checkpoints.load(which, policy, optimizer)


def test_the_last_ones_are_kept_and_latest_is_the_newest(
    alone: Parallel, models: dict[str, Path], tmp_path: Path
) -> None:
    policy, optimizer = start(models["llama"], alone)
    checkpoints = Checkpoints(tmp_path, alone, keep_last=2)
    for step in (5, 6, 7, 3):  # 3: after a resume from an older step
        checkpoints.save(policy, optimizer, step)
    assert [path.name for path in checkpoints.complete()] == ["step-00000003", "step-00000007"]
    assert checkpoints.load("latest", policy, optimizer).step == 3


def test_saving_a_step_again_replaces_it(alone: Parallel, models: dict[str, Path], tmp_path: Path) -> None:
    policy, optimizer = start(models["llama"], alone)
    checkpoints = Checkpoints(tmp_path, alone)
    checkpoints.save(policy, optimizer, 1, {"try": 1})
    checkpoints.save(policy, optimizer, 1, {"try": 2})
    assert checkpoints.load("latest", policy, optimizer).extra == {"try": 2}


def test_a_checkpoint_of_another_model_names_the_first_difference(
    alone: Parallel, models: dict[str, Path], tmp_path: Path
) -> None:
    checkpoints = Checkpoints(tmp_path, alone)
    checkpoints.save(*start(models["llama"], alone), 1)
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
    loaded, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
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
