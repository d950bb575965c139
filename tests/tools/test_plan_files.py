"""A plan's files, constants, drawn answers, search and command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from environments.common.settings import ConfigError, load
from environments.tools.plan.command import main
from environments.tools.plan.config import PlanConfig
from environments.tools.plan.rates import parameters, rates
from environments.tools.plan.recipe import model_shape, read, recipe
from environments.tools.plan.search import search
from environments.tools.plan.workload import workload

ROOT = Path(__file__).parents[2]
FILE = ROOT / "configs" / "plan" / "48-b200.yaml"


def plan(**options: Any) -> PlanConfig:
    return load(PlanConfig, ["--config", str(FILE), *(w for k, v in options.items() for w in (f"--{k}", str(v)))])


def test_the_shipped_file_holds_the_recipes_numbers() -> None:
    config = plan()
    files = read(config)
    chosen = recipe(config, files)
    assert (chosen.steps, chosen.group_size, chosen.groups_per_batch, chosen.max_staleness) == (600, 8, 32, 2)
    assert (chosen.answer, chosen.evaluation_answer) == (32768 - 600 - 32, 40960 - 600 - 32)
    assert (chosen.verifier, chosen.verifier_places, chosen.evaluation_samples) == ("modal", 256, 16)
    found = rates(config, files, chosen)
    assert found.servers == 32
    assert parameters(model_shape(files.trainer.model)) == pytest.approx(14.77e9, rel=0.001)
    # bf16 weights at 70 % of 8 TB/s; 40 layers x 8 heads x 128 x 2 x 2 bytes a cached token
    assert found.speed.weights_s == pytest.approx(2 * 14.77e9 / 5.6e12, rel=0.001)
    assert found.speed.kv_token_s == pytest.approx(163_840 / 5.6e12, rel=0.001)
    assert found.pause_s == pytest.approx(0.5 + 2 * 14.77 / (20 / 32), rel=0.001)


def test_training_seconds_are_the_trainers_operations_over_its_peak() -> None:
    from trainer.planning.flops import flops

    config = plan()
    files = read(config)
    found = rates(config, files, recipe(config, files))
    old, step = found.train([(100, [900, 400])])
    pairs = 100 * 101 // 2 + 900 * 100 + 900 * 901 // 2 + 400 * 100 + 400 * 401 // 2
    work = flops(model_shape(files.trainer.model), 1400, pairs, 1300, backward=True)
    assert step == pytest.approx(work / (16 * 2250e12 * 0.3))
    assert old == pytest.approx(step / 3)


def test_drawn_groups_have_the_asked_means_and_do_not_depend_on_what_was_drawn_before() -> None:
    config = plan(**{"workload.length_mean": 1000, "workload.pass_rate": 0.3})
    work = workload(config.workload, 0)
    groups = [work.group(number, 8, 10**9) for number in range(1500)]
    answers = [answer for group in groups for answer in group.answers]
    assert sum(a.length for a in answers) / len(answers) == pytest.approx(1000, rel=0.05)
    assert sum(a.passed for a in answers) / len(answers) == pytest.approx(0.3, abs=0.03)
    assert workload(config.workload, 0).group(77, 8, 10**9) == groups[77]


def test_recorded_groups_are_drawn_as_they_were(tmp_path: Path) -> None:
    row = {"lengths": [5, 9], "verdicts": ["accepted", "no_code"], "overlong": [False, True], "prompt_tokens": 30}
    (tmp_path / "environment.jsonl").write_text(json.dumps(row) + "\n")
    config = plan(**{"workload.records": tmp_path / "environment.jsonl", "workload.tests": 7})
    drawn = workload(config.workload, 0).group(0, 4, 100)
    assert drawn.prompt == 30
    assert sorted((a.length, a.passed, a.tests, a.overlong) for a in drawn.answers) == (
        [(5, True, 7.0, False)] * 2 + [(9, False, None, True)] * 2
    )


def test_a_search_finds_the_division_that_fits_the_work_and_keeps_bounds() -> None:
    sizes = {
        "cluster.trainer_gpus": 8,
        "cluster.server_gpus": 40,
        "bounds.gpus_together": 8,
        "recipe.backend": "nccl",
        "recipe.rollouts": 64,
        "rates.mfu": 0.004,
    }
    short = {"simulated_steps": 5, "first_steps": 1, "recipe.evaluation_every": 0}
    config = plan(search="fastest", **sizes, **short)
    files = read(config)
    found = search(config, files, lambda changed: changed.cluster.trainer_gpus >= 16)
    assert {one.trainer_gpus for one in found} == {16, 24, 32, 40}
    assert [one.figures.steps_hour for one in found] == sorted((one.figures.steps_hour for one in found), reverse=True)
    assert found[0].trainer_gpus == 40  # training is what takes long
    with pytest.raises(ConfigError, match=r"none of 4 divisions keeps them, 1 have too little memory"):
        search(
            plan(search="cheapest", **sizes, **short, **{"bounds.hours": 0.001}),
            files,
            lambda changed: changed.cluster.trainer_gpus >= 16,
        )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cluster.trainer_gpu": "cpu"}, "rates.train_token_s"),
        ({"cluster.server_gpu": "cpu"}, "rates.decode_weights_s"),
        ({"cluster.server_gpus": 1, "recipe.tensor_parallel_size": 2}, "tensor_parallel_size 2"),
        ({"recipe.rollouts": 100, "recipe.group_size": 16}, "no multiple"),
        ({"recipe.max_concurrent_rollouts": 4}, "no group could ever begin"),
        ({"first_steps": 40}, "first_steps 40 >= simulated_steps 40"),
        ({"workload.records": "/nowhere.jsonl"}, "workload.records = /nowhere.jsonl"),
        ({"trainer": "/nowhere.yaml"}, "/nowhere.yaml: no such file"),
    ],
)
def test_what_cannot_be_planned_is_one_error(
    options: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    flags = [word for name, value in {"memory": False, **options}.items() for word in (f"--{name}", str(value).lower())]
    assert main(["--config", str(FILE), *flags]) == 2
    assert words in capsys.readouterr().err


def test_the_command_prints_and_keeps_its_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    out = tmp_path / "plan.json"
    words = ["--config", str(FILE), "--memory", "false", "--simulated_steps", "4", "--first_steps", "1"]
    assert main([*words, "--bottleneck", "false", "--recipe.evaluation_every", "0", "--out", str(out)]) == 0
    kept = json.loads(out.read_text())
    shown = capsys.readouterr().out
    assert f"{kept['figures']['steps_hour']:.2f} steps an hour" in shown
    assert kept["config"]["cluster"]["server_gpus"] == 32
    assert sum(kept["figures"]["money"].values()) == pytest.approx(kept["figures"]["money_step"])
