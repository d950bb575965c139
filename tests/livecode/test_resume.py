"""The environment dies, in any moment, and its next process goes on: nothing lost, skipped, or sent twice."""

from __future__ import annotations

import asyncio
import errno
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from environments.common.settings import ConfigError
from environments.livecode.config import RunConfig
from environments.livecode.problems.sampler import build_sampler, load_set
from environments.livecode.recovery.progress import DiskFull, ProgressError
from environments.livecode.recovery.progress_file import NAME, reading
from tests.livecode.test_environment import RIGHT, WRONG, Alternate, config, groups_of, lines, serving, settled, until
from tests.support.forked import Forked

__all__ = ["config"]  # the fixture
STEPS = 12


class Consumer:
    """A trainer that takes every batch at once."""

    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=url, timeout=30)
        body = {
            "wandb_group": "g", "wandb_project": "p", "batch_size": 8, "max_token_len": -1, "checkpoint_dir": "",
            "save_checkpoint_interval": -1, "starting_step": 0, "num_steps": STEPS,
        }  # fmt: skip
        self.http.post("/register", json=body).raise_for_status()
        self.groups: list[str] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._take)
        self._thread.start()

    def _take(self) -> None:
        while not self._done.is_set():
            batch = self.http.get("/batch").json()["batch"]
            self.groups += [group["group_overrides"]["group_id"] for group in batch or []]
            time.sleep(0 if batch else 0.02)

    def stop(self) -> None:
        self._done.set()
        self._thread.join()
        self.http.close()


@pytest.fixture
def consumer(api: str) -> Iterator[Consumer]:
    taking = Consumer(api)
    yield taking
    taking.stop()


