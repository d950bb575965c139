"""The comparison of predictions with runs: its arithmetic, its stand-in server, and the files of larger clusters."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable

import pytest

from benchmarks.plan_check import SCENARIOS, errors, program
from benchmarks.plan_processes import Speeds, SteppingServer
from benchmarks.plan_records import constants, observed
from benchmarks.plan_scale import CONFIGS, ROWS, full, row, shared
from benchmarks.scripted import Script
from environments.common.settings import load
from environments.tools.plan.config import PlanConfig
from environments.tools.plan.rates import rates
from environments.tools.plan.recipe import read, recipe


def test_errors_are_of_speed_and_of_the_phases_that_take_a_tenth_of_a_step() -> None:
    did = {"steps_hour": 36.0, "wait": 60.0, "train": 32.0, "sync": 8.0}
    foreseen = {"steps_hour": 40.0, "wait": 51.0, "train": 32.0, "sync": 80.0}
    assert errors(foreseen, did) == pytest.approx({"steps_hour": 1 / 9, "wait": -0.15, "train": 0.0})


@pytest.mark.parametrize("right", [True, False])
def test_programs_of_the_check_pass_or_fail_as_they_are_meant(right: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr("builtins.input", lambda: "7")
    monkeypatch.setattr("builtins.print", lines.append)
    exec(program(0.0, right), {})
    assert [str(line) for line in lines] == ["7" if right else "-1"]


class Bodies:
    """Answers of one length after the other."""

    def __init__(self, lengths: Iterable[int]) -> None:
        self.script = Script(256, 1, 1, 100, 1, 2, 2)
        self._lengths = iter(lengths)
        self.prose = [(0, b"", b"")]
        self.draw = self

    def choice(self, prose: list[object]) -> object:
        return prose[0]

    def answer(self, prose: object, prompt: object, version: int) -> tuple[str, int, bytes]:
        return "right", next(self._lengths), b"{}"


class Asked:
    async def body(self) -> bytes:
        return json.dumps({"token_ids": [1], "sampling_params": {"max_tokens": 100}}).encode()


async def test_the_stepping_server_gives_each_running_request_one_token_a_step() -> None:
    """Two may run: the third begins when the shortest is done, and ends after both."""
    server = SteppingServer(Bodies([3, 9, 9]), Speeds(0.001, 0.0, 2, 0.0, 0.0, 0.0))  # type: ignore[arg-type]
    order: list[int] = []

    async def ask(name: int) -> None:
        await server.generate(Asked())  # type: ignore[arg-type]
        order.append(name)

    asked = [asyncio.create_task(ask(name)) for name in range(3)]
    await asyncio.sleep(0)
    steps = asyncio.create_task(server.steps())
    await asyncio.gather(*asked)
    steps.cancel()
    assert order == [0, 1, 2]
    assert server.tokens == 21


def test_constants_of_a_run_are_its_own_and_its_evaluations() -> None:
    found, did = constants("seed-0"), observed("seed-0")
    assert found["rates.decode_sequence_s"] == pytest.approx(88.362 / 12_243, rel=0.01)
    assert did["steps_hour"] == pytest.approx(3600 / 79.3, rel=0.01)


@pytest.mark.parametrize("size", ["48", "512"])
def test_the_files_of_larger_clusters_can_be_planned(size: str) -> None:
    config = load(PlanConfig, ["--config", str(CONFIGS / f"{ROWS[size][0]}.yaml")])
    files = read(config)
    chosen = recipe(config, files)
    found = rates(config, files, chosen)
    assert config.cluster.trainer_gpus + config.cluster.server_gpus == int(size)
    assert chosen.max_concurrent == 64 * found.servers
    assert found.starts_per_s == 30.0


def test_a_row_of_the_table_says_what_is_full() -> None:
    options = {"simulated_steps": 4, "first_steps": 1, "recipe.rollouts": 64, "recipe.evaluation_every": 0}
    _, found, _ = row("48-b200", {**options, "rates.environment_token_s": 1e-3})
    assert full(found) == "environment process"
    _, found, _ = row("48-b200", options)
    assert full(found) == "nothing"


def test_every_scenario_has_slots_for_its_batches() -> None:
    assert all(one.slots >= one.group_size * one.groups for one in SCENARIOS.values())


def test_an_eighth_with_an_eighth_of_what_is_shared_behaves_as_the_whole() -> None:
    whole = {
        "cluster.trainer_gpus": 64, "cluster.server_gpus": 64, "recipe.rollouts": 512, "recipe.evaluation_every": 0,
        "recipe.max_concurrent_rollouts": 2048, "cluster.verifier_places": 1600, "workload.length_mean": 1000,
        "simulated_steps": 14, "first_steps": 4,
    }  # fmt: skip
    part = {name: value // 8 for name, value in whole.items() if name not in ("workload.length_mean",)}
    part |= {name: whole[name] for name in ("simulated_steps", "first_steps", "workload.length_mean")}
    # All alike: of fewer answers the longest one is shorter, and at this size that would show.
    more = {"rates.environment_token_s": 2e-5, "rates.mfu": 0.05, "workload.length_sigma": 0.05}
    _, large, pause_s = row("48-b200", {**whole, **more})
    _, small, its_pause_s = row("48-b200", {**part, **shared(8), **more, "rates.environment_token_s": 8 * 2e-5})
    assert its_pause_s == pytest.approx(pause_s)
    assert small.steps_hour == pytest.approx(large.steps_hour, rel=0.1)
    for name in ("trainer", "environment process", "API process", "container starts"):
        assert small.busy[name] == pytest.approx(large.busy[name], rel=0.15), name
