"""Evaluations while a trainer is fed: each at one weight version, each once, whoever dies; the best checkpoint."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from environments.common.settings import ConfigError
from environments.livecode.config import RunConfig
from environments.livecode.evaluation.options import validation_beside
from environments.livecode.evaluation.training import DeliveryGate
from environments.livecode.problems.load import save_problems
from environments.livecode.problems.problem import Problem
from tests.livecode.test_environment import RIGHT, WRONG, config, groups_of, lines, problem, serving, until
from tests.livecode.test_resume import kept

__all__ = ["config"]  # the fixture
STEPS, GROUPS = 4, 2


def held_out(number: int) -> Problem:
    return problem(number).model_copy(update={"id": f"h{number}", "statement": f"Held out: n + 1. (variant {number})"})


class FakeTrainer:
    """Takes a batch when there is one, publishes the next version, writes a checkpoint after every second step."""

    def __init__(self, url: str, generation: Any, checkpoints: Path) -> None:
        self.http = httpx.AsyncClient(base_url=url, timeout=30)
        self.generation, self.checkpoints, self.step = generation, checkpoints, 0
        self.held: set[str | None] = set()

    async def register(self, **changes: Any) -> None:
        body = {
            "wandb_group": "g", "wandb_project": "p", "batch_size": 4 * GROUPS, "max_token_len": -1,
            "checkpoint_dir": str(self.checkpoints), "save_checkpoint_interval": 2, "starting_step": 0,
            "num_steps": STEPS,
        }  # fmt: skip
        (await self.http.post("/register", json=body | changes)).raise_for_status()
        await self.http.get("/batch")
        self.generation.version = "0"

    async def train(self) -> None:
        while self.step < STEPS:
            if not (await self.http.get("/batch")).json()["batch"]:
                self.held.add((await self.http.post("/lease", json={"step": self.step})).json().get("held"))
                await asyncio.sleep(0.02)
                continue
            self.step += 1
            self.generation.version = str(self.step)
            if self.step % 2 == 0:
                asyncio.get_running_loop().call_later(0.3, self.save, self.step)

    def save(self, step: int) -> None:
        folder = self.checkpoints / f"step-{step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "meta.json").write_text(json.dumps({"format": 2, "step": step}))


class Model:
    """Mixed answers to training problems; held-out ones right with probability 1/2, 1, 0 at steps 0, 2, 4."""

    def __init__(self, generation: Any) -> None:
        self.generation = generation
        self.held_out: list[tuple[str, int]] = []  # version, and groups that had been sent then
        self.sent: Callable[[], int] = lambda: 0

    def __call__(self, prompt: str, number: int) -> dict[str, Any]:
        if "Held out" not in prompt:
            return {"text": (RIGHT, WRONG)[number % 2]}
        self.held_out.append((self.generation.version, self.sent()))
        right = {"0": number % 2 == 0, "2": True}.get(self.generation.version, False)
        return {"text": RIGHT if right else WRONG, "delay": 0.1}


@pytest.fixture
def evaluated(config: RunConfig, tmp_path: Path) -> RunConfig:
    """The configuration with an evaluation of two problems, four samples each, every second step."""
    save_problems([held_out(0), held_out(1)], tmp_path / "held-out.jsonl")
    config.env.total_steps, config.env.max_staleness = -1, 2
    options = config.evaluation
    options.every, options.n, options.greedy, options.problems = 2, 4, False, [str(tmp_path / "held-out.jsonl")]
    return config


@pytest.fixture
async def fake(api: str, generation: Any, tmp_path: Path) -> Any:
    trainer = FakeTrainer(api, generation, tmp_path / "run" / "checkpoints")
    yield trainer
    await trainer.http.aclose()


def records(config: RunConfig) -> list[dict[str, Any]]:
    path = Path(config.env.run_dir) / "evaluations.jsonl"
    return lines(path) if path.exists() else []


def partials(config: RunConfig, version: int) -> list[Path]:
    return list((Path(config.env.run_dir) / "evaluations").glob(f"*-v{version}-*.partial.jsonl"))


async def test_each_is_of_one_version_and_the_next_batch_waits_for_it(
    evaluated: RunConfig, generation: Any, fake: FakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("environments.livecode.serving._POLL_S", 0.05)
    model = generation.script = Model(generation)
    await fake.register()
    async with serving(evaluated) as (env, task):
        model.sent = lambda: max(env.sent, env.api_groups)
        await asyncio.wait_for(asyncio.gather(fake.train(), task), 60)
    assert [(row["step"], row["weight_version"], row["total"]) for row in records(evaluated)] == [
        (0, 0, 8), (2, 2, 8), (4, 4, 8),
    ]  # fmt: skip
    assert [row["pass_at_1"] for row in records(evaluated)][1:] == [1.0, 0.0]
    # Version v was served for all of its samples, and the API had no more than v batches until then.
    assert len(model.held_out) == 24
    assert all(sent <= int(version) * GROUPS for version, sent in model.held_out)
    # Groups went on being made while the evaluation ran: with max_staleness 2 three batches begin at version 0.
    assert fake.step == STEPS
    # The trainer hears why it waits, so that its deadline does not run.
    assert {f"the weights of step {step} are being evaluated" for step in (0, 2)} <= fake.held


async def test_the_best_checkpoint_is_pointed_to_once_it_is_written(
    evaluated: RunConfig, generation: Any, fake: FakeTrainer
) -> None:
    generation.script = Model(generation)
    await fake.register()
    async with serving(evaluated) as (_, task):
        await asyncio.wait_for(asyncio.gather(fake.train(), task), 60)
    assert (fake.checkpoints / "best").read_text() == "step-00000002\n"
    best = json.loads((fake.checkpoints.parent / "best.json").read_text())
    told = {name: best[name] for name in ("checkpoint", "step", "stage", "pass_at_1", "n", "context")}
    assert told == {
        "checkpoint": "step-00000002", "step": 2, "stage": "training", "pass_at_1": 1.0, "n": 4, "context": 2048,
    }  # fmt: skip


async def test_a_restart_makes_only_the_missing_samples_and_sends_no_group_before_they_are_there(
    evaluated: RunConfig, generation: Any, fake: FakeTrainer
) -> None:
    model = generation.script = Model(generation)
    evaluated.env.max_concurrent_rollouts = 4  # one group, or four samples, at a time
    await fake.register()
    training = asyncio.create_task(fake.train())
    async with serving(evaluated) as (env, _):
        await until(lambda: env.served == 2 and len(model.held_out) >= 8 + 3)
        await until(lambda: len(partials(evaluated, 2)) == 1)
    (partial,) = partials(evaluated, 2)
    kept = len(lines(partial))
    asked = len(model.held_out)
    assert 0 < kept < 8
    assert [row["step"] for row in records(evaluated)] == [0]
    async with serving(evaluated) as (env, task):
        model.sent = lambda: max(env.sent, env.api_groups)
        await asyncio.wait_for(asyncio.gather(training, task), 60)
    assert [row["step"] for row in records(evaluated)] == [0, 2, 4]
    after = model.held_out[asked:]
    assert [version for version, _ in after].count("2") == 8 - kept
    assert all(sent <= int(version) * GROUPS for version, sent in after)


async def test_groups_that_wait_for_an_evaluation_survive_the_environment(
    evaluated: RunConfig, generation: Any, fake: FakeTrainer
) -> None:
    model = generation.script = Model(generation)
    await fake.register()
    training = asyncio.create_task(fake.train())
    slow = {"delay": 30.0}
    generation.script = lambda prompt, number: model(prompt, number) | (slow if "Held out" in prompt else {})
    async with serving(evaluated):
        await until(lambda: len(groups_of(evaluated)) == 3 * GROUPS)
    waiting = set(kept(evaluated))
    assert len(waiting) == 3 * GROUPS
    assert fake.step == 0
    generation.script = model
    async with serving(evaluated) as (_, task):
        await asyncio.wait_for(asyncio.gather(training, task), 60)
    sent = [row["group_id"] for row in lines(Path(evaluated.env.run_dir) / "environment.jsonl") if row["sent"]]
    assert len(sent) == len(set(sent)) == STEPS * GROUPS
    assert waiting <= set(sent)
    assert kept(evaluated) == []


async def test_what_is_evaluated_is_not_evaluated_again(
    evaluated: RunConfig, generation: Any, fake: FakeTrainer
) -> None:
    model = generation.script = Model(generation)
    await fake.register()
    async with serving(evaluated) as (_, task):
        await asyncio.wait_for(asyncio.gather(fake.train(), task), 60)
    asked = len(model.held_out)
    async with serving(evaluated) as (_, task):
        await asyncio.wait_for(task, 30)
    assert len(model.held_out) == asked


async def test_an_evaluation_whose_weights_moved_gives_no_number(
    evaluated: RunConfig, generation: Any, fake: FakeTrainer
) -> None:
    model = Model(generation)
    moved: list[int] = []

    def script(prompt: str, number: int) -> dict[str, Any]:
        if "Held out" in prompt and len(model.held_out) == 5 and not moved:
            moved.append(number)
            generation.version = "1"  # as if another environment fed the trainer
        return model(prompt, number)

    generation.script = script
    await fake.register()
    async with serving(evaluated) as (env, _):
        await until(lambda: env.served == 1 and not env.serving.evaluates())
        assert records(evaluated) == []
        assert not partials(evaluated, 0)


async def test_the_gate_lets_groups_through_in_the_number_that_is_given() -> None:
    there = 0
    gate = DeliveryGate(lambda: there)
    gate.most = 2

    async def send() -> None:
        nonlocal there
        async with gate.passing():
            await asyncio.sleep(0)
            there += 1

    tasks = [asyncio.create_task(send()) for _ in range(5)]
    await asyncio.sleep(0.05)
    assert (there, gate.closed()) == (2, True)
    gate.most = 4
    await asyncio.sleep(0.05)
    assert there == 4
    gate.most = None
    await asyncio.gather(*tasks)
    assert there == 5


async def test_a_trainer_that_sends_no_weights_is_refused(
    evaluated: RunConfig, generation: Any, fake: FakeTrainer
) -> None:
    await fake.register()
    body = {"side": "trainer", "terms": {"sends_weights": False}}
    (await fake.http.post("/contract", json=body)).raise_for_status()
    async with serving(evaluated) as (_, task):
        with pytest.raises(ConfigError, match=r"evaluation\.every 2: the trainer sends no weights"):
            await asyncio.wait_for(task, 30)


def test_the_held_out_set_is_the_validation_split_and_never_the_test_set_by_itself(tmp_path: Path) -> None:
    assert validation_beside("warmup:train") == "warmup:new_instances"
    with pytest.raises(ConfigError, match="--validation-from"):
        validation_beside(str(tmp_path / "data" / "train"))
    for split in ("test", "validation"):
        (tmp_path / "data" / split).mkdir(parents=True)
        (tmp_path / "data" / split / "problems.parquet").touch()
    assert validation_beside(str(tmp_path / "data" / "train")) == str(tmp_path / "data" / "validation")
