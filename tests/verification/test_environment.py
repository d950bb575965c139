"""The environment with its judges behind HTTP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from environments.livecode import command
from environments.livecode.config import RunConfig
from environments.livecode.environment import LivecodeEnv
from environments.livecode.problems.load import save_problems
from environments.livecode.problems.problem import Problem, TestCase
from environments.livecode.verification import http, remote
from environments.livecode.verification.base import VerifierUnusable
from tests.livecode.conftest import generation, model_dir, tokenizer
from tests.verification.conftest import TOKEN, Service
from tests.verification.test_trust import BROKEN, RIGHT, WRONG, Answers

__all__ = ["generation", "model_dir", "tokenizer"]  # the fixtures


def run_config(url: str, servers: str, model: Path, folder: Path) -> RunConfig:
    """Two groups of four rollouts of one problem, judged by the service at `url`."""
    problem = Problem(
        id="p", source="t", kind="stdin", statement="n + 1", tests=[TestCase(input="1\n", output="2\n")] * 3
    )
    save_problems([problem], folder / "problems.jsonl")
    env = {
        "problems": str(folder / "problems.jsonl"), "group_size": 4, "context": 2048, "max_new_tokens": 100,
        "run_dir": str(folder / "run"), "verifier": "http", "verifier_urls": [url],
    }  # fmt: skip
    process = {"groups": 2, "output": str(folder / "groups.jsonl")}
    return RunConfig.model_validate({"model": str(model), "servers": [servers], "env": env, "process": process})


async def test_groups_are_scored_by_the_service(
    service: Service, generation: Any, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VERIFIER_TOKEN", TOKEN)
    right, wrong = "```python\nprint(int(input()) + 1)\n```", "```python\nprint(0)\n```"
    generation.script = lambda prompt, number: {"text": (right, wrong)[number % 2]}
    await command.run_process(LivecodeEnv, run_config(service.url, generation.url, model_dir, tmp_path))
    groups = [json.loads(line) for line in (tmp_path / "groups.jsonl").read_text().splitlines()]
    assert sorted(score for group in groups for score in group["scores"]) == [-1] * 4 + [1] * 4


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([{"verdict": RIGHT}] * 2, "wrong program came back as accepted"),  # at its start
        ([{"verdict": RIGHT}, {"verdict": WRONG}, BROKEN], r"1\d sandboxes in a row failed, the last: .*scripted"),
    ],
)
async def test_a_service_that_is_not_to_be_trusted_ends_the_run_and_nothing_is_scored(
    generation: Any, model_dir: Path, tmp_path: Path, answers: list[dict[str, Any]], message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(remote, "BACKOFF_S", (0.001, 0.01))
    monkeypatch.setattr(http, "COOLDOWN_S", 0.01)
    generation.script = lambda prompt, number: {"text": "```python\nprint(0)\n```"}
    fake = Answers(*answers)
    try:
        with pytest.raises(VerifierUnusable, match=message):
            await command.run_process(LivecodeEnv, run_config(fake.served.url, generation.url, model_dir, tmp_path))
    finally:
        fake.served.stop()
    groups = tmp_path / "groups.jsonl"
    assert not groups.exists() or groups.read_text() == ""
