"""The environment against Atropos' own API server and the real judge."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from environments.common.packed import IDS, REALS, unpacked
from environments.common.settings import ConfigError
from environments.livecode import command, environment
from environments.livecode.atropos_compat import GroupRefused
from environments.livecode.config import RunConfig
from environments.livecode.environment import LivecodeEnv
from environments.livecode.generation.served_weights import InfrastructureError
from environments.livecode.problems.load import save_problems
from environments.livecode.problems.problem import Problem, TestCase
from environments.livecode.problems.prompts import PromptBuilder
from environments.livecode.recovery.progress import OpenGroup
from environments.livecode.verification.base import JudgeFault
from environments.tools.report import vocabulary

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


class Alternate:
    """Wrong and right programs in turn, for each problem by itself."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()

    def __call__(self, prompt: str, number: int) -> dict[str, Any]:
        self.asked[prompt] += 1
        return {"text": (RIGHT, WRONG)[self.asked[prompt] % 2]}


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


class Watched(LivecodeEnv):
    """The environment with what it is at while it feeds a trainer; before that it has nothing."""

    @property
    def in_flight(self) -> dict[Any, OpenGroup]:
        return {} if self.serving is None else self.serving.in_flight

    @property
    def sent(self) -> int:
        return 0 if self.serving is None else self.serving.sent

    @property
    def api_groups(self) -> int:
        return 0 if self.serving is None else self.serving.api_groups

    @property
    def served(self) -> int:
        return 0 if self.serving is None else self.serving.served

    def may_begin(self) -> bool:
        return self.serving is None or self.serving.may_begin()


@asynccontextmanager
async def serving(config: RunConfig) -> Any:
    """The environment as `serve` runs it, beside the test."""
    async with AsyncExitStack() as stack:
        env = Watched(config)
        await env.open(stack, versions=True)
        task = asyncio.create_task(env.env_manager())
        yield env, task
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def lines(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def groups_of(config: RunConfig) -> list[dict[str, Any]]:
    return lines(Path(config.env.run_dir) / "environment.jsonl")


async def test_no_more_groups_begin_than_there_are_slots_for_their_rollouts(
    config: RunConfig, generation: Any, trainer: Any
) -> None:
    config.env.max_staleness = 50  # admission by staleness would let 102 groups in
    generation.script = lambda prompt, number: {"text": RIGHT, "delay": 60.0}
    await trainer.register(batch=8, steps=100)
    config.env.total_steps = 100
    async with serving(config) as (env, _):
        while generation.running < 16:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        assert len(env.in_flight) == 4
        assert env.equipment.pipeline.taken == 16


async def test_a_group_on_the_wire_holds_the_sampled_ids_and_the_judges_verdicts(
    config: RunConfig, generation: Any, trainer: Any, tokenizer: Any
) -> None:
    generation.script = Alternate()
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
            "verdict": "accepted" if text == RIGHT else "wrong_answer",
        }
    assert set(group["group_overrides"]) == {"group_id", "problem_id", "temperature", "context"}
    assert group["group_overrides"]["temperature"] == 0.7


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1500):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it never came to that")


async def settled(env: Watched) -> None:
    """Until nothing is in flight and nothing may begin."""
    await until(lambda: env.groups_per_batch > 0 and not env.in_flight and not env.may_begin())


async def test_flat_groups_are_dropped_counted_and_replaced(config: RunConfig, generation: Any, trainer: Any) -> None:
    config.env.problem_sampling = "uniform"

    mixed = Alternate()

    def script(prompt: str, number: int) -> dict[str, Any]:
        flat = "variant 0" in prompt or "variant 1" in prompt
        return {"text": RIGHT} if flat else mixed(prompt, number)

    generation.script = script
    config.env.max_concurrent_rollouts = 4
    config.env.total_steps = 3
    await trainer.register(batch=8, steps=3)
    async with serving(config) as (env, _):
        for version in ("1", "2", "3"):
            batch = await trainer.batch()
            assert len(batch) == 2
            assert all(len(set(group["scores"])) == 2 for group in batch)
            generation.version = version
        await settled(env)
        assert env.dropped["all_pass"] >= 2
    rows = groups_of(config)
    assert {row["problem_id"] for row in rows if row["dropped"] == "all_pass"} <= {"p0", "p1"}
    assert [row["sent"] for row in rows] == [row["dropped"] is None for row in rows]
    assert sum(row["sent"] for row in rows) == 6


async def test_no_more_groups_begin_than_the_staleness_bound_allows(
    config: RunConfig, generation: Any, trainer: Any
) -> None:
    generation.script = Alternate()
    config.env.max_staleness = 1
    config.env.total_steps = 10
    await trainer.register(batch=8)
    async with serving(config) as (env, _):
        await settled(env)
        assert env.sent == 4  # two batches of two groups at version 0
        await trainer.batch()
        await settled(env)
        assert env.sent == 4  # the trainer has taken one, but still serves version 0
        generation.version = "1"
        await until(lambda: env.served == 1)
        await settled(env)
        assert env.sent == 6


