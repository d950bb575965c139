"""Each fault of atroposlib 0.4.0 as it is, beside what this project does instead."""

from __future__ import annotations

import asyncio
import gzip
import json
import math
import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from atroposlib.envs.base import BaseEnv, BaseEnvConfig, EvalHandlingEnum
from atroposlib.envs.server_handling.server_baseline import APIServerConfig, ServerBaseline

from environments.common import group_bytes
from environments.livecode.atropos_compat import (
    ApiServerUnreachable,
    AtroposError,
    CompatBaseEnv,
    GroupRefused,
    encode_group,
    server_configs,
)
from environments.livecode.config import LivecodeEnvConfig


class Stock(BaseEnv):
    """An environment as Atropos' own documentation writes it, whose rollouts take a while."""

    name = "stock"
    seconds = 30.0

    async def setup(self) -> None:
        self.begun = self.cancelled = 0

    async def get_next_item(self) -> str:
        return "item"

    async def evaluate(self, *args: Any, **kwargs: Any) -> None:
        return None

    async def collect_trajectories(self, item: str) -> Any:
        self.begun += 1
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return None, []


class Fixed(CompatBaseEnv):
    """Only the repaired calls to the API."""

    name = "fixed"
    get_next_item = Stock.get_next_item
    evaluate = Stock.evaluate


@pytest.fixture
def api(stock_api: str) -> str:
    """Everything here happens against the stock server: the repairs hold there too."""
    return stock_api


@pytest.fixture
def stock(model_dir: Path, api: str) -> Stock:
    config = BaseEnvConfig(
        tokenizer_name=str(model_dir), rollout_server_url=api, use_wandb=False, group_size=2, batch_size=4
    )
    return Stock(config, server_configs(["http://127.0.0.1:9"], "m"))


@pytest.fixture
async def fixed(model_dir: Path, api: str) -> AsyncIterator[Fixed]:
    config = LivecodeEnvConfig(rollout_server_url=api, group_size=2, context=100, max_new_tokens=50)
    env = Fixed(config.model_copy(update={"tokenizer_name": str(model_dir)}), server_configs(["http://x"], "m"))
    async with env.open_api():
        yield env


def group(**changes: Any) -> dict[str, Any]:
    return {
        "tokens": [[1, 2, 3], [1, 2, 4]],
        "masks": [[-100, -100, 3], [-100, -100, 4]],
        "scores": [1.0, -1.0],
        "inference_logprobs": [[1.0, 1.0, -0.123456789], [1.0, 1.0, -0.5]],
        "overrides": [{"set_advantage_to_zero": False}] * 2,
        "group_overrides": {"group_id": "g"},
    } | changes


async def work(stock: Stock, workers: int) -> None:
    """Starts Atropos' own workers on an empty queue."""
    await stock.setup()
    stock.status_dict = {"queue_size": 0, "self_queue_size": 0, "current_step": 0, "max_group_size": 2}
    stock.max_num_workers = workers
    await stock.add_train_workers()
    while stock.begun < workers:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def end(stock: Stock) -> None:
    for worker in stock.workers:
        worker.cancel()
    await asyncio.sleep(0.05)


# -- Work that is thrown away: LivecodeEnv.env_manager replaces this loop, see test_environment.py ------------


async def test_fault_a_longer_queue_cancels_rollouts_under_way(stock: Stock) -> None:
    await work(stock, 6)
    stock.status_dict["queue_size"] = 4
    await stock.add_train_workers()
    await asyncio.sleep(0.05)
    assert stock.cancelled == 4
    await end(stock)


async def test_fault_an_evaluation_cancels_every_rollout(stock: Stock) -> None:
    await work(stock, 3)
    stock.config.eval_handling, stock.config.steps_per_eval = EvalHandlingEnum.STOP_TRAIN, 2
    stock.curr_step, stock.status_dict["current_step"] = 1, 2
    await stock.env_step_checks()
    await asyncio.sleep(0.05)
    assert stock.cancelled == 3


def test_fault_rollouts_end_after_ten_minutes_by_default() -> None:
    assert BaseEnvConfig().model_dump()["worker_timeout"] == 600
    assert LivecodeEnvConfig().worker_timeout == -1


async def test_fault_an_error_in_a_rollout_is_swallowed(stock: Stock) -> None:
    async def fails(item: str) -> Any:
        raise ValueError("a bug")

    stock.running_items["id"] = {"item": "item"}
    stock.collect_trajectories = fails  # type: ignore[method-assign]
    assert await stock.handle_env("id") is None


# -- Groups that get lost on the way --------------------------------------------------------------------------


