"""The threat model names tests that exist; servers listen on loopback; addresses with passwords are refused."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from environments import cli
from environments.common.settings import ConfigError, load
from environments.launch.serve_model import ServeConfig
from environments.livecode.config import load_run_config
from trainer.config import TrainerConfig
from verifier_app.settings import ServerSettings

ROOT = Path(__file__).parents[1]
SECRET = "hunter2"


def test_every_test_that_the_threat_model_names_exists() -> None:
    named = re.findall(r"(tests/[\w/]+\.py)::(test_\w+)", (ROOT / "verifier_app" / "THREATS.md").read_text())
    assert len(named) >= 25
    missing = [(path, name) for path, name in named if f"def {name}(" not in (ROOT / path).read_text(encoding="utf-8")]
    assert missing == []


def test_servers_listen_on_loopback_by_default() -> None:
    assert ServeConfig.model_fields["host"].default == "127.0.0.1"
    assert ServerSettings.model_fields["host"].default == "127.0.0.1"
    assert inspect.signature(cli.run_api).parameters["host"].default == "127.0.0.1"


@pytest.mark.parametrize(
    "words",
    [
        ["--servers", f"http://me:{SECRET}@host:1"],
        ["--env.rollout_server_url", f"http://me:{SECRET}@host:1"],
        ["--env.verifier", "http", "--env.verifier_urls", f"http://me:{SECRET}@host:1"],
    ],
)
def test_an_address_with_a_password_is_refused_without_showing_it(words: list[str]) -> None:
    with pytest.raises(ConfigError, match="user and password") as refused:
        load_run_config(None, ["--model", "a/name", *words])
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("option", ["--api.url", "--weights.servers"])
def test_the_trainer_refuses_one_too(option: str) -> None:
    with pytest.raises(ConfigError, match="user and password") as refused:
        load(TrainerConfig, ["--model", "m", "--run_dir", "r", option, f"http://me:{SECRET}@host:1"])
    assert SECRET not in str(refused.value)
