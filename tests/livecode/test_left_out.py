"""Problems whose prompt leaves no room for an answer: left out, counted, recorded, and no reason to refuse a run."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from environments.livecode.command import run_evaluate, run_process
from environments.livecode.config import RunConfig
from environments.livecode.environment import LivecodeEnv
from environments.livecode.problems.load import save_problems
from environments.livecode.problems.problem import Problem, TestCase
from environments.livecode.problems.prompts import PromptError


def problem(name: str, source: str, length: int) -> Problem:
    tests = [TestCase(input="1\n", output="2\n")]
    return Problem(id=name, source=source, kind="stdin", statement="a" * length, tests=tests)


@pytest.fixture
def config(tmp_path: Path, model_dir: Path, generation: Any) -> RunConfig:
    some = [problem("short", "mine", 20), problem("long", "taco", 3000), problem("longer", "taco", 5000)]
    save_problems(some, tmp_path / "problems.jsonl")
    save_problems(some[1:], tmp_path / "long.jsonl")
    return RunConfig.model_validate(
        {
            "model": str(model_dir),
            "servers": [generation.url],
            "process": {"groups": 2},
            "evaluation": {"n": 1, "greedy": False, "problems": [str(tmp_path / "problems.jsonl")]},
            "env": {"problems": str(tmp_path / "problems.jsonl"), "group_size": 2, "context": 2048,
                    "max_new_tokens": 100, "run_dir": str(tmp_path / "run"), "verifier_workers": 1},
        }
    )  # fmt: skip


def left_out(config: RunConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(config.env.run_dir) / "left_out.jsonl").read_text().splitlines()]


async def test_they_are_counted_by_source_and_recorded_once(
    config: RunConfig, generation: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    for _ in range(2):
        await run_process(LivecodeEnv, config)
    assert all("aaa" in generation.tokenizer.decode(request["token_ids"]) for request in generation.requests)
    assert "2 of 3 problems are left out, their prompts have more than 1948 tokens" in caplog.text
    assert "taco 2; see" in caplog.text
    rows = left_out(config)
    assert [(row["problem_id"], row["source"], row["room"]) for row in rows] == [
        ("long", "taco", 1948),
        ("longer", "taco", 1948),
    ]
    assert rows[1]["prompt_tokens"] - rows[0]["prompt_tokens"] == 2000  # the tokenizer has one token a letter


async def test_an_evaluation_scores_the_others(config: RunConfig) -> None:
    (record,) = await run_evaluate(LivecodeEnv, config)
    assert list(record["per_problem"]) == ["short"]
    assert record["left_out"] == 2
    assert len(left_out(config)) == 2


async def test_a_set_of_which_nothing_is_left_is_refused(config: RunConfig, tmp_path: Path) -> None:
    config.env.problems = str(tmp_path / "long.jsonl")
    with pytest.raises(
        PromptError, match=r"no problem is left:\n  problem long: .*\n  problem longer: .* room is 1948"
    ):
        await run_process(LivecodeEnv, config)