async def test_nothing_overtakes_an_unfinished_group_by_more_than_the_bound(
    config: RunConfig, generation: Any, trainer: Any
) -> None:
    mixed, released = Alternate(), threading.Event()

    def script(prompt: str, number: int) -> dict[str, Any]:
        return mixed(prompt, number) | ({"until": released} if number == 0 else {})

    generation.script = script
    config.env.total_steps = 10
    await trainer.register(batch=8)
    async with serving(config) as (env, _):
        await until(lambda: env.sent == 1)
        generation.version = "1"  # as if the trainer had gone on without waiting
        await until(lambda: env.served == 1)
        await asyncio.sleep(0.2)
        assert len(env.in_flight) == 1
        assert env.sent == 1
        assert not env.may_begin()
        released.set()
        batch = await trainer.batch()
    oldest = [min(span[0] for row in group["overrides"] for span in row["versions"]) for group in batch]
    assert oldest == [0, 0]


async def test_it_ends_when_the_trainer_has_taken_its_steps(config: RunConfig, generation: Any, trainer: Any) -> None:
    generation.script = Alternate()
    config.env.total_steps = -1
    await trainer.register(batch=8, steps=1)
    async with serving(config) as (env, task):
        await trainer.batch()
        generation.version = "1"
        await asyncio.wait_for(task, 20)
        assert (env.config.total_steps, env.sent) == (1, 2)


async def test_groups_cut_off_by_a_stop_are_recorded(config: RunConfig, generation: Any, trainer: Any) -> None:
    generation.script = lambda prompt, number: {"text": RIGHT, "delay": 30.0}
    await trainer.register(batch=8)
    async with serving(config) as (env, _):
        await until(lambda: len(env.in_flight) == 2)
    assert [(row["dropped"], row["scores"]) for row in groups_of(config)] == [("stopped", []), ("stopped", [])]


async def test_a_group_that_the_api_refuses_stops_with_the_reason(
    config: RunConfig, generation: Any, trainer: Any
) -> None:
    generation.script = Alternate()
    await trainer.register(batch=8)
    async with serving(config) as (env, task):
        whole = env.scored_data
        env.scored_data = lambda group: whole(group) | {"messages": [[{"role": "user"}]]}
        with pytest.raises(GroupRefused, match=r"refuses: status 422.*messages"):
            await asyncio.wait_for(task, 20)


async def test_faults_on_our_side_never_become_scores_and_end_the_run_when_they_stay(
    config: RunConfig, generation: Any, trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "_LOST_GROUPS_IN_A_ROW", 3)
    config.env.rollout_deadline_s = 0.3
    generation.status = 200
    generation.script = lambda prompt, number: {"text": RIGHT, "delay": 60.0}
    await trainer.register(batch=8)
    async with serving(config) as (env, task):
        with pytest.raises(InfrastructureError, match=r"[34] groups in a row were lost.*no rollout within 0.3 s"):
            await asyncio.wait_for(task, 30)
        assert env.sent == 0
    lost = [row for row in groups_of(config) if row["dropped"] == "infrastructure"]
    assert [(row["scores"], row["sent"]) for row in lost] == [([], False)] * len(lost)


async def test_programs_at_which_the_judge_fails_never_end_the_run(
    config: RunConfig, generation: Any, trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "_LOST_GROUPS_IN_A_ROW", 2)
    generation.script = Alternate()
    await trainer.register(batch=8)
    async with serving(config) as (env, _):
        verifier = env.equipment.pipeline._verifier
        judged, calls = verifier.verify, []

        async def faulty(request: dict[str, Any]) -> dict[str, Any]:
            calls.append(1)
            if len(calls) <= 60:
                raise JudgeFault("judge_fault: scripted")
            found: dict[str, Any] = await judged(request)
            return found

        verifier.verify = faulty
        await trainer.batch()
        assert env.dropped["judge_fault"] >= 3


