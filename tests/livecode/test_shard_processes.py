"""Three environments of one run as processes, killed, on an API server in a process and two generation servers."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from environments.api_server.shards import shares
from environments.common.shards import Shard, folders
from environments.launch.processes import free_port
from environments.livecode.problems.load import save_problems
from environments.livecode.problems.sampler import build_sampler, load_set
from environments.livecode.recovery.progress_file import reading
from environments.tools.audit import audit
from environments.tools.report.records import read_records
from tests.livecode.conftest import Generation
from tests.livecode.test_environment import RIGHT, WRONG, lines, problem
from tests.livecode.test_training_evaluation import held_out
from tests.served import Served

SHARDS, GROUPS, STEPS, STALE = 3, 4, 8, 1
EVERY = 4  # steps between evaluations


class Servers:
    """Two generation servers with one state: both serve the version that a trainer has published."""

    def __init__(self, tokenizer: Any) -> None:
        self.both = [Generation(tokenizer, script=self.answer) for _ in range(2)]
        self.served = [Served(one.app()) for one in self.both]
        self.urls = [one.url for one in self.served]
        self.evaluated: list[str] = []  # version of each held-out answer
        self.publish(0)

    def answer(self, prompt: str, number: int) -> dict[str, Any]:
        if "Held out" in prompt:
            self.evaluated.append(self.both[0].version)
            return {"text": RIGHT, "delay": 0.1}
        flat = "variant 0)" in prompt or "variant 1)" in prompt
        return {"text": RIGHT if flat or number % 2 else WRONG, "delay": 0.02 * (number % 7)}

    def publish(self, version: int) -> None:
        for one in self.both:
            one.version = str(version)

    def stop(self) -> None:
        for one in self.served:
            one.stop()


class Trainer:
    """Leases each step's batch, records it as the trainer does, acknowledges it and publishes the next version."""

    def __init__(self, url: str, run: Path, servers: Servers) -> None:
        self.http = httpx.Client(base_url=url, timeout=30)
        self.run, self.servers, self.step, self.stop = run, servers, 0, threading.Event()
        self.batches: list[list[str]] = []
        self.stalest = 0
        self.held: set[str | None] = set()
        body = {
            "wandb_group": "g", "wandb_project": "p", "batch_size": 4 * GROUPS, "max_token_len": -1,
            "checkpoint_dir": "", "save_checkpoint_interval": -1, "starting_step": 0, "num_steps": STEPS,
        }  # fmt: skip
        self.http.post("/register", json=body).raise_for_status()
        self.thread = threading.Thread(target=self._train)
        self.thread.start()

    def _train(self) -> None:
        while self.step < STEPS and not self.stop.is_set():
            answer = self.http.post("/lease", json={"step": self.step}).json()
            if not answer["batch"]:
                self.held.add(answer.get("held"))
                time.sleep(0.02)
                continue
            groups = answer["batch"]
            versions = [low for group in groups for one in group["overrides"] for low, _, _ in one["versions"]]
            self.stalest = max(self.stalest, self.step - min(versions))
            self.batches.append([group["group_overrides"]["group_id"] for group in groups])
            row = {"step": self.step, "groups": self.batches[-1], "dropped": {}}
            with (self.run / "trained.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            time.sleep(0.1)  # groups come meanwhile, and wait
            self.step += 1
            self.http.post("/ack", json={"checkpoint_step": self.step}).raise_for_status()
            self.servers.publish(self.step)

    def close(self) -> None:
        self.stop.set()
        self.thread.join()
        self.http.close()


@pytest.fixture
def servers(tokenizer: Any) -> Iterator[Servers]:
    made = Servers(tokenizer)
    yield made
    made.stop()


@pytest.fixture
def api_process(tmp_path: Path) -> Iterator[str]:
    """`atropos run-api` with a journal in the run's folder."""
    port, run = free_port(), tmp_path / "run"
    run.mkdir()
    argv = ["-m", "environments.cli", "run-api", "--port", str(port), "--journal", str(run / "api.journal")]
    with subprocess.Popen([sys.executable, *argv]) as process:
        url = f"http://127.0.0.1:{port}"
        until(lambda: _answers(url))
        yield url
        process.kill()


@pytest.fixture
def options(tmp_path: Path, model_dir: Path, servers: Servers, api_process: str) -> dict[str, Any]:
    """A shard's options but for its index."""
    save_problems([problem(number) for number in range(10)], tmp_path / "problems.jsonl")
    save_problems([held_out(0), held_out(1)], tmp_path / "held-out.jsonl")
    env = {
        "problems": str(tmp_path / "problems.jsonl"), "group_size": 4, "rollout_server_url": api_process,
        "context": 2048, "max_new_tokens": 100, "max_staleness": STALE, "run_dir": str(tmp_path / "run"),
        "max_concurrent_rollouts": 16, "verifier_workers": 1,
    }  # fmt: skip
    evaluation = {"every": EVERY, "n": 2, "greedy": False, "problems": [str(tmp_path / "held-out.jsonl")]}
    return {"model": str(model_dir), "servers": servers.urls, "env": env, "evaluation": evaluation}


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").is_success
    except httpx.TransportError:
        return False


def until(condition: Callable[[], bool], seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds:g} s"
        time.sleep(0.05)


class Lives:
    """One shard, started again each time it was killed."""

    def __init__(self, options: dict[str, Any], index: int, folder: Path, seed: int, deaths: int) -> None:
        self.path, self.codes = folder / f"options-{index}.json", list[int]()
        env = options["env"] | {"shard": f"{index}/{SHARDS}"}
        self.path.write_text(json.dumps(options | {"env": env}))
        self.process: subprocess.Popen[str] | None = None
        self.thread = threading.Thread(target=self._live, args=(random.Random(f"{seed}/{index}"), deaths))
        self.thread.start()

    def _live(self, draw: random.Random, deaths: int) -> None:
        with subprocess.Popen(
            [sys.executable, "-m", "tests.livecode.mortal"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as lives:
            self.process = lives
            assert lives.stdin is not None
            assert lives.stdout is not None
            while not self.codes or (self.codes[-1] < 0 and len(self.codes) < 20):
                dies = len(self.codes) < deaths
                operations, deliveries = draw.choice([(draw.randrange(20, 120), 0), (0, draw.randrange(1, 7))])
                lives.stdin.write(f"{operations if dies else 0} {deliveries if dies else 0} {self.path}\n")
                lives.stdin.flush()
                self.codes.append(int(lives.stdout.readline() or "99"))
            lives.stdin.close()


@pytest.mark.slow  # a minute each: processes that die and start again; test_shard_serving.py is quick
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_shards_lose_and_repeat_nothing_and_keep_order_shares_and_bound(
    options: dict[str, Any], servers: Servers, tmp_path: Path, seed: int
) -> None:
    run, url = tmp_path / "run", options["env"]["rollout_server_url"]
    trainer = Trainer(url, run, servers)
    shards = [Lives(options, index, tmp_path, seed, deaths=2) for index in range(SHARDS)]
    codes = [shard.codes for shard in shards]
    try:
        until(lambda: all(0 in own for own in codes) or any(max(own, default=0) > 0 for own in codes), 800.0)
    finally:
        for shard in shards:
            assert shard.process is not None
            if 0 not in shard.codes:
                shard.process.kill()
            shard.thread.join()
        trainer.close()
    assert all(own[-1] == 0 for own in codes), codes
    assert sum(code == -9 for own in codes for code in own) >= 4, codes
    assert trainer.step == STEPS
    assert trainer.stalest <= STALE
    sender = _senders(run)
    for step, batch in enumerate(trainer.batches):  # each batch has every shard's own share
        wanted = shares(SHARDS, step, GROUPS)
        assert [Counter(sender[name] for name in batch)[index] for index in range(SHARDS)] == wanted
    found = audit(run)
    assert found.violations == [], found.lines()
    assert found.counts["groups trained on"] == STEPS * GROUPS
    _took_their_own_problems_in_order(run)
    _was_evaluated_once_by_the_first(run, servers, trainer)


def _senders(run: Path) -> dict[str, int]:
    return {
        row["group_id"]: index
        for index, folder in enumerate(folders(run))
        for row in lines(folder / "environment.jsonl")
        if row["sent"]
    }


def _took_their_own_problems_in_order(run: Path) -> None:
    problems = load_set(str(run.parent / "problems.jsonl"), 0)
    for index, folder in enumerate(folders(run)):
        rows = lines(folder / "environment.jsonl")
        ended = {
            row["group_id"]: row["problem_id"] for row in rows if row["dropped"] not in ("lost_inflight", "stopped")
        }
        at_the_end = [row["problem_id"] for row in rows if row["dropped"] == "stopped"]
        with reading(folder) as kept:
            assert kept is not None
            assert kept.outbox() == []
        taken = Counter(ended.values()) + Counter(at_the_end)
        order = build_sampler("uniform", problems, 0, shard=Shard(index, SHARDS))
        assert taken == Counter(order.next().id for _ in range(taken.total())), index


def _was_evaluated_once_by_the_first(run: Path, servers: Servers, trainer: Trainer) -> None:
    assert [row["step"] for row in lines(run / "evaluations.jsonl")] == [0, EVERY, STEPS]
    assert set(servers.evaluated) == {"0", str(EVERY), str(STEPS)}  # none while another version was served
    assert any(held and held.endswith("are being evaluated") for held in trainer.held)
    merged = read_records(run, Counter())
    assert len(merged.groups) == sum(len(lines(folder / "environment.jsonl")) for folder in folders(run))
    rows = [row for folder in folders(run) for row in lines(folder / "environment_metrics.jsonl")]
    assert {row["shard"] for row in rows} == {f"{index}/{SHARDS}" for index in range(SHARDS)}
    steps = [row["step"] for row in merged.environment_metrics]
    assert steps == sorted(set(steps))


@pytest.mark.slow  # half a minute: two processes import everything; tests/api/test_shards.py has the refusals
@pytest.mark.timeout(900)
def test_a_second_process_of_a_shard_and_a_shard_of_another_run_end_at_once_with_the_reason(
    options: dict[str, Any], servers: Servers, tmp_path: Path
) -> None:
    trainer = Trainer(options["env"]["rollout_server_url"], tmp_path / "run", servers)
    trainer.stop.set()  # it has registered and asked for its first batch; nobody trains
    trainer.thread.join()
    trainer.http.post("/lease", json={"step": 0}).raise_for_status()
    first = Lives(options, 0, tmp_path, 0, deaths=0)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"shard": f"0/{SHARDS}"}, "another environment is running there"),
        ({"shard": f"0/{SHARDS}", "run_dir": str(tmp_path / "a")}, f"0-of-{SHARDS} is this shard's folder"),
        ({"shard": "1/2", "run_dir": str(tmp_path / "b")}, f"this run has {SHARDS} shards"),
        ({"shard": f"1/{SHARDS}", "seed": 5, "run_dir": str(tmp_path / "c")}, "env.seed differs from shard 0/3's"),
        ({"shard": None, "run_dir": str(tmp_path / "d")}, "env.shard is empty: shards feed this run"),
    ]
    try:
        until(lambda: trainer.http.get("/status").json().get("shards") is not None)
        said = _ends_of(options, tmp_path, [changes for changes, _ in wrong])
        for line, (_, reason) in zip(said, wrong, strict=True):
            assert line.startswith("ConfigError: ")
            assert reason in line
        assert first.codes == []  # it runs on
    finally:
        assert first.process is not None
        first.process.kill()
        first.thread.join()
        trainer.close()


def _ends_of(options: dict[str, Any], folder: Path, changes: list[dict[str, Any]]) -> list[str]:
    """The last words of environments that end by themselves, started one after the other."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.livecode.mortal"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as lives:  # fmt: skip
        lines_in = ""
        for number, change in enumerate(changes):
            path = folder / f"wrong-{number}.json"
            path.write_text(json.dumps(options | {"env": options["env"] | change}))
            lines_in += f"0 0 {path}\n"
        said, errors = lives.communicate(lines_in, timeout=600)
        assert said.split() == ["99"] * len(changes), errors
        return [line for line in errors.splitlines() if "Error: " in line]
