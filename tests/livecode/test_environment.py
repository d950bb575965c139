"""The environment against Atropos' own API server and the real judge."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from environments.livecode.config import RunConfig
from environments.livecode.environment import LivecodeEnv
from environments.livecode.problems import Problem, TestCase, save_problems

RIGHT = "```python\nprint(int(input()) + 1)\n```"
WRONG = "```python\nprint(int(input()) + 2)\n```"


def problem(number: int) -> Problem:
    return Problem(
        id=f"p{number}",
        source="test",
        kind="stdin",
        statement=f"Read n and print n + 1. (variant {number})",
        tests=[TestCase(input="1\n", output="2\n"), TestCase(input="7\n", output="8\n")],
    )


def alternate(prompt: str, number: int) -> dict[str, Any]:
    return {"text": RIGHT if number % 2 else WRONG}


@pytest.fixture
def config(tmp_path: Path, model_dir: Path, generation: Any, api: str) -> RunConfig:
    save_problems([problem(number) for number in range(6)], tmp_path / "problems.jsonl")
    return RunConfig.model_validate(
        {
            "model": str(model_dir),
            "servers": [generation.url],
            "env": {
                "problems": str(tmp_path / "problems.jsonl"),
                "group_size": 4,
                "rollout_server_url": api,
                "context": 2048,
                "max_new_tokens": 100,
                "temperature": 0.7,
                "total_steps": 2,
                "max_staleness": 0,
                "run_dir": str(tmp_path / "run"),
                "max_concurrent_rollouts": 16,
            },
        }
    )


@asynccontextmanager
async def serving(config: RunConfig) -> Any:
    """The environment as `serve` runs it, beside the test."""
    async with AsyncExitStack() as stack:
        env = LivecodeEnv(config)
        await env.open(stack, versions=True)
        task = asyncio.create_task(env.env_manager())
        yield env, task
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def groups_of(config: RunConfig) -> list[dict[str, Any]]:
    path = Path(config.env.run_dir) / "environment.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_a_group_on_the_wire_holds_the_sampled_ids_and_the_judges_verdicts(
    config: RunConfig, generation: Any, trainer: Any, tokenizer: Any
) -> None:
    generation.script = alternate
    await trainer.register(batch=8, steps=2)
    async with serving(config):
        batch = await trainer.batch()
    assert [len(group["tokens"]) for group in batch] == [4, 4]
    group = batch[0]
    sent = [tuple(body["token_ids"]) for body in generation.requests]
    for tokens, masks, score, logprobs, override in zip(
        group["tokens"], group["masks"], group["scores"], group["inference_logprobs"], group["overrides"], strict=True
    ):
        start = next(index for index, mask in enumerate(masks) if mask != -100)
        assert tuple(tokens[:start]) in sent
        assert masks[start:] == tokens[start:]
        text = tokenizer.decode(tokens[start:-1])
        assert score == (1.0 if text == RIGHT else -1.0)
        assert tokens[-1] == tokenizer.eos_token_id
        assert logprobs[:start] == [1.0] * start
        assert logprobs[start:] == [round(-0.5 - n / 1000, 5) for n in range(len(tokens) - start)]
        assert override == {
            "set_advantage_to_zero": False,
            "finish_reason": "stop",
            "versions": [[0, 0, len(tokens) - start]],
        }
    assert set(group["group_overrides"]) == {"group_id", "problem_id", "temperature", "context"}
    assert group["group_overrides"]["temperature"] == 0.7
