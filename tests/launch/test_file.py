"""The one file of a run: what `atropos init` writes, and what each process is told by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from environments.common.run_folder import claim
from environments.common.settings import ConfigError, load, write_yaml
from environments.launch.config import load_launch, parts
from environments.launch.demo_config import DemoConfig
from environments.launch.disk import check_disk, disk_use, parameters
from environments.launch.display import Screen
from environments.launch.init import write_launch
from environments.launch.machine import Machine, free_memory_gib
from environments.launch.train import Training, check_folder, check_problems

API, SERVER = "http://127.0.0.1:4001", "http://127.0.0.1:4002"
ROWS = [
    {"id": name, "source": "mine", "kind": "stdin", "statement": text, "tests": [{"input": "1 2\n", "output": out}]}
    for name, text, out in (("a", "Print the sum.", "3\n"), ("b", "Print the product. " * 30, "2\n"))
]


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def written(tmp_path: Path, problems: Path, smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file for a machine of 16 GiB, whatever is free on this one at the moment."""
    monkeypatch.setattr("environments.launch.init.machine", lambda: Machine(2, 16.0))
    write_launch(tmp_path / "mine", smollm2, str(problems), 30, 4, 3, 64)
    return tmp_path / "mine.yaml"


def test_the_written_file_fits_its_problems_and_the_memory(written: Path, problems: Path) -> None:
    config = load_launch(["--config", str(written)])
    made = parts(config, API, [SERVER])
    assert (config.steps, config.group_size, config.groups, config.max_new_tokens) == (30, 4, 3, 64)
    assert check_problems(made) == (2, 0)  # every prompt fits
    assert made.trainer.batch.rollouts == 12
    assert made.trainer.batch.max_tokens % config.context == 0
    assert made.trainer.memory_gib is not None
    assert 5 < made.trainer.memory_gib < 16 - 2  # beside vLLM's weights and cache
    # a context that leaves less room than the longest prompt needs, and one that leaves no room for any
    assert check_problems(parts(config.model_copy(update={"context": config.context - 64}), API, [SERVER])) == (1, 1)
    with pytest.raises(ConfigError, match=r"no problem is left[\s\S]*Raise context or lower max_new_tokens"):
        check_problems(parts(config.model_copy(update={"context": 128}), API, [SERVER]))


def test_a_held_out_set_that_is_not_there_is_said_before_anything_starts(written: Path) -> None:
    config = load_launch(["--config", str(written), "--environment.evaluation.every", "10"])
    with pytest.raises(ConfigError, match=r"every with problems .*no validation split.*evaluation\.problems"):
        check_problems(parts(config, API, [SERVER]))
    config = load_launch([
        *("--config", str(written), "--environment.evaluation.every", "10"),
        *("--environment.evaluation.problems", "[nothing.jsonl]"),
    ])  # fmt: skip
    with pytest.raises(ConfigError, match=r"nothing\.jsonl: cannot be read"):
        check_problems(parts(config, API, [SERVER]))


def test_every_number_in_the_file_is_explained_or_said_elsewhere(written: Path) -> None:
    lines = written.read_text().splitlines()
    assert sum(" # " in line for line in lines) >= 20
    assert yaml.safe_load(written.read_text())["environment"]["env"]["prompt_style"] == "fewshot"  # 135 M parameters


def test_a_file_that_is_there_is_not_overwritten(written: Path, problems: Path, smollm2: Path) -> None:
    before = written.read_bytes()
    with pytest.raises(ConfigError, match="there already"):
        write_launch(written.with_suffix(""), smollm2, str(problems), 1, 2, 1, 8)
    assert written.read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": Path("nothing")}, "model nothing: no model there"),
        ({"problems": "nothing.jsonl"}, "nothing.jsonl: cannot be read"),
        ({"max_new_tokens": 9000}, "more than the model's 8192"),
    ],
)
def test_what_cannot_be_trained_on_is_said_before_a_file_is_written(
    tmp_path: Path, problems: Path, smollm2: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], words: str
) -> None:
    monkeypatch.setattr("environments.launch.init.machine", lambda: Machine(2, 64.0))
    asked: dict[str, Any] = {"model": smollm2, "problems": str(problems), "max_new_tokens": 16} | changes
    with pytest.raises(ConfigError) as caught:
        write_launch(tmp_path / "new", steps=1, group_size=2, groups=1, **asked)
    assert words in str(caught.value)
    assert not (tmp_path / "new.yaml").exists()


