"""Each fault alone, in a run of its own. Slow: a run takes half a minute to start and many of them are needed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from tests.faults.injections import (
    CUT,
    KILLED,
    Fault,
    cut,
    hang,
    hang_and_kill,
    kill,
    kill_judges,
    named,
    shuffled,
)
from tests.faults.loop import ROOT, Loop
from tests.faults.proof import prove
from tests.support.proxy import LIES, LyingProxy, State

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

LOOP = [
    *(kill(name, 1.0) for name in KILLED),
    *(kill_judges(1), kill_judges(), hang("policy", 4.0), hang_and_kill("policy", 4.0), hang("api", 4.0)),
    *(hang("environment", 4.0), hang("rank-1", 4.0)),
]


@pytest.mark.parametrize("fault", LOOP, ids=lambda fault: fault.__name__)
def test_one_fault_twice_in_a_run(tmp_path: Path, policy_model: Path, policy_problems: Path, fault: Fault) -> None:
    with Loop(tmp_path, policy_model, policy_problems, steps=8) as loop:
        loop.go([fault, fault], seed=3)
    prove(loop)


def test_an_api_server_that_is_away_for_a_minute_ends_nobody(
    tmp_path: Path, policy_model: Path, policy_problems: Path
) -> None:
    with Loop(tmp_path, policy_model, policy_problems, steps=6) as loop:
        loop.go([kill("api", 60.0)], seed=3)
        restarts = loop.restarts
    prove(loop)
    assert restarts == {"api": 1}


def test_all_but_the_api_server_die_at_once_and_the_policy_server_comes_last(
    tmp_path: Path, policy_model: Path, policy_problems: Path
) -> None:
    def machine(loop: Loop) -> None:
        loop.until(lambda: loop.trained > 0, "a step")  # at its first start a run wants all servers
        loop.kill("policy", away_s=45.0)
        loop.kill("environment")
        loop.kill("trainer")

    with Loop(tmp_path, policy_model, policy_problems, steps=8) as loop:
        loop.go([named("a machine is lost", machine)] * 2, seed=4)
        restarts = loop.restarts
    prove(loop)
    assert restarts == {"policy": 2, "environment": 2, "trainer": 2}  # they wait for the server: no second restart


def test_the_only_policy_server_may_be_away_for_half_a_minute(
    tmp_path: Path, policy_model: Path, policy_problems: Path
) -> None:
    with Loop(tmp_path, policy_model, policy_problems, steps=6) as loop:
        loop.go([kill("policy", 30.0)], seed=3)
        restarts = loop.restarts
    prove(loop)
    assert restarts == {"policy": 1}


def test_a_trainer_that_dies_within_an_update_of_the_weights(
    tmp_path: Path, policy_model: Path, policy_problems: Path
) -> None:
    def within_an_update(loop: Loop) -> None:
        way = loop.cuts["trainer-policy"]
        way.stall_after = b"POST /start_weight_update"
        loop.until(lambda: way.state == "stall", "an update that is open", 60)
        loop.kill("trainer")
        way.stall_after = None
        way.set("open")

    with Loop(tmp_path, policy_model, policy_problems, steps=6, cuts=["trainer-policy"]) as loop:
        loop.go([named("die within an update", within_an_update)], seed=3)
    prove(loop)


@pytest.mark.parametrize("state", ["refuse", "stall", "reset"])
@pytest.mark.parametrize("pair", CUT)
def test_a_network_that_is_cut(
    tmp_path: Path, policy_model: Path, policy_problems: Path, pair: str, state: State
) -> None:
    with Loop(tmp_path, policy_model, policy_problems, steps=6, cuts=CUT) as loop:
        loop.go([cut(pair, state, 6.0)], seed=5)
    prove(loop)


@pytest.mark.parametrize("state", ["refuse", "stall", "reset"])
def test_a_network_that_is_cut_before_the_verifier(
    tmp_path: Path, policy_model: Path, policy_problems: Path, state: State
) -> None:
    with Loop(tmp_path, policy_model, policy_problems, steps=6, verifier="http") as loop:
        loop.go([cut("environment-verifier", state, 6.0), kill("verifier", 3.0)], seed=5)
    prove(loop)


@pytest.mark.parametrize("kind", LIES)
def test_a_verifier_half_of_whose_answers_are_spoilt_in_one_way(
    tmp_path: Path, policy_model: Path, policy_problems: Path, kind: str
) -> None:
    proxies: list[LyingProxy] = []

    def lying(target: str) -> LyingProxy:
        proxies.append(LyingProxy(target, share=0.5, seed=1, kinds=(kind,)))
        return proxies[0]

    with Loop(tmp_path, policy_model, policy_problems, steps=4, verifier="http", verifier_proxy=lying) as loop:
        loop.go([], seed=1)
        told = proxies[0].told
    prove(loop)
    assert told[kind] > 0


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system of its own; the test is skipped where none can be mounted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a full disk needs a file system of its own: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, seconds: float) -> Fault:
    """Not a byte is free for a time."""

    def do(loop: Loop) -> None:
        filler = disk / "filler"
        try:
            with filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
        except OSError:
            pass
        loop.wait(seconds)
        filler.unlink()

    return named(f"fill {disk.name}", do)


@pytest.mark.parametrize("name", ["api", "environment", "trainer"])
def test_a_disk_that_is_full_for_a_time(tmp_path: Path, policy_model: Path, policy_problems: Path, name: str) -> None:
    with small_disk(tmp_path / "disk", 64) as disk:
        with Loop(tmp_path / "loop", policy_model, policy_problems, steps=8, homes={name: disk}) as loop:
            loop.go([fill(disk, 6.0), fill(disk, 6.0)], seed=2)
            log = (loop.folder / "logs" / f"{name}.log").read_text()
        prove(loop)
    assert "No space left on device" in log or "disk is full" in log


def test_a_clock_that_jumps_by_hours_changes_nothing(tmp_path: Path, policy_model: Path, policy_problems: Path) -> None:
    jumping = {"PYTHONPATH": f"{ROOT / 'tests' / 'support' / 'clock'}:{ROOT}"}
    variables = dict.fromkeys(("api", "policy", "environment", "trainer"), jumping)
    with Loop(tmp_path, policy_model, policy_problems, steps=8, variables=variables) as loop:
        loop.go([], seed=0)
        restarts = loop.restarts
    prove(loop)
    assert not restarts
    times = [json.loads(line)["time"] for line in (loop.run / "metrics.jsonl").read_text().splitlines()]
    assert any(abs(after - before) > 3600 for before, after in pairwise(times)), "the clock did not jump"


def test_a_real_vllm_is_killed_and_comes_back(tmp_path: Path, policy_model: Path, policy_problems: Path) -> None:
    def vllm(port: int) -> tuple[list[str], dict[str, str]]:
        from environments.launch.serve_model import ServeConfig, serve_command

        config = ServeConfig(
            model=policy_model, port=port, max_model_len=160, max_num_seqs=16, enforce_eager=True, kv_cache_gib=0.25
        )
        return serve_command(config)

    patient = {"environment": ["--env.rollout_deadline_s", "500"]}
    with Loop(tmp_path, policy_model, policy_problems, steps=6, policy=vllm, extra=patient) as loop:
        loop.go(shuffled([kill("policy"), kill("rank-0")], 1), seed=1, seconds=600.0)
        restarts = loop.restarts
    prove(loop)
    assert restarts["policy"] == 1
