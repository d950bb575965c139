"""What does not fit is refused with settings that do, and the command says so."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest
import torch

from benchmarks.memory import CASES, options
from environments.common.settings import load
from tests.trainer.test_budget import qwen3
from trainer.budget import BudgetConfig, main
from trainer.config import TrainerConfig
from trainer.moment_formats import Moments
from trainer.planning.fit import check_memory, fixes, model_config, refusal, setup
from trainer.planning.flops import GPUS
from trainer.planning.shapes import SHAPES
from trainer.planning.timeline import GIB, Setup, plan
from trainer.planning.trace import sizes

ROOT = Path(__file__).resolve().parents[2]


def trainer_config(**changes: object) -> TrainerConfig:
    base = {
        "model": "models/Qwen3-0.6B",
        "run_dir": "r",
        "batch": {"rollouts": 64, "context": 4096, "max_tokens": 8192},
    }
    return TrainerConfig.model_validate({**base, **changes})


@pytest.mark.parametrize("seed", range(6))
def test_every_proposed_setting_fits_and_differs(seed: int) -> None:
    draw = random.Random(seed)
    model = qwen3(draw.choice(list(SHAPES)), layers=draw.choice([2, 6]))
    context = draw.choice([2048, 4096])
    config = trainer_config(
        activation_checkpointing=draw.choice(["full", "selective", "none"]),
        logprob_chunk=draw.choice([512, 1024, 4096]),
        batch={"rollouts": 64, "context": context, "max_tokens": context * draw.choice([1, 2, 3])},
    )
    world_size = draw.choice([1, 4])
    budget = plan(model, setup(config, world_size))
    memory = budget.needed * draw.choice([0.99, 0.9, 0.75])
    found = fixes(model, config, world_size, memory, True)
    assert found
    for fix in found:
        assert plan(model, setup(fix.config, fix.world_size)).needed <= memory
        assert (fix.config, fix.world_size) != (config, world_size)
        TrainerConfig.model_validate(fix.config.model_dump())
    message = refusal(model, config, world_size, budget, memory, True)
    assert f"batch.max_tokens = {config.batch.max_tokens}" in message
    assert all(fix.text in message for fix in found)


def test_a_longer_pack_is_named_with_the_length_that_fits() -> None:
    model = qwen3("Qwen3-0.6B", layers=4)
    config = trainer_config(batch={"rollouts": 64, "context": 4096, "max_tokens": 16_384}, logprob_chunk=256)
    fitting = plan(model, setup(trainer_config(logprob_chunk=256), 4)).needed
    [fix] = fixes(model, config, 4, fitting, True)
    assert fix.text == "set batch.max_tokens to 8192"


def test_what_the_moments_keep_from_fitting_names_the_levers_and_their_memory() -> None:
    model, config = qwen3("Qwen3-1.7B"), trainer_config(batch={"rollouts": 64, "context": 1024, "max_tokens": 1024})
    fitting = config.model_copy(update={"logprob_chunk": 256})
    held = setup(fitting, 1)
    least = plan(model, held).needed
    without = plan(model, replace(held, moments_on_cpu=True)).needed
    found = [fix.text for fix in fixes(model, fitting, 1, without, True)]
    assert found[0] == "set optimizer.state to cpu"
    assert found[1].startswith("start ")
    found = [fix.text for fix in fixes(model, fitting, 1, (least + without) / 2, True)]
    assert found[:2] == ["set optimizer.state to cpu", "set optimizer.moments to bf16"]


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("adapter", [None, (16, ("q_proj", "down_proj"))])
def test_levers_take_from_the_device_what_they_promise(
    world_size: int, adapter: tuple[int, tuple[str, ...]] | None
) -> None:
    model = qwen3("Qwen3-1.7B", layers=4)
    held = Setup(world_size, 1024, 2048, 512, "full", 2, 1, recompute_old=True, adapter=adapter)
    found = sizes(model, adapter)
    shapes = [shape for part in (found.adapters if adapter else (*found.blocks, found.root)) for shape in part]
    rows = [(-(-shape[0] // world_size), *shape[1:]) for shape in shapes]
    expected: dict[Moments, int] = {
        "fp32": sum(8 * prod(shape) for shape in rows),
        "bf16": sum(4 * prod(shape) for shape in rows),
        "int8": sum(
            2 * prod(shape) + 8 * shape[0] * -(-prod(shape[1:]) // 256) if len(shape) > 1 else 8 * shape[0]
            for shape in rows
        ),
    }
    for moments, size in expected.items():
        name = f"AdamW's moments ({moments}, sharded)"
        [beside, away] = [
            plan(model, replace(held, moments=moments, moments_on_cpu=on_cpu)) for on_cpu in (False, True)
        ]
        assert beside.peak.parts[name] == size
        assert (beside.host, away.host) == (0, size)
        assert all(name not in moment.parts for moment in away.phases)


def test_a_model_that_no_setting_makes_fit_says_so() -> None:
    model, config = qwen3("Qwen3-14B", layers=4), trainer_config()
    budget = plan(model, setup(config, 512))
    message = refusal(model, config, 512, budget, GIB, True)
    assert message.endswith("no setting of this model fits: use a smaller one or a larger device")


def test_the_command_accepts_a_folder_with_a_config_alone_as_well_as_a_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = ["--gpu", "h100", "--gpus", "8", "--batch.context", "2048", "--batch.max_tokens", "2048"]
    qwen3("Qwen3-1.7B").save_pretrained(tmp_path / "Qwen3-1.7B")
    assert main(["--model", str(tmp_path / "Qwen3-1.7B"), *shared]) == 0
    printed = capsys.readouterr().out
    assert main(["--model", "nowhere/Qwen3-1.7B", *shared]) == 0
    assert capsys.readouterr().out == printed
    assert "<- peak" in printed
    assert "estimate: " in printed


def test_what_does_not_fit_has_exit_code_one_and_the_setting_that_does(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model", "Qwen3-4B", "--gpus", "1", "--batch.context", "2048", "--batch.max_tokens", "65536"]
    assert main(flags) == 1
    error = capsys.readouterr().err
    assert error.startswith("error batch.max_tokens = 65536, batch.context = 2048 of Qwen3-4B on 1 ranks: ")
    fitting = re.search(r"set batch\.max_tokens to (\d+)", error)
    assert fitting is not None
    assert main([*flags[:-1], fitting[1]]) == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model", "elsewhere"], "model = elsewhere: no config.json there"),
        (["--model", "Qwen3-4B", "--gpu", "v100"], "gpu"),
        (["--model", "Qwen3-4B", "--gpus", "0"], "gpus"),
        (["--model", "Qwen3-4B", "--mfu", "1.5"], "mfu"),
    ],
)
def test_settings_that_cannot_be_used_are_named(
    flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags) == 2
    assert words in capsys.readouterr().err


def test_every_gpu_of_the_table_can_be_chosen() -> None:
    choices = BudgetConfig.model_json_schema()["properties"]["gpu"]["enum"]
    assert list(GPUS) == choices


def test_the_recipes_stages_fit_on_eight_gpus_of_80_gb_but_not_on_four() -> None:
    for stage in ("32k", "40k"):
        config = load(TrainerConfig, ["--config", str(ROOT / f"configs/nouscoder-14b/train-{stage}.yaml")])
        needed = {ranks: plan(qwen3("Qwen3-14B"), setup(config, ranks)).needed / GIB for ranks in (4, 8)}
        assert needed[8] < GPUS["h100"].memory_gib < needed[4]


def test_nothing_is_checked_on_a_cpu_unless_a_limit_is_given(models: dict[str, Path]) -> None:
    case = CASES["full, tied"]
    config = options(models["llama"], case)
    cpu = torch.device("cpu")
    check_memory(config, 1, cpu)
    check_memory(config.model_copy(update={"memory_gib": 0.0}), 1, cpu)
    needed = plan(model_config(models["llama"]), setup(config, 1, cuda=False)).needed / GIB
    check_memory(config.model_copy(update={"memory_gib": needed * 1.01}), 1, cpu)
    with pytest.raises(RuntimeError, match=r"batch\.max_tokens = .* GiB needed on each"):
        check_memory(config.model_copy(update={"memory_gib": needed * 0.99}), 1, cpu)
