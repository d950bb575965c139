"""Which files of a folder are the model: those that transformers reads, whatever else lies there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.trainer.conftest import make_model
from trainer.model.loading import UnsupportedModel
from trainer.model.policy import Policy
from trainer.model.weight_files import INDEX, SINGLE, checkpoint_files
from trainer.parallel import Parallel
from trainer.weight_sync.disk import DiskPublisher


def sharded(folder: Path, kind: str = "qwen3", size: str = "8KB") -> Path:
    make_model(kind).save_pretrained(folder, max_shard_size=size)
    return folder


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def as_transformers_reads(folder: Path) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return dict(model.state_dict())


def test_shards_of_an_older_save_are_not_read(alone: Parallel, tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m")
    used = checkpoint_files(folder)
    assert len(used) > 3
    for number in range(1, 10):  # every tensor again, in shards of another count that sort first and last
        for name in (f"model-{number:05d}-of-00009.safetensors", f"model-{number:05d}-of-99999.safetensors"):
            save_file({key: value + number for key, value in stored(folder).items()}, folder / name)
    assert checkpoint_files(folder) == used
    wanted = as_transformers_reads(folder)
    got = Policy(folder, alone).state_dict_full()
    assert len(got) == len(wanted)
    assert all(torch.equal(value, wanted[name]) for name, value in got.items())


@pytest.mark.parametrize("layout", ["single", "shards"])
def test_the_same_weights_in_another_layout_are_not_read(alone: Parallel, tmp_path: Path, layout: str) -> None:
    folder = sharded(tmp_path / "m", size="8KB" if layout == "shards" else "1GB")
    other = {f"layers.{number}.wq": torch.zeros(4) for number in range(3)}
    save_file(other, folder / "consolidated.safetensors")
    save_file(other, folder / "adapter_model.safetensors")
    wanted = as_transformers_reads(folder)
    got = Policy(folder, alone).state_dict_full()
    assert len(got) == len(wanted)
    assert all(torch.equal(value, wanted[name]) for name, value in got.items())


def test_the_single_file_comes_before_an_index(alone: Parallel, tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m")
    save_file({name: value + 1 for name, value in stored(folder).items()}, folder / SINGLE, {"format": "pt"})
    wanted = as_transformers_reads(folder)
    got = Policy(folder, alone).state_dict_full()
    assert all(torch.equal(value, wanted[name]) for name, value in got.items())


def test_the_changed_share_is_of_the_models_own_weights(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m")
    same = stored(folder)
    save_file({name: value + 1 for name, value in same.items()}, folder / "model-00001-of-99999.safetensors")
    stats = DiskPublisher([], tmp_path / "weights", initial=folder).publish(same, 1)
    assert stats is not None
    assert stats.changed_share == 0.0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: (f / "model-00002-of-00008.safetensors").unlink(), "names model-00002-of-00008.safetensors, which"),
        (lambda f: (f / INDEX).write_text("{"), f"{INDEX} is damaged"),
        (lambda f: (f / INDEX).write_text('{"weight_map": {"a": "../m.safetensors"}}'), "names ../m.safetensors"),
        (lambda f: (f / INDEX).unlink(), f"neither {SINGLE} nor {INDEX} there, beside model-00001"),
    ],
    ids=["a shard is missing", "the index is cut off", "a file outside", "no index"],
)
def test_an_incomplete_folder_is_refused_by_its_file(
    alone: Parallel, tmp_path: Path, change: Callable[[Path], Any], words: str
) -> None:
    folder = sharded(tmp_path / "m", size="16KB")
    assert len(checkpoint_files(folder)) == 8
    change(folder)
    with pytest.raises(UnsupportedModel) as caught:
        Policy(folder, alone)
    assert words in str(caught.value)
    assert caught.value.exit_code == 2


def with_a_stored_head(folder: Path, change: float = 0.0, size: str = "1GB") -> Path:
    """A tied model whose files hold its head as well, as the official Qwen3-0.6B does."""
    sharded(folder, "llama", size)
    tensors = stored(folder)
    head = tensors["model.embed_tokens.weight"].clone()
    head[-1, -1] += change
    if size == "1GB":
        save_file(tensors | {"lm_head.weight": head}, folder / SINGLE, {"format": "pt"})
    else:
        save_file({"lm_head.weight": head}, folder / "model-head.safetensors", {"format": "pt"})
        index = json.loads((folder / INDEX).read_text())
        index["weight_map"]["lm_head.weight"] = "model-head.safetensors"
        (folder / INDEX).write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("size", ["1GB", "8KB"], ids=["one file", "shards"])
def test_a_stored_head_has_to_be_the_tied_one(alone: Parallel, tmp_path: Path, size: str) -> None:
    same = Policy(with_a_stored_head(tmp_path / "same", size=size), alone)
    assert "lm_head.weight" not in same.state_dict_full()
    other = with_a_stored_head(tmp_path / "other", 1e-3, size)
    with pytest.raises(UnsupportedModel, match=r"a lm_head.weight that differs"):
        Policy(other, alone)
    config = json.loads((other / "config.json").read_text()) | {"tie_word_embeddings": False}
    (other / "config.json").write_text(json.dumps(config))
    assert torch.equal(Policy(other, alone).state_dict_full()["lm_head.weight"], stored(other)["lm_head.weight"])
