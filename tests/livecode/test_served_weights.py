"""The environment never waits for weights that nobody sends, and never takes an earlier run's for this run's."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import httpx
import pytest

from environments.common.agreement import terms
from environments.common.settings import ConfigError
from environments.livecode.config import RunConfig
from environments.livecode.environment import LivecodeEnv
from environments.livecode.generation.completions import CompletionClient
from environments.livecode.generation.served_weights import InfrastructureError, ServedWeights
from environments.livecode.generation.vllm_servers import ServerAway, ServerRefused
from tests.livecode.test_environment import Alternate, config, serving, until
from tests.served import Served

__all__ = ["config"]  # the fixture


async def say(api: str, **said: Any) -> None:
    """The trainer's side of the contract."""
    async with httpx.AsyncClient(base_url=api) as http:
        (await http.post("/contract", json={"side": "trainer", "terms": said})).raise_for_status()


async def test_the_trainer_s_number_of_steps_is_taken(
    config: RunConfig, generation: Any, trainer: Any, api: str
) -> None:
    config.env.total_steps = RunConfig(model="m").env.total_steps  # as it is when nobody says one
    generation.script = Alternate()
    await say(api, steps=3)
    await trainer.register(batch=8, steps=3)
    async with serving(config) as (env, task):
        await trainer.batch()
        assert env.config.total_steps == 3
        # It is the trainer's alone: a longer run of the same folder is not refused for the number of the last one.
        await say(api, steps=5)
        generation.version = "3"
        await until(lambda: env.config.total_steps == 5)
        assert not task.done()
        generation.version = "5"
        await asyncio.wait_for(task, 20)


async def test_a_number_of_steps_of_one_s_own_is_compared(config: RunConfig, trainer: Any, api: str) -> None:
    await say(api, steps=3)
    await trainer.register(batch=8, steps=3)
    async with serving(config) as (_, task):  # it has 2
        with pytest.raises(Exception, match="the sides differ in steps"):
            await asyncio.wait_for(task, 20)


async def test_a_trainer_that_sends_no_weights_is_fed_to_its_last_step(
    config: RunConfig, generation: Any, trainer: Any, api: str, caplog: Any
) -> None:
    generation.script = Alternate()
    await say(api, sends_weights=False)
    await trainer.register(batch=8, steps=2)
    with caplog.at_level(logging.WARNING, "environments.livecode.generation.served_weights"):
        async with serving(config) as (_, task):  # max_staleness 0, and the servers' version stays
            for _ in range(2):
                assert len(await trainer.batch()) == 2
            await asyncio.wait_for(task, 20)
    assert "the trainer sends no weights (its weights.servers is empty)" in caplog.text


async def test_weights_of_an_earlier_run_are_not_this_run_s(
    config: RunConfig, generation: Any, trainer: Any, caplog: Any
) -> None:
    generation.script, generation.version = Alternate(), "4"
    await trainer.register(batch=8, steps=2)
    with caplog.at_level(logging.INFO, "environments.livecode.generation.served_weights"):
        async with serving(config) as (env, task):
            await until(lambda: "an earlier run's" in caplog.text)
            assert not task.done()  # 4 is beyond the last step: it would be over
            assert not env.in_flight
            generation.version = "0"
            assert len(await trainer.batch()) == 2
    assert "have those of step 4, and the trainer is at step 0" in caplog.text


def test_servers_that_nobody_updates_end_the_run_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("environments.livecode.generation.served_weights.time.monotonic", lambda: now[0])
    weights = ServedWeights(["http://a:1", "http://b:2"], max_staleness=1)
    assert weights.version(0, 1, idle=True) == 0  # the trainer is at its first batch
    assert weights.version(0, 2, idle=True) == 0  # from here nothing can begin
    now[0] += 59
    assert weights.version(0, 2, idle=False) == 0  # groups are still under way
    now[0] += 59
    assert weights.version(0, 2, idle=True) == 0
    now[0] += 61
    with pytest.raises(
        InfrastructureError, match=r"2 batches.*step 0: nobody.*--weights.servers http://a:1,http://b:2"
    ):
        weights.version(0, 2, idle=True)


