"""What an export holds beside the weights, and who may read it."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, GenerationConfig

from environments.common.files import ordinary_mode
from tests.support.forked import completed
from tests.trainer.test_run import ROOT, api_server
from trainer.data.api_client import AtroposClient
from trainer.model.export import ExportError, check_export, save_hf
from trainer.model.policy import Policy
from trainer.parallel import Parallel
from trainer.weight_sync.disk import DiskPublisher

REFUSED_BY_SAVE_PRETRAINED = [
    {"temperature": 0.6, "top_p": 0.95},  # sampling options without do_sample
    {"pad_token_id": -1},
    {"early_stopping": True, "num_beams": 1},
    {"do_sample": False, "top_k": 20},
    {"an_option_of_a_later_version": {"deep": [1, None]}},
]


def copied(model: Path, folder: Path, generation: dict[str, Any] | None) -> Path:
    source = shutil.copytree(model, folder)
    (source / "tokenizer.json").write_text("{}")
    (source / "generation_config.json").unlink(missing_ok=True)
    if generation is not None:
        (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 3], **generation}, indent=3))
    return source


@pytest.mark.parametrize("generation", REFUSED_BY_SAVE_PRETRAINED, ids=lambda options: next(iter(options)))
def test_the_generation_config_is_the_first_models_as_it_stands(
    alone: Parallel, models: dict[str, Path], tmp_path: Path, generation: dict[str, Any]
) -> None:
    source = copied(models["llama"], tmp_path / "source", generation)
    folder = save_hf(Policy(source, alone), tmp_path / "export", source)
    name = "generation_config.json"
    assert (folder / name).read_bytes() == (source / name).read_bytes()
    assert GenerationConfig.from_pretrained(folder).eos_token_id == [2, 3]


def test_sampling_options_in_the_models_own_configuration_stay_there(
    alone: Parallel, models: dict[str, Path], tmp_path: Path
) -> None:
    source = copied(models["llama"], tmp_path / "source", None)
    config = json.loads((source / "config.json").read_text()) | {"temperature": 0.6, "eos_token_id": [2, 3]}
    (source / "config.json").write_text(json.dumps(config))
    folder = save_hf(Policy(source, alone), tmp_path / "export", source)
    assert AutoConfig.from_pretrained(folder).eos_token_id == [2, 3]
    assert not (folder / "generation_config.json").exists()


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_files_have_the_modes_that_the_umask_says(
    alone: Parallel, models: dict[str, Path], tmp_path: Path, mask: int
) -> None:
    source = copied(models["llama"], tmp_path / "source", {})
    before = os.umask(mask)
    try:
        policy = Policy(source, alone)
        folder = save_hf(policy, tmp_path / "export", source)
        DiskPublisher([], tmp_path / "weights").publish(policy, 1)
        (tmp_path / "opened").write_text("")
        ordinary_mode(tmp_path / "opened")
    finally:
        os.umask(before)
    files = [*folder.iterdir(), *(tmp_path / "weights").rglob("*.safetensors"), tmp_path / "opened"]
    assert len(files) >= 6
    assert {oct(path.stat().st_mode & 0o777) for path in files} == {oct(0o666 & ~mask)}


def test_an_export_that_cannot_be_written_is_found_before_training(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no tokenizer files there") as caught:
        check_export(tmp_path / "export", models["llama"])
    assert caught.value.exit_code == 2
    words = ["--model", str(models["llama"]), "--run_dir", str(tmp_path / "run"), "--api.url", "http://127.0.0.1:9"]
    done = completed([sys.executable, ROOT / "trainer" / "main.py", *words])
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"error tokenizer_source {models['llama']}: no tokenizer files")


def test_the_machines_proxy_does_not_stand_before_the_runs_own_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with api_server(tmp_path) as url:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        with AtroposClient(url, attempts=1) as client:
            assert client.status()["queue_size"] == 0