async def test_records_hold_what_a_user_debugs_with(config: RunConfig, generation: Any, trainer: Any) -> None:
    generation.script = Alternate()
    config.env.record_rollouts_per_group = 4
    await trainer.register(batch=8)
    async with serving(config) as (env, _):
        await trainer.batch()
        await settled(env)
    group = groups_of(config)[0]
    assert sorted(group["verdicts"]) == ["accepted", "accepted", "wrong_answer", "wrong_answer"]
    assert sorted(group["scores"]) == [-1.0, -1.0, 1.0, 1.0]
    assert (group["weight_version"], group["dropped"], group["sent"]) == (0, None, True)
    rollout = lines(Path(config.env.run_dir) / "rollouts" / "step-00000.jsonl")[0]
    assert rollout["code"] in RIGHT + WRONG
    assert rollout["verdict"]["status"] == rollout["status"]
    assert "variant" in rollout["prompt"]
    assert rollout["completion"] in (RIGHT, WRONG)
    ids, logprobs = unpacked(rollout["token_ids"], IDS).tolist(), unpacked(rollout["logprobs"], REALS)
    texts = vocabulary.texts(Path(config.model), set(ids))
    spoken = "".join(texts[token] for token in ids).encode("latin-1").decode()
    assert spoken == rollout["completion"] + env.tokenizer.eos_token
    assert len(ids) == len(logprobs) == rollout["length"]
    assert (logprobs < 0).all()


async def test_wandb_gets_atropos_metrics_and_the_drops(
    config: RunConfig, generation: Any, trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wandb.init", lambda **_: None)  # it would ask the network
    logged: list[dict[str, Any]] = []
    monkeypatch.setattr("wandb.log", lambda metrics, step: logged.append({"step": step} | metrics))
    generation.script = Alternate()
    config.env.use_wandb = True
    config.env.total_steps = 1
    await trainer.register(batch=8)
    async with serving(config) as (_, task):
        await trainer.batch()
        generation.version = "1"
        await asyncio.wait_for(task, 20)
    assert logged[0]["step"] == 1
    assert {"livecode_0_train/completion_lengths", "livecode_0_train/rollouts"} <= logged[0].keys()


async def test_process_writes_every_group_without_an_api(config: RunConfig, generation: Any, tmp_path: Path) -> None:
    generation.script = lambda prompt, number: {"text": RIGHT if number % 2 else WRONG}
    config.process.groups, config.process.output = 3, str(tmp_path / "out" / "groups.jsonl")
    await command.run_process(LivecodeEnv, config)
    rows = lines(config.process.output)
    assert len(rows) == 3
    assert all(len(row["tokens"]) == len(row["scores"]) == 4 for row in rows)


class Terse(PromptBuilder):
    """Prompts of another form: the statement, and no more."""

    def chat(self, problem: Problem) -> list[dict[str, str]]:
        return [{"role": "user", "content": f"In Python: {problem.statement}"}]


class TerseEnv(LivecodeEnv):
    """An environment of one's own: what it leaves alone is the parent's."""

    prompt_builder_cls = Terse


async def test_a_subclass_with_prompts_of_its_own_is_an_environment(config: RunConfig, generation: Any) -> None:
    generation.script = lambda prompt, number: {"text": RIGHT if number % 2 else WRONG}
    config.process.groups = 1
    await command.run_process(TerseEnv, config)
    (row, *_) = lines(next((Path(config.env.run_dir) / "rollouts").glob("*.jsonl")))
    assert "In Python: " in row["prompt"]
    assert "### Question" not in row["prompt"]
    assert {1.0, -1.0} == set(lines(Path(config.env.run_dir) / "groups.jsonl")[0]["scores"])


async def test_evaluate_writes_one_object_per_set_and_temperature(config: RunConfig, generation: Any) -> None:
    generation.script = lambda prompt, number: {"text": RIGHT}
    config.evaluation.problems, config.evaluation.n = [config.env.problems], 2
    records = await command.run_evaluate(LivecodeEnv, config)
    assert lines(Path(config.env.run_dir) / "evaluations.jsonl") == records
    assert [(r["greedy"], r["correct"], r["total"]) for r in records] == [(False, 12, 12), (True, 6, 6)]


def test_a_missing_server_is_one_line_and_exit_code_1(config: RunConfig, caplog: pytest.LogCaptureFixture) -> None:
    config.servers, config.servers_wait_s = ["http://127.0.0.1:9"], 0.0
    assert LivecodeEnv.run("evaluate", config) == 1
    assert "http://127.0.0.1:9 does not answer" in caplog.text


def test_an_unknown_mode_names_the_known_ones(config: RunConfig) -> None:
    with pytest.raises(ConfigError, match="serve, process, evaluate"):
        LivecodeEnv.run("train", config)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_it_with_every_judge(config: RunConfig, generation: Any, number: int, code: int) -> None:
    generation.script = lambda prompt, number: {"text": "```python\nwhile True: pass\n```"}
    config.process.groups = 2
    before = set(psutil.Process().children(recursive=True))  # other tests' servers
    family: list[psutil.Process] = []

    def interrupt() -> None:
        while not family:
            time.sleep(0.05)
            family.extend(set(psutil.Process().children(recursive=True)) - before)
        time.sleep(0.3)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert LivecodeEnv.run("process", config) == code
    thread.join()
    assert psutil.wait_procs(family, timeout=5)[1] == []
    assert set(psutil.Process().children(recursive=True)) <= before