def test_weights_that_come_in_time_end_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("environments.livecode.generation.served_weights.time.monotonic", lambda: now[0])
    weights = ServedWeights(["http://a:1"], max_staleness=1)
    for step in range(2, 9):
        now[0] += 50
        assert weights.version(step - 2, step, idle=True) == step - 2  # a slow update
        now[0] += 50
        assert weights.version(step, step, idle=True) == step


@pytest.mark.parametrize("max_staleness", [0, 1, 3])
def test_a_step_may_take_as_long_as_it_takes(monkeypatch: pytest.MonkeyPatch, max_staleness: int) -> None:
    now = [100.0]
    monkeypatch.setattr("environments.livecode.generation.served_weights.time.monotonic", lambda: now[0])
    weights = ServedWeights(["http://a:1"], max_staleness)
    for _ in range(3):
        assert weights.version(4, 5, idle=True) == 4  # the fifth batch is trained on, and nothing may begin
        now[0] += 3600


def test_an_older_version_after_the_first_is_a_trainer_that_went_back() -> None:
    weights = ServedWeights(["http://a:1"], max_staleness=1)
    assert weights.version(3, 4, idle=False) == 3
    assert weights.version(3, 2, idle=False) == 3  # its last checkpoint was step 2; it publishes that next
    assert weights.version(None, 2, idle=False) is None


def test_terms_hold_what_a_side_knows(tmp_path: Path) -> None:
    common: dict[str, Any] = {"context": 8, "group_size": 2, "overlong_baseline": "include"}
    assert terms(model=tmp_path, steps=None, **common) == common
    assert terms(model=tmp_path, steps=4, sends_weights=True, **common) == common | {"steps": 4, "sends_weights": True}


async def test_a_server_that_starts_later_is_waited_for_and_the_wait_is_said_once(generation: Any, caplog: Any) -> None:
    late = Served(generation.app())
    port = int(late.url.rpartition(":")[2])
    late.stop()
    with caplog.at_level(logging.INFO, "environments.livecode.generation.vllm_servers"):
        async with CompletionClient([late.url]) as client:
            waiting = asyncio.create_task(client.check(context=10, wait_s=60.0))
            await asyncio.sleep(1.5)
            assert not waiting.done()
            again = Served(generation.app(), port)
            await waiting
            again.stop()
    said = [record.getMessage() for record in caplog.records if "waiting for vLLM" in record.getMessage()]
    assert len(said) == 1
    assert "at most 60 s more (servers_wait_s)" in said[0]
    assert "Start vLLM there first: atropos serve-model" in said[0]


async def test_a_server_that_never_starts_or_does_not_fit_is_an_error(generation: Any) -> None:
    gone = Served(generation.app())
    gone.stop()
    async with CompletionClient([gone.url]) as client:
        with pytest.raises(ServerAway, match="does not answer"):
            await client.check(context=10, wait_s=0.5)
    generation.max_model_len = 5
    async with CompletionClient([generation.url]) as client:
        with pytest.raises(ServerRefused, match="serves at most 5 tokens"):
            await client.check(context=10, wait_s=60.0)  # at once: waiting does not help


@pytest.mark.parametrize("mode", ["serve", "process", "evaluate"])
def test_problems_that_are_not_there_are_said_before_a_server_is_waited_for(config: RunConfig, mode: str) -> None:
    config.servers, config.servers_wait_s = ["http://127.0.0.1:9"], 600.0
    config.env.problems, config.evaluation.problems = "nofile.jsonl", ["nofile.jsonl"]
    with pytest.raises(ConfigError, match=r"nofile\.jsonl: cannot be read"):
        LivecodeEnv.run(mode, config)
