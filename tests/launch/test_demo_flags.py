"""What the demo hands to the processes that it starts."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from environments.common.settings import ConfigError, load
from environments.launch.config import take_inner
from environments.launch.demo import ADAPTER_DEADLINE_S, Demo
from environments.launch.demo_config import DemoConfig
from environments.launch.display import Screen
from environments.livecode.config import RunConfig


def environment_of(tmp_path: Path, **options: Any) -> RunConfig:
    """The environment's options as the demo starts it."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    config = DemoConfig(model=tmp_path / "model", run_dir=tmp_path / "run", **options)
    demo = Demo(config, Screen(Console(file=io.StringIO())))
    demo._prepare_folder()
    return load(RunConfig, demo._environment_flags())


def test_an_option_without_its_part_s_name_names_the_part() -> None:
    with pytest.raises(ConfigError, match=r"--adapter.rank: .* Write --trainer.adapter.rank\."):
        take_inner(["--steps", "2", "--adapter.rank", "32"])
    with pytest.raises(ConfigError, match=r"Write --environment.env.group_size\."):
        take_inner(["--env.group-size=4"])
    assert take_inner(["--steps", "2.5", "runs/a.b", "--no.such", "1"]) == (
        ["--steps", "2.5", "runs/a.b", "--no.such", "1"],
        {},
    )


@pytest.mark.parametrize(
    ("options", "deadline"),
    [
        ({}, 600.0),
        ({"trainer": {"adapter": {"rank": 8}}}, float(ADAPTER_DEADLINE_S)),
        ({"trainer": {"adapter": {"rank": 8}}, "environment": {"env": {"rollout_deadline_s": 50}}}, 50.0),
    ],
    ids=["whole weights", "adapter", "given"],
)
def test_a_rollout_through_an_adapter_may_take_longer(tmp_path: Path, options: dict[str, Any], deadline: float) -> None:
    assert environment_of(tmp_path, **options).env.rollout_deadline_s == deadline