def test_a_batch_that_does_not_fit_is_refused_with_what_it_needs(
    tmp_path: Path, problems: Path, smollm2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("environments.launch.init.machine", lambda: Machine(2, 5.0))
    with pytest.raises(ConfigError, match=r"needs \d\.\d GiB at least, \d\.\d are there"):
        write_launch(tmp_path / "new", smollm2, str(problems), 1, 2, 1, 16)


def test_less_memory_takes_smaller_packs(
    tmp_path: Path, problems: Path, smollm2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    for gib in (64.0, 12.0):
        monkeypatch.setattr("environments.launch.init.machine", lambda gib=gib: Machine(2, gib))
        write_launch(tmp_path / f"new{gib}", smollm2, str(problems), 1, 2, 1, 1500)
        trainer = load_launch(["--config", str(tmp_path / f"new{gib}.yaml")]).trainer
        order = {"none": 0, "selective": 1, "full": 2}[trainer["activation_checkpointing"]]
        sizes.append((order, -trainer["batch"]["max_tokens"]))
    assert sizes[0] < sizes[1]


def test_the_sides_of_a_run_agree_on_all_that_they_share(written: Path) -> None:
    made = parts(load_launch(["--config", str(written)]), API, [SERVER])
    env, trainer, server = made.environment, made.trainer, made.server
    assert server is not None
    assert env.env.context == trainer.batch.context == server.max_model_len
    assert env.env.group_size == trainer.batch.group_size == 4
    assert str(env.model) == str(trainer.model) == str(server.model)
    assert Path(env.env.run_dir) == trainer.run_dir
    assert env.env.rollout_server_url == trainer.api.url == API
    assert env.servers == trainer.weights.servers == [server.url] == [SERVER]
    assert env.env.overlong_baseline == trainer.objective.overlong_baseline
    assert env.env.total_steps == trainer.steps == 30
    assert trainer.checkpoint.resume == "auto"
    assert trainer.weights.dtype == "float32"  # as vLLM serves on a CPU


def test_flags_beat_the_file_and_reach_into_the_parts(written: Path) -> None:
    flags = ["--steps", "7", "--trainer.optimizer.lr", "1e-6", "--server.max-num-seqs=8", "--environment.env.seed", "3"]
    config = load_launch(["--config", str(written), *flags[:5]])
    made = parts(config, API, [SERVER])
    assert (made.trainer.steps, made.trainer.optimizer.lr) == (7, 1e-6)
    assert made.server is not None
    assert made.server.max_num_seqs == 8
    with pytest.raises(ConfigError, match=r"environment.env.seed = 3: .*set `seed` at the top"):
        parts(load_launch(["--config", str(written), *flags]), API, [SERVER])


@pytest.mark.parametrize(
    ("part", "values", "words"),
    [
        ("trainer", {"batch": {"context": 99}}, ["trainer.batch.context = 99", "set `context` at the top"]),
        ("trainer", {"batch": {"rollouts": 64}}, ["trainer.batch.rollouts = 64", "set `groups` at the top"]),
        ("server", {"max_model_len": 99}, ["server.max_model_len = 99", "set `context`"]),
        ("environment", {"env": {"total_steps": 5}}, ["environment.env.total_steps = 5", "set `steps`"]),
        ("trainer", {"optimizer": {"lrr": 1}}, ["trainer", "optimizer.lrr", "optimizer.lr"]),
        ("environment", {"env": {"tempo": 1}}, ["environment", "env.tempo"]),
        ("server", {"max_num_seqs": 0}, ["server", "max_num_seqs = 0"]),
    ],
)
def test_what_a_part_cannot_be_told_is_one_error_with_the_fix(
    written: Path, part: str, values: dict[str, Any], words: list[str]
) -> None:
    config = load_launch(["--config", str(written)]).model_copy(update={part: values})
    with pytest.raises(ConfigError) as caught:
        parts(config, API, [SERVER])
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_the_file_may_stand_alone_and_has_to_be_given(written: Path) -> None:
    assert load_launch([str(written), "--steps", "7"]).steps == 7
    with pytest.raises(ConfigError, match="`atropos init` writes one"):
        load_launch([])


def test_a_missing_model_is_said_with_where_one_comes_from(written: Path) -> None:
    with pytest.raises(ConfigError, match=r"model my/own/model: no model there.*`hf download`.*SmolLM2-135M-Instruct"):
        load_launch([str(written), "--model", "my/own/model"])
    with pytest.raises(ConfigError, match=r"make it by `atropos pretrained --out x/y/SmolLM2-135M-Instruct`"):
        load(DemoConfig, ["--model", "x/y/SmolLM2-135M-Instruct"])
    with pytest.raises(ConfigError, match=r"--out models/SmolLM2-135M-Instruct"):
        load(DemoConfig, ["--model", "my/own/model"])


def test_what_a_process_refuses_is_said_in_the_file_s_words(written: Path) -> None:
    long = load_launch([str(written), "--context", "9000"])
    with pytest.raises(ConfigError, match="environment: context 9000 > the model's 8192 tokens: lower context to 8192"):
        parts(long, API, [SERVER])
    odd = load_launch([str(written), "--max_new_tokens", "5000"])
    with pytest.raises(ConfigError, match="raise context or lower max_new_tokens"):
        parts(odd, API, [SERVER])


def test_servers_that_run_already_are_used_and_none_is_started(written: Path) -> None:
    config = load_launch(["--config", str(written)])
    own = config.model_copy(update={"servers": ["http://10.0.0.1:8001", "http://10.0.0.2:8001"], "server": {}})
    made = parts(own, API, own.servers)
    assert made.server is None
    assert made.environment.servers == made.trainer.weights.servers == own.servers
    with pytest.raises(ConfigError, match=r"servers .* run already"):
        load_launch(["--config", str(written), "--servers", "http://10.0.0.1:8001"])  # the file has a part for vLLM


def test_a_folder_goes_on_with_its_own_run_only(written: Path, tmp_path: Path) -> None:
    config = load_launch(["--config", str(written), "--run_dir", str(tmp_path / "run")])
    check_folder(config)  # a new one
    claim(config.run_dir)
    with pytest.raises(ConfigError, match="did not begin"):
        check_folder(config)
    write_yaml(config, config.run_dir / "config" / "train.yaml")
    check_folder(config)
    check_folder(config.model_copy(update={"steps": 99, "groups": 2}))  # longer, or with another batch
    for name, value in (("problems", "other.jsonl"), ("seed", 5), ("group_size", 16), ("context", 4096)):
        with pytest.raises(ConfigError, match=f"{name} .*the run in .* started with"):
            check_folder(config.model_copy(update={name: value}))


def test_disk_use_is_that_of_the_model_s_parameters(written: Path, smollm2: Path) -> None:
    trainer = parts(load_launch(["--config", str(written)]), API, [SERVER]).trainer
    count = parameters(smollm2)
    assert count == 134_515_008
    use = disk_use(trainer)
    assert (use.checkpoint, use.checkpoints) == (12 * count, trainer.checkpoint.keep_last + 1)
    assert (use.export, use.exchange) == (4 * count, 2 * 4 * count)


def test_a_disk_that_is_too_full_is_an_error_before_the_start(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_launch(["--config", str(written), "--run_dir", str(tmp_path)])
    trainer = parts(config, API, [SERVER]).trainer
    needed = disk_use(trainer).total

    def free(amount: int) -> None:
        monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": amount}))

    free(needed)
    assert f"at most {needed / 2**30:.1f} GiB" in check_disk(trainer)
    free(needed - 1)
    with pytest.raises(ConfigError, match="Free some space"):
        check_disk(trainer)
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "model.safetensors").write_bytes(b"12")  # what the run replaces
    assert check_disk(trainer)


def test_memory_is_what_the_kernel_or_the_container_leaves(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:  9 kB\nMemAvailable:   4194304 kB\n")
    assert free_memory_gib(tmp_path) == 4
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.current").write_text(f"{2**30}\n")
    (group / "memory.max").write_text("max\n")
    assert free_memory_gib(tmp_path) == 4
    (group / "memory.max").write_text(f"{3 * 2**30}\n")
    assert free_memory_gib(tmp_path) == 2


def test_several_environments_get_a_part_each_and_a_part_that_nobody_shares_is_refused(written: Path) -> None:
    config = load_launch(["--config", str(written), "--environments", "3"])
    assert parts(config, API, [SERVER]).environment.env.shard == "0/3"
    processes = Training(config, "atropos train", Screen())._environments()
    assert [one.argv[-2:] for one in processes] == [("--env.shard", f"{index}/3") for index in range(3)]
    assert [one.ready for one in processes] == [f"shards/{index}-of-3/config/environment.yaml" for index in range(3)]
    with pytest.raises(ConfigError, match=r"environments 4 > groups 3.*set environments to 3 or less"):
        load_launch(["--config", str(written), "--environments", "4"])
    with pytest.raises(ConfigError, match=r"environment\.env\.shard.*set `environments` at the top"):
        parts(load_launch(["--config", str(written), "--environment.env.shard", "0/2"]), API, [SERVER])