async def test_fault_a_refused_group_is_lost_without_an_error(stock: Stock, trainer: Any) -> None:
    await trainer.register(batch=4)
    stock.env_id = 0
    await stock._send_scored_data_to_api(group(tokens=[["x"], ["y"]]))
    assert (await trainer.http.get("/status")).json()["queue_size"] == 0


async def test_a_refused_group_is_an_error_with_the_reason(fixed: Fixed, trainer: Any) -> None:
    await trainer.register(batch=4)
    await fixed.register_env()
    with pytest.raises(GroupRefused, match=r"status 422.*tokens"):
        await fixed.send_group(group(tokens=[["x", "y", "z"]] * 2))


async def test_fault_a_nan_is_taken_and_the_whole_batch_is_lost(trainer: Any, api: str) -> None:
    await trainer.register(batch=2)
    body = json.dumps(group(inference_logprobs=[[1.0, 1.0, math.nan]] * 2) | {"env_id": None})
    sent = await trainer.http.post("/scored_data", content=body, headers={"Content-Type": "application/json"})
    assert sent.status_code == 200
    assert (await trainer.http.get("/batch")).status_code == 500
    async with httpx.AsyncClient(base_url=api) as again:  # the server has hung up
        assert (await again.get("/batch")).json() == {"batch": None}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"inference_logprobs": [[1.0, 1.0, math.nan], [1.0, 1.0, -0.5]]}, "not finite"),
        ({"scores": [math.inf, 1.0]}, "not finite"),
        ({"masks": [[-100, 3], [-100, -100, 4]]}, "differ in length"),
        ({"overrides": [{}]}, "do not match the number"),
        ({"group_overrides": None}, "must be a mapping"),
    ],
)
def test_a_group_that_would_do_damage_is_not_sent(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(GroupRefused, match=reason):
        encode_group(group(**change))


async def test_fault_group_overrides_none_crashes_the_check(stock: Stock) -> None:
    with pytest.raises(AttributeError):
        await stock.handle_send_to_api(group(group_overrides=None))


async def test_fault_equal_scores_are_judged_without_the_overrides(stock: Stock) -> None:
    sent = []

    async def send(scored_data: Any) -> None:
        sent.append(scored_data)

    stock._send_scored_data_to_api = send  # type: ignore[method-assign]
    stock.max_token_len = 100
    # The failed one is overlong, so no advantage is left; Atropos looks at the scores alone.
    await stock.handle_send_to_api(group(overrides=[{}, {"set_advantage_to_zero": True}]))
    assert len(sent) == 1


async def test_fault_one_sequence_at_the_limit_drops_the_group(stock: Stock) -> None:
    sent = []

    async def send(scored_data: Any) -> None:
        sent.append(scored_data)

    stock._send_scored_data_to_api = send  # type: ignore[method-assign]
    stock.max_token_len = 3
    await stock.handle_send_to_api(group())
    assert sent == []


async def test_a_limit_below_the_context_is_refused_at_start(fixed: Fixed, trainer: Any) -> None:
    await trainer.register(batch=4, context=99)
    with pytest.raises(AtroposError, match=r"env.context 100 > the trainer's context 99"):
        await fixed.get_server_info()


async def test_a_batch_that_groups_cannot_fill_is_refused_at_start(fixed: Fixed, trainer: Any) -> None:
    await trainer.register(batch=5)
    with pytest.raises(AtroposError, match=r"batch of 5 rollouts is not a multiple of env.group_size 2"):
        await fixed.get_server_info()


async def test_fault_a_batch_that_groups_cannot_fill_never_comes(trainer: Any) -> None:
    await trainer.register(batch=3)
    for _ in range(6):
        (await trainer.http.post("/scored_data", json=group())).raise_for_status()
    assert (await trainer.http.get("/batch")).json() == {"batch": None}


async def test_a_group_of_another_size_is_an_error_and_not_kept_back(fixed: Fixed, trainer: Any) -> None:
    await trainer.register(batch=4)
    await fixed.register_env()
    single = {name: value[:1] if isinstance(value, list) else value for name, value in group().items()}
    with pytest.raises(GroupRefused, match="buffered a group: its number of rollouts is not"):
        await fixed.send_group(single)


# -- What goes over the wire ----------------------------------------------------------------------------------


async def test_a_sent_group_arrives_with_five_digits(fixed: Fixed, trainer: Any) -> None:
    await trainer.register(batch=2)
    await fixed.register_env()
    await fixed.send_group(group())
    (arrived,) = await trainer.batch()
    assert arrived["inference_logprobs"] == [[1.0, 1.0, -0.12346], [1.0, 1.0, -0.5]]
    assert arrived["group_overrides"] == {"group_id": "g"}


def long_group() -> dict[str, Any]:
    length = 20_000
    tokens = [[(n * 7919 + row) % 150_000 for n in range(length)] for row in range(2)]
    logprobs = [[-(math.sin(n * 0.37 + row) ** 2) for n in range(length)] for row in range(2)]
    return group(tokens=tokens, masks=tokens, inference_logprobs=logprobs)


def test_a_payload_is_three_quarters_of_atropos_own_without_losing_a_token() -> None:
    data = long_group()
    stock, ours = gzip.compress(json.dumps(data).encode()), encode_group(data)
    assert len(ours) < 0.75 * len(stock)
    assert json.loads(gzip.decompress(ours))["tokens"] == data["tokens"]


def test_both_forms_have_the_same_numbers_and_the_binary_one_half_the_bytes() -> None:
    data = long_group() | {"scores": [1.0, -1.0]}
    json_form, packed = encode_group(data), encode_group(data, packed=True)
    assert len(packed) < 0.6 * len(json_form)
    assert json.loads(group_bytes.as_json(packed)) == json.loads(gzip.decompress(json_form))
    with pytest.raises(GroupRefused, match="not finite"):
        encode_group(data | {"inference_logprobs": [[float("nan")] * 20_000] * 2}, packed=True)


# -- Starting up ----------------------------------------------------------------------------------------------


def test_fault_a_bare_server_config_becomes_four_local_ports(model_dir: Path) -> None:
    config = BaseEnvConfig(tokenizer_name=str(model_dir), use_wandb=False)
    env = Stock(config, ServerBaseline(model_name="m"))  # type: ignore[arg-type]  # Atropos takes either
    ports = [server.config.base_url for server in env.server.servers]
    assert ports == [f"http://localhost:{port}/v1" for port in (9004, 9005, 9006, 9007)]


def test_servers_are_given_as_a_list() -> None:
    configs = server_configs(["http://a:1/", "http://b:2"], "m")
    assert all(isinstance(one, APIServerConfig) for one in configs)
    assert [one.base_url for one in configs] == ["http://a:1/v1", "http://b:2/v1"]


async def test_fault_the_default_name_cannot_register(stock: Stock, trainer: Any) -> None:
    await trainer.register(batch=4)
    body = {
        "max_token_length": 10,
        "desired_name": stock.config.wandb_name,
        "weight": 1.0,
        "min_batch_allocation": None,
        "group_size": 2,
    }
    assert (await trainer.http.post("/register-env", json=body)).status_code == 422


async def test_an_environment_without_a_name_registers_under_its_own(fixed: Fixed, trainer: Any) -> None:
    fixed.config.wandb_name = None
    await trainer.register(batch=4, steps=7)
    fixed.config.total_steps = -1
    await fixed.register_env()
    assert (fixed.wandb_prepend, fixed.env_id, fixed.config.total_steps) == ("fixed_0", 0, 7)


async def test_registering_waits_for_the_trainers_first_batch(fixed: Fixed, trainer: Any) -> None:
    waiting = asyncio.create_task(fixed.register_env())
    await asyncio.sleep(0.2)
    assert not waiting.done()
    await trainer.register(batch=4)
    await asyncio.wait_for(waiting, 5)


async def test_an_api_that_is_down_is_named(fixed: Fixed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("environments.livecode.atropos_compat._TRIES", 2)
    fixed.api.base_url = httpx.URL("http://127.0.0.1:9")
    with pytest.raises(ApiServerUnreachable, match=r"/info failed 2 times.*ConnectError.*atropos run-api"):
        await fixed.get_server_info()


async def test_an_api_that_was_reached_is_waited_for(
    fixed: Fixed, trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("environments.livecode.atropos_compat._TRIES", 2)
    monkeypatch.setattr("environments.livecode.atropos_compat._LONGEST_PAUSE_S", 0.05)
    await trainer.register(batch=4)
    there = fixed.api.base_url
    await fixed.get_server_info()
    fixed.api.base_url = httpx.URL("http://127.0.0.1:9")
    asking = asyncio.create_task(fixed.get_server_info())
    await asyncio.sleep(1.0)
    assert not asking.done()
    fixed.api.base_url = there
    await asyncio.wait_for(asking, 20)


async def test_a_server_without_contracts_is_named(fixed: Fixed) -> None:
    with pytest.raises(AtroposError, match=r"/contract refuses: status 404.*start the server by `atropos run-api`"):
        await fixed.agree({})


def test_fault_a_chat_template_gives_no_list_of_ids_by_default(tokenizer: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=True)
    assert "input_ids" in list(made)  # keys, where Atropos reads token ids
