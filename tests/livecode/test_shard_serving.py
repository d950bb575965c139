"""Three environments of one run in one process: shares of batches, the bound, evaluations, a restart of one alone."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from environments.api_server.shards import shares
from environments.common.shards import Shard, folders
from environments.livecode.config import RunConfig
from environments.livecode.problems.load import save_problems
from environments.livecode.problems.sampler import build_sampler, load_set
from tests.livecode.test_environment import RIGHT, WRONG, config, lines, problem, serving, until
from tests.livecode.test_training_evaluation import held_out

__all__ = ["config"]  # the fixture
SHARDS, GROUPS, STEPS, STALE, EVERY = 3, 4, 4, 1, 2


def of_shard(config: RunConfig, index: int) -> RunConfig:
    changed = config.model_copy(deep=True)
    changed.env.shard = f"{index}/{SHARDS}"
    changed.env.own_dir.mkdir(parents=True, exist_ok=True)
    return changed


async def test_shards_fill_every_batch_by_their_shares_within_the_bound_and_the_first_evaluates(
    config: RunConfig, generation: Any, trainer: Any, tmp_path: Path
) -> None:
    save_problems([problem(number) for number in range(10)], tmp_path / "problems.jsonl")
    save_problems([held_out(0)], tmp_path / "held-out.jsonl")
    config.env.total_steps, config.env.max_staleness, config.env.verifier_workers = STEPS, STALE, 1
    evaluation = config.evaluation
    evaluation.every, evaluation.n, evaluation.greedy = EVERY, 2, False
    evaluation.problems = [str(tmp_path / "held-out.jsonl")]
    evaluated: list[str] = []

    def script(prompt: str, number: int) -> dict[str, Any]:
        if "Held out" in prompt:
            evaluated.append(generation.version)
            return {"text": RIGHT, "delay": 0.1}
        return {"text": (RIGHT, WRONG)[number % 2]}

    generation.script, generation.version = script, "0"
    await trainer.register(batch=4 * GROUPS, steps=STEPS)
    batches: list[list[dict[str, Any]]] = []

    async def train(steps: int) -> None:
        while len(batches) < steps:
            batches.append(await trainer.batch())
            generation.version = str(len(batches))

    async with AsyncExitStack() as stack:
        for index in range(SHARDS - 1):
            await stack.enter_async_context(serving(of_shard(config, index)))
        async with serving(of_shard(config, SHARDS - 1)) as (last, _):
            await train(2)
            await until(lambda: last.sent >= 3)
        assert lines(of_shard(config, SHARDS - 1).env.own_dir / "environment.jsonl")
        _, task = await stack.enter_async_context(serving(of_shard(config, SHARDS - 1)))  # alone, where it was
        await asyncio.wait_for(train(STEPS), 60)
        await asyncio.wait_for(task, 60)
    run = Path(config.env.run_dir)
    sender = {
        row["group_id"]: index
        for index, folder in enumerate(folders(run))
        for row in lines(folder / "environment.jsonl")
        if row["sent"]
    }
    for step, batch in enumerate(batches):
        counts = Counter(sender[group["group_overrides"]["group_id"]] for group in batch)
        assert [counts[index] for index in range(SHARDS)] == shares(SHARDS, step, GROUPS)
        oldest = min(low for group in batch for one in group["overrides"] for low, _, _ in one["versions"])
        assert step - oldest <= STALE
    problems = load_set(str(tmp_path / "problems.jsonl"), 0)
    for index, folder in enumerate(folders(run)):
        rows = [row for row in lines(folder / "environment.jsonl") if row["dropped"] != "stopped"]
        order = build_sampler("uniform", problems, 0, shard=Shard(index, SHARDS))
        assert Counter(row["problem_id"] for row in rows) <= Counter(order.next().id for _ in range(len(rows) + 4))
    assert {row["step"] for row in lines(run / "evaluations.jsonl")} >= {0, EVERY}
    assert set(evaluated) <= {"0", str(EVERY), str(STEPS)}
