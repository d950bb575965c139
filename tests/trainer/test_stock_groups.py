"""Groups of environments written for plain Atropos: read with stated defaults, held to the run, trained on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from atroposlib.envs.base import BaseEnv, BaseEnvConfig, ScoredDataItem
from atroposlib.envs.server_handling.server_baseline import APIServerConfig

from tests.support.forked import completed
from tests.trainer.conftest import VOCABULARY
from tests.trainer.test_run import api_server
from trainer.data.advantages import cross_check
from trainer.data.api_client import AtroposClient
from trainer.data.scored_groups import BatchError, Reading, parse_group

# Atropos says so for every group
pytestmark = pytest.mark.filterwarnings("ignore:Trainer requested to ignore max length")
READING = Reading(temperature=0.7, context=16, vocabulary=VOCABULARY, recompute=True)


def stock(**changes: Any) -> dict[str, Any]:
    """A group with what Atropos asks for, as the API server hands it out."""
    group: dict[str, Any] = {
        "tokens": [[5, 6, 7], [5, 6, 8, 9]], "masks": [[-100, -100, 7], [-100, -100, 8, 9]], "scores": [0.0, 0.25],
        "inference_logprobs": None, "overrides": None, "group_overrides": None, "env_id": 3, "api_group_id": "made",
    }  # fmt: skip
    return group | changes


def test_what_is_missing_has_the_stated_default() -> None:
    empties: tuple[dict[str, Any], ...] = ({}, {"inference_logprobs": [], "overrides": [], "group_overrides": {}})
    for empty in empties:
        group = parse_group(stock(**empty), READING)
        assert (group.group_id, group.problem_id) == ("made", "environment 3")
        assert (group.temperature, group.context, group.oldest_version) == (0.7, 16, None)
        assert [rollout.score for rollout in group.rollouts] == [0.0, 0.25]
        assert [(one.overlong, one.finish_reason, one.versions) for one in group.rollouts] == [(False, "stop", [])] * 2
        assert [all(map(math.isnan, one.logprobs)) for one in group.rollouts] == [True, True]
        assert cross_check([group], "include") == [None]


def test_what_is_there_is_kept_and_held_to_its_form() -> None:
    named = {"group_id": "own", "temperature": 1.3}
    group = parse_group(stock(group_overrides=named, overrides=[{"set_advantage_to_zero": True}, {}]), READING)
    assert (group.group_id, group.temperature, group.rollouts[0].overlong) == ("own", 1.3, True)
    with pytest.raises(BatchError, match=r"group own: group_overrides.temperature is -1"):
        parse_group(stock(group_overrides=named | {"temperature": -1}), READING)
    with pytest.raises(BatchError, match=r"scores\[0\] is 0.0: send \+1.0 or -1.0"):  # an environment of verdicts
        parse_group(stock(group_overrides={"problem_id": "p"}), READING)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"masks": [[-100, -100, 7], [-100] * 4]}, r"masks\[1\] is '-100 everywhere': send a completion"),
        ({"tokens": [[5, 6, 61]] * 2, "masks": [[-100, -100, 61]] * 2}, r"tokens\[0\]\[2\] is 61"),
        ({"tokens": [[5, 61, 7]] * 2, "masks": [[-100, -100, 7]] * 2}, r"tokens\[0\]\[1\] is 61: the model has 61"),
        ({"tokens": [[5] * 17] * 2, "masks": [[-100, *[5] * 16]] * 2}, r"tokens\[0\] is '17 tokens': .*batch.context"),
        ({"tokens": [[5, 6, 7], [4, 6, 8, 9]]}, r"tokens\[1\] is 'a prompt of 2 tokens'"),
        ({"masks": [[-100, -100, 7], [-100, 6, -100, 9]]}, r"masks\[1\]\[2\] is -100"),
        ({"scores": [math.inf, 1.0]}, r"scores\[0\] is inf"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_on_names_group_and_field(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BatchError, match="group made: " + message):
        parse_group(stock(**changes), READING)


def test_without_log_probabilities_they_have_to_be_computed() -> None:
    with pytest.raises(BatchError, match=r"group made: inference_logprobs is None: .*old_logprobs: recompute"):
        parse_group(stock(), Reading(0.7, 16, VOCABULARY, recompute=False))


def test_equal_scores_carry_no_signal_whatever_they_are() -> None:
    for scores, reason in (([0.1, 0.1], "all_pass"), ([0.0, 0.0], "all_fail"), ([1e-9, 2e-9], None)):
        assert cross_check([parse_group(stock(scores=scores), READING)], "include") == [reason]


def test_a_leased_group_that_cannot_be_trained_on_is_left_out_and_named(tmp_path: Path) -> None:
    with api_server(tmp_path) as url, AtroposClient(url) as client:
        client.reading = READING
        client.register(batch_size=6, max_token_len=-1, starting_step=0, num_steps=1)
        sent = {name: value for name, value in stock().items() if name not in ("env_id", "api_group_id")}
        bad = sent | {
            "tokens": [[5, 6, 99]] * 2,
            "masks": [[-100, -100, 99]] * 2,
            "group_overrides": {"group_id": "bad"},
        }
        for group in (sent, bad, sent):
            httpx.post(f"{url}/scored_data", json=group, trust_env=False).raise_for_status()
        with pytest.raises(BatchError, match=r"group bad: tokens\[0\]\[2\] is 99"):
            client.lease(0, 10)
        client.leave_out = True
        first = client.lease(0, 10)
        assert len({group.group_id for group in first}) == 2
        assert list(client.left_out) == ["bad"]
        assert [group.group_id for group in client.lease(0, 10)] == [
            group.group_id for group in first
        ]  # the names that the server made stay


class Plain(BaseEnv):
    """Rollouts one by one, as most of Atropos' environments make them; no log-probabilities."""

    name = "plain"

    async def setup(self) -> None:
        self.count = 0

    async def get_next_item(self) -> int:
        self.count += 1
        return self.count

    async def evaluate(self, *args: Any, **kwargs: Any) -> None:
        return None

    async def collect_trajectory(self, item: int) -> Any:
        await asyncio.sleep(0.01)
        self.turn = getattr(self, "turn", 0) + 1
        tokens = [5, 6, 7 + item % 10, 20 + self.turn % 20]
        return ScoredDataItem(tokens=tokens, masks=[-100, -100, *tokens[2:]], scores=float(self.turn % 3)), []