def script(prompt: str, number: int) -> dict[str, Any]:
    """Two flat problems, the others mixed; answers take some time, so that groups are open when death comes."""
    text = RIGHT if "variant 0" in prompt or "variant 1" in prompt or number % 2 else WRONG
    return {"text": text, "delay": 0.02 * (number % 5)}


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])  # slow: other moments, 20 s
def test_kill_minus_nine_at_any_write_loses_skips_and_repeats_nothing(
    config: RunConfig, generation: Any, consumer: Consumer, tmp_path: Path, seed: int
) -> None:
    config.env.max_staleness, config.env.total_steps, config.env.max_concurrent_rollouts = STEPS, STEPS, 24
    generation.script = script
    options = tmp_path / "options.json"
    options.write_text(config.model_dump_json(exclude={"env": {"max_token_length"}}))
    draw = random.Random(seed)
    with Forked(
        [sys.executable, "-m", "tests.livecode.mortal"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as lives:
        assert lives.stdin is not None
        assert lives.stdout is not None

        def life(operations: int, deliveries: int) -> int:
            lives.stdin.write(f"{operations} {deliveries} {options}\n")  # type: ignore[union-attr]
            lives.stdin.flush()  # type: ignore[union-attr]
            return int(lives.stdout.readline())  # type: ignore[union-attr]

        codes = [life(*draw.choice([(draw.randrange(1, 200), 0), (0, draw.randrange(1, 12))])) for _ in range(10)]
        assert codes.count(-9) >= 6, codes

        def end_when_all_is_sent() -> None:
            while len(consumer.groups) < 2 * STEPS:
                time.sleep(0.05)
            generation.version = str(STEPS)

        ending = threading.Thread(target=end_when_all_is_sent)
        ending.start()
        assert life(0, 0) == 0
        ending.join()
        lives.stdin.close()
    rows = groups_of(config)
    unfinished = {row["group_id"] for row in rows if row["dropped"] in ("lost_inflight", "stopped")}
    sent = {row["group_id"]: row["problem_id"] for row in rows if row["sent"]}
    assert sorted(consumer.groups) == sorted(sent)  # each one once, none missing
    flat = {row["group_id"]: row["problem_id"] for row in rows if row["dropped"] in ("all_pass", "all_fail")}
    ended = Counter(problem for name, problem in {**sent, **flat}.items() if name not in unfinished - sent.keys())
    cut_off_at_the_end = Counter(row["problem_id"] for row in rows if row["dropped"] == "stopped")
    order = build_sampler("uniform", load_set(config.env.problems, 0), 0)
    taken = ended + cut_off_at_the_end
    assert taken == Counter(order.next().id for _ in range(taken.total()))
    assert kept(config) == []


def kept(config: RunConfig) -> list[str]:
    """The ids of the groups that wait for the API."""
    with reading(Path(config.env.run_dir)) as found:
        return [] if found is None else [group.id for group in found.outbox()]


async def test_groups_that_a_stop_cut_off_begin_again_first(config: RunConfig, generation: Any, trainer: Any) -> None:
    generation.script = lambda prompt, number: {"text": RIGHT, "delay": 30.0}
    await trainer.register(batch=8)
    async with serving(config) as (env, _):
        await until(lambda: len(env.in_flight) == 2)
        first = [begun.problem.id for begun in env.in_flight.values()]
    async with serving(config) as (env, _):
        await until(lambda: len(env.in_flight) == 2)
        assert [begun.problem.id for begun in env.in_flight.values()] == first
        assert env.dropped["lost_inflight"] == 0


async def test_after_a_restart_weights_without_a_name_are_not_taken_for_step_0(
    config: RunConfig, generation: Any, trainer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    generation.script = lambda prompt, number: {"text": RIGHT, "delay": 30.0}
    generation.version = "0"
    await trainer.register(batch=8)
    async with serving(config) as (env, _):
        await until(lambda: len(env.in_flight) == 2)
    generation.version = "default"  # vLLM was started again as well; a stage before made the weights of step 0
    caplog.set_level("INFO")
    async with serving(config) as (env, _):
        await until(lambda: "waiting for a server that has the trainer's weights" in caplog.text)
        await asyncio.sleep(1.5)
        assert not env.in_flight
        generation.version = "0"
        await until(lambda: len(env.in_flight) == 2)
    assert env.dropped["lost_inflight"] == 0


async def test_a_group_that_waits_in_the_outbox_is_sent_at_the_start(
    config: RunConfig, generation: Any, trainer: Any, api: str
) -> None:
    generation.script = Alternate()
    await trainer.register(batch=8)
    async with serving(config) as (env, task):

        async def unplugged(body: bytes) -> None:
            raise ConnectionError("the machine is switched off")

        env.deliver = unplugged
        with pytest.raises(ConnectionError):
            await task
    waiting = kept(config)
    assert waiting
    async with serving(config) as (env, _):
        batch = await trainer.batch()
        assert {group["group_overrides"]["group_id"] for group in batch} >= set(waiting[:1])
        await settled(env)
        assert env.sent == 2
    sent = [row["group_id"] for row in groups_of(config) if row["sent"]]
    assert set(waiting) <= set(sent)


async def test_a_group_that_a_full_disk_kept_from_being_recorded_is_sent_at_the_next_start(
    config: RunConfig, generation: Any, trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    generation.script = Alternate()
    await trainer.register(batch=8)

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("environments.livecode.recovery.progress_file.append_line", full)
        async with serving(config) as (_, task):
            with pytest.raises(DiskFull, match="No space left"):
                await task
    waiting = set(kept(config))
    assert waiting
    assert groups_of(config) == []
    async with serving(config) as (env, _):
        await until(lambda: env.sent >= len(waiting))
    rows = [row for row in groups_of(config) if row["group_id"] in waiting]
    assert sorted(row["group_id"] for row in rows) == sorted(waiting)
    assert all(row["sent"] and row["dropped"] is None and row["lengths"] for row in rows)


async def test_a_kept_group_that_is_damaged_is_named_with_the_way_to_go_on_without_it(
    config: RunConfig, generation: Any, trainer: Any, api: str
) -> None:
    generation.script = Alternate()
    await trainer.register(batch=8)
    async with serving(config) as (env, task):

        async def unplugged(body: bytes) -> None:
            raise ConnectionError("the machine is switched off")

        env.deliver = unplugged
        with pytest.raises(ConnectionError):
            await task
    path, name = Path(config.env.run_dir) / NAME, kept(config)[0]
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE pieces SET content = substr(content, 1, 20) WHERE place >= 1 << 20")
    async with serving(config) as (_, task):
        with pytest.raises(
            ProgressError, match=rf"group {name}: not a group \(GroupBytesError.*sqlite3 .*'{name}'"
        ) as raised:
            await task
    statement = str(raised.value).split('"')[1]
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement)
    assert name not in kept(config)


async def test_the_folder_of_a_run_that_the_api_never_saw_is_refused(
    config: RunConfig, generation: Any, trainer: Any, api: str
) -> None:
    from environments.api_server.server import build
    from environments.api_server.store import Store
    from tests.livecode.conftest import Trainer
    from tests.served import Served

    generation.script = Alternate()
    await trainer.register(batch=8)
    async with serving(config) as (env, _):
        await settled(env)
    fresh = Served(build(Store()))
    try:
        config.env.rollout_server_url = fresh.url
        other = Trainer(fresh.url)
        await other.register(batch=8)
        async with serving(config) as (_, task):
            with pytest.raises(ConfigError, match=r"its run has sent 2 groups, and the API server at .* never had one"):
                await task
        await other.http.aclose()
    finally:
        fresh.stop()


async def test_each_served_version_leaves_a_row_of_metrics(config: RunConfig, generation: Any, trainer: Any) -> None:
    generation.script = script
    config.env.total_steps = 1
    await trainer.register(batch=8, steps=1)
    async with serving(config) as (_, task):
        await trainer.batch()
        generation.version = "1"
        await task
    rows = lines(Path(config.env.run_dir) / "environment_metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1]
    row, groups = rows[0], groups_of(config)
    ended = [group for group in groups if group["dropped"] != "stopped"]
    assert row["groups"] == len(ended)
    assert row["sent"] == 2
    assert row["verdicts"] == dict(Counter(verdict for group in ended for verdict in group["verdicts"]))
    rates = [sum(verdict == "accepted" for verdict in group["verdicts"]) / 4 for group in ended]
    assert row["pass_rate"] == pytest.approx(sum(rates) / len(rates), abs=1e-4)
    assert row["pass_rate_by_source"] == {"test": row["pass_rate"]}
    assert row["length"]["passed"]["max"] == len(RIGHT) + 1
    assert row["length"]["failed"]["mean"] == len(WRONG) + 1
    assert 0 < row["slots_busy"] < 1
