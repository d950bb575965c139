"""The environment with its judges behind HTTP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from environments.livecode import modes
from environments.livecode.config import RunConfig
from environments.livecode.problems import Problem, TestCase, save_problems
from tests.livecode.conftest import generation, model_dir, tokenizer
from tests.verification.conftest import TOKEN, Service

__all__ = ["generation", "model_dir", "tokenizer"]  # the fixtures


async def test_groups_are_scored_by_the_service(
    service: Service, generation: Any, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VERIFIER_TOKEN", TOKEN)
    problem = Problem(
        id="p", source="t", kind="stdin", statement="n + 1", tests=[TestCase(input="1\n", output="2\n")] * 3
    )
    save_problems([problem], tmp_path / "problems.jsonl")
    right, wrong = "```python\nprint(int(input()) + 1)\n```", "```python\nprint(0)\n```"
    generation.script = lambda prompt, number: {"text": (right, wrong)[number % 2]}
    env = {
        "problems": str(tmp_path / "problems.jsonl"), "group_size": 4, "context": 2048, "max_new_tokens": 100,
        "run_dir": str(tmp_path / "run"), "verifier": "http", "verifier_urls": [service.url],
    }  # fmt: skip
    process = {"groups": 2, "output": str(tmp_path / "groups.jsonl")}
    config = RunConfig.model_validate(
        {"model": str(model_dir), "servers": [generation.url], "env": env, "process": process}
    )
    await modes.run_process(config)
    groups = [json.loads(line) for line in (tmp_path / "groups.jsonl").read_text().splitlines()]
    assert sorted(score for group in groups for score in group["scores"]) == [-1] * 4 + [1] * 4