class Whole(Plain):
    """A group at a time, with the sampler's log-probabilities."""

    name = "whole"

    async def collect_trajectories(self, item: int) -> Any:
        await asyncio.sleep(0.01)
        rows = [[9, 8, 30 + row, 2] for row in range(2)]
        masks = [[-100, *row[1:]] for row in rows]
        logprobs = [[1.0, -4.0, -4.0, -4.0] for _ in rows]
        prompts = {"tokens": rows, "masks": masks, "scores": [0.0, 1.0], "inference_logprobs": logprobs}
        return prompts, []


def environment(kind: type[Plain], url: str, tokenizer: Path, **options: Any) -> Plain:
    config = BaseEnvConfig(
        tokenizer_name=str(tokenizer), rollout_server_url=url, use_wandb=False, group_size=2, batch_size=4,
        total_steps=100, wandb_name=kind.name, ensure_scores_are_not_same=False, **options,
    )  # fmt: skip
    return kind(config, [APIServerConfig(model_name="m", base_url="http://127.0.0.1:9/v1", api_key="x")])


async def test_two_stock_environments_are_trained_on(models: dict[str, Path], smollm2: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options: dict[str, Any] = {"steps": 3, "batch.rollouts": 8, "batch.group_size": 2, "batch.context": 16}
    options |= {"batch.max_tokens": 64, "optimizer.lr": 0.01, "checkpoint.export": "false", "batch.temperature": 0.9}
    words = [f"--{name}={value}" for name, value in options.items()]
    with api_server(tmp_path) as url:
        words += [f"--model={models['llama']}", f"--run_dir={run}", f"--api.url={url}"]
        trainer = asyncio.create_task(asyncio.to_thread(completed, [sys.executable, "trainer/main.py", *words]))
        environments = [environment(kind, url, smollm2) for kind in (Plain, Whole)]
        feeding = [asyncio.create_task(one.env_manager()) for one in environments]
        done = await trainer
        for task in [*feeding, *(worker for one in environments for worker in one.workers)]:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(math.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in rows)
    taken = [json.loads(line) for line in (run / "trained.jsonl").read_text().splitlines()]
    names = [name for row in taken for name in (*row["groups"], *row["dropped"])]
    assert len(set(names)) == len(names) == 12


async def test_what_a_stock_environment_processes_can_be_read(smollm2: Path, tmp_path: Path) -> None:
    path = tmp_path / "groups.jsonl"
    one = environment(Plain, "http://127.0.0.1:9", smollm2, data_path_to_save_groups=str(path))
    one.process_mode, one.n_groups_to_process, one.group_size_to_process = True, 3, 2
    await one.process_manager()
    groups = [parse_group(json.loads(line) | {"api_group_id": "g"}, READING) for line in path.read_text().splitlines()]
    assert [len(group.rollouts) for group in groups] == [2, 2, 2]
