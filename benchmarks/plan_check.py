"""Predicted and then run: does `atropos plan` foresee what the loop does on this machine?

    python -m benchmarks.plan_check [--only one_judge two_judges ...] [--steps 14] [--out FILE.json]

A scenario is predicted first, from constants that are measured apart from any run (seconds of single programs on the
judge pool, of single requests on the server), and then run: the product's environment with its judges and the product's
API server, each a process of its own, with vLLM servers and a trainer whose speed is known
(benchmarks/plan_processes.py). Programs sleep in each test, so that the two cores are idle for the most part and
neighbours matter little. Steps before the fourth are not counted. Exit code 1 when steps an hour are off by more than
15 %, or a phase that takes more than a tenth of the step by more than 20 %.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import httpx
import yaml

from benchmarks.plan_processes import Speeds
from benchmarks.scripted import STEPS, Answers, Script, lengths, prepare
from environments.common.settings import load
from environments.launch.processes import Family, free_port
from environments.livecode.problems.load import load_problems
from environments.livecode.problems.problem import Problem, TestCase
from environments.livecode.verification.judge_requests import judge_request
from environments.livecode.verification.local import LocalVerifier
from environments.tools.plan.config import PlanConfig
from environments.tools.plan.figures import Figures, simulate
from environments.tools.plan.rates import Answer, Rates
from environments.tools.plan.recipe import Recipe
from environments.tools.plan.servers import Speed
from environments.tools.plan.workload import Drawn

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "models" / "SmolLM2-135M-Instruct"
TESTS, FIRST = 4, 4
LIMITS: dict[str, Any] = {"time_limit_s": 15.0, "memory_limit_mb": 1024}
NEAR, NEAR_PHASE, A_PHASE = 0.15, 0.20, 0.10


@dataclass(frozen=True)
class Scenario:
    """A run on this machine."""

    judges: int = 2
    test_s: float = 0.5
    group_size: int = 4
    groups: int = 4
    servers: int = 1
    max_staleness: int = 1
    slots: int = 32
    mean: float = 150.0
    speeds: Speeds = field(default_factory=lambda: Speeds(0.06, 0.0, 16, 3.0, 0.001, 1.0))


SCENARIOS = {
    "two_judges": Scenario(),
    "one_judge": Scenario(judges=1),
    "slow_verifier": Scenario(judges=4, test_s=2.0),
    "larger_groups": Scenario(judges=4, group_size=8),
    "two_servers": Scenario(judges=6, servers=2, slots=48),
    "on_policy": Scenario(judges=6, max_staleness=0),
    "slow_trainer": Scenario(judges=6, speeds=Speeds(0.06, 0.0, 16, 25.0, 0.001, 2.0)),
    "dense_decoding": Scenario(judges=6, speeds=Speeds(0.02, 0.006, 24, 3.0, 0.001, 1.0)),
}


def script(scenario: Scenario) -> Script:
    """The answers: log-normal, none cut."""
    return Script(
        context=4096, mean=scenario.mean, sigma=0.6, cap=2048, tokens_per_s=1.0, group_size=scenario.group_size,
        batch=scenario.group_size * scenario.groups,
    )  # fmt: skip


def program(test_s: float, right: bool) -> str:
    """Sleeps in each test; the wrong one fails the first."""
    return f"import time\nvalue = input()\ntime.sleep({test_s})\nprint({'value' if right else '-1'})\n"


def make(folder: Path, scenario: Scenario) -> None:
    """The folder that the stand-ins read."""
    tests = [TestCase(input=f"{number}\n", output=f"{number}\n") for number in range(TESTS)]
    problems = [
        Problem(id=f"p{n}", source="plan", kind="stdin", statement=f"Print the number. ({n})", tests=tests)
        for n in range(40)
    ]
    both = [("right", program(scenario.test_s, True), 1.0), ("wrong", program(scenario.test_s, False), 1.0)]
    prepare(folder, MODEL, problems, {problem.id: both for problem in problems}, script(scenario))
    (folder / "speeds.json").write_text(json.dumps(asdict(scenario.speeds)))


# -- constants, measured apart from the run ----------------------------------------------------------------------


async def _judging(problem: Problem, scenario: Scenario, calls: int) -> dict[str, float]:
    """Seconds of a judge for one program, right and wrong, with all judges at work."""
    found = {}
    async with LocalVerifier(workers=scenario.judges) as verifier:
        for name, right in (("right", True), ("wrong", False)):
            request = judge_request(problem, program(scenario.test_s, right), **LIMITS)
            await verifier.verify(request)
            began = time.monotonic()
            await asyncio.gather(*[verifier.verify(request) for _ in range(calls * scenario.judges)])
            found[name] = (time.monotonic() - began) / calls
    return found


def judge_constants(folder: Path, scenario: Scenario) -> dict[str, float]:
    """(seconds of a call, of a test beside the program) from two kinds of program: with four tests, and with one."""
    problem = load_problems(folder / "problems.jsonl")[0]
    seconds = asyncio.run(_judging(problem, scenario, 3))
    test = (seconds["right"] - seconds["wrong"]) / (TESTS - 1) - scenario.test_s
    return {"verify_test_s": max(0.0, test), "verify_call_s": max(0.0, seconds["wrong"] - scenario.test_s - test)} | {
        f"judge_{name}_s": value for name, value in seconds.items()
    }


def request_constants(server: str, folder: Path) -> dict[str, float]:
    """Seconds of a decode step, from one request alone."""
    prompt = json.loads(next(iter(Answers(folder).programs)))
    body = {"token_ids": prompt, "sampling_params": {"max_tokens": 2048, "temperature": 1.0}}
    began = time.monotonic()
    answer = httpx.post(f"{server}/inference/v1/generate", json=body, timeout=300, trust_env=False)
    step = (time.monotonic() - began) / len(answer.json()["choices"][0]["token_ids"])
    return {"request_step_s": step}


class Prepared:
    """The answers that the server has, as the simulation draws them."""

    def __init__(self, folder: Path, scenario: Scenario) -> None:
        answers = Answers(folder)
        self.test_s = scenario.test_s
        self.prompt = len(json.loads(next(iter(answers.programs))))
        entries, _ = next(iter(answers.programs.values()))
        self.tails = {kind: size for kind, (size, _, _) in entries}
        self.lengths = lengths(script(scenario))

    def group(self, number: int, answers: int, most: int) -> Drawn:
        """Half of the answers are right, whatever the problem."""
        draw, found = random.Random(number), []
        for _ in range(answers):
            right, length = draw.random() < 0.5, draw.choice(self.lengths)
            size = min(most, length + self.tails["right" if right else "wrong"])
            found.append(Answer(size, False, right, float(TESTS if right else 1)))
        return Drawn(self.prompt, found)


# -- predicted ---------------------------------------------------------------------------------------------------


def predict(scenario: Scenario, measured: dict[str, float], work: Prepared) -> Figures:
    """By the product's simulation, over many steps, so that its own noise is small."""
    plain = load(PlanConfig, ["--config", str(ROOT / "configs" / "plan" / "48-b200.yaml")])
    config = plain.model_copy(update={"simulated_steps": 300, "first_steps": FIRST})
    speeds = scenario.speeds
    chosen = Recipe(
        steps=STEPS, group_size=scenario.group_size, groups_per_batch=scenario.groups,
        max_staleness=scenario.max_staleness, max_concurrent=scenario.slots, answer=2048, evaluation_answer=2048,
        overlong_baseline="include", dynamic_sampling=True, verifier="local", one_call_for_a_group=False,
        verifier_places=scenario.judges, evaluation_every=0, evaluation_samples=1, pause_while_training=False,
        checkpoint_every=0, backend="nccl", recompute_old=False, max_num_seqs=speeds.most_running, tensor_parallel=1,
        bytes_weight=2,
    )  # fmt: skip
    late = measured["request_step_s"] - max(speeds.weights_s, speeds.sequence_s)
    taken = Rates(
        speed=Speed(speeds.weights_s, speeds.sequence_s, 0.0, max(0.0, late), 0.0, 1e9, speeds.most_running),
        servers=scenario.servers, train_s=speeds.train_s, train_token_s=speeds.token_s, train_flops_s=1.0, shape=None,
        recompute_old=False, publish_s=0.0, pause_s=speeds.pause_s, checkpoint_s=0.0,
        verify_call_s=measured["verify_call_s"], verify_test_s=measured["verify_test_s"], starts_per_s=None, burst=1,
        environment_rollout_s=0.0, environment_token_s=3.2e-6, api_post_token_s=1.24e-7, api_lease_token_s=1.64e-7,
    )  # fmt: skip
    return simulate(config, chosen, taken, work)


# -- run ---------------------------------------------------------------------------------------------------------


class Run:
    """The processes of a scenario."""

    def __init__(self, folder: Path, scenario: Scenario) -> None:
        self.folder, self.scenario, self.family = folder, scenario, Family()
        self.servers = [f"http://127.0.0.1:{free_port()}" for _ in range(scenario.servers)]
        self.api = f"http://127.0.0.1:{free_port()}"
        for place, url in enumerate(self.servers):
            child = self._start(
                f"server-{place}", "benchmarks.plan_processes", "server", folder, url.rpartition(":")[2]
            )
            child.wait_ready(f"{url}/health", 600)

    def _start(self, name: str, *argv: object) -> Any:
        variables = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        words = [sys.executable, "-m", *map(str, argv)]
        return self.family.start(name, words, self.folder / "logs" / f"{name}.log", variables)

    def loop(self, steps: int) -> list[dict[str, Any]]:
        """API server, trainer and environment until so many steps are done; the rows of the steps."""
        port, journal = self.api.rpartition(":")[2], self.folder / "api.journal"
        api = self._start("api", "environments.cli", "run-api", "--port", port, "--journal", journal)
        api.wait_ready(f"{self.api}/health", 600)
        self._start("trainer", "benchmarks.plan_processes", "trainer", self.folder, self.api, *self.servers)
        path = self.folder / "environment.yaml"
        scenario = self.scenario
        options = {
            "run_dir": str(self.folder / "run"), "problems": str(self.folder / "problems.jsonl"),
            "group_size": scenario.group_size, "total_steps": STEPS, "context": 4096, "max_new_tokens": 2048,
            "max_staleness": scenario.max_staleness, "max_concurrent_rollouts": scenario.slots,
            "rollout_server_url": self.api, "verifier_workers": scenario.judges, **LIMITS,
        }  # fmt: skip
        path.write_text(yaml.safe_dump({"model": str(self.folder), "servers": self.servers, "env": options}))
        self._start("environment", "environments.cli", "run-env", "livecode", "serve", "--config", path)
        done = self.folder / "steps.jsonl"
        while not done.exists() or done.read_bytes().count(b"\n") < steps:
            time.sleep(1)
            self.family.check()
        return [json.loads(line) for line in done.read_text().splitlines()]

    def stop(self) -> None:
        """Ends all of them."""
        self.family.stop()


def observe(folder: Path, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Means of the counted steps, by the names that the prediction has."""
    counted = rows[FIRST:]
    each = (counted[-1]["ended"] - rows[FIRST - 1]["ended"]) / len(counted)
    lines = [json.loads(line) for line in (folder / "run" / "environment.jsonl").read_text().splitlines()]
    finished = [line for line in lines if line["dropped"] != "stopped"]
    return {
        "steps_hour": 3600 / each, **{name: fmean(row[name] for row in counted) for name in ("wait", "train", "sync")},
        "staleness": fmean(age for row in counted for age in row["staleness"]),
        "flat": sum(line["dropped"] is not None for line in finished) / len(finished),
        "tokens": fmean(row["tokens"] for row in counted), "load_average": os.getloadavg()[0],
    }  # fmt: skip


def foreseen(found: Figures) -> dict[str, float]:
    """The same of a prediction."""
    return {
        "steps_hour": found.steps_hour, **{name: found.phases[name] for name in ("wait", "train", "sync")},
        "staleness": found.staleness[0], "flat": 1 - found.groups["sent"], "tokens": found.tokens_step,
    }  # fmt: skip


def errors(predicted: dict[str, float], observed: dict[str, float]) -> dict[str, float]:
    """(predicted - observed) / observed of speed, and of each phase that takes more than a tenth of the step."""
    step = 3600 / observed["steps_hour"]
    phases = [name for name in ("wait", "train", "sync") if observed[name] > A_PHASE * step]
    return {name: predicted[name] / observed[name] - 1 for name in ("steps_hour", *phases)}


def check(name: str, steps: int) -> dict[str, Any]:
    """One scenario: constants, prediction, run."""
    scenario = SCENARIOS[name]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make(folder, scenario)
        work = Prepared(folder, scenario)
        run = Run(folder, scenario)
        try:
            measured = judge_constants(folder, scenario) | request_constants(run.servers[0], folder)
            predicted = foreseen(predict(scenario, measured, work))
            rows = run.loop(steps)
            observed = observe(folder, rows)
        finally:
            run.stop()
    found = errors(predicted, observed)
    print(name, {key: f"{value:+.1%}" for key, value in found.items()}, file=sys.stderr, flush=True)
    return {
        "scenario": asdict(scenario), "measured": measured, "predicted": predicted, "observed": observed,
        "errors": found, "steps": rows,
    }  # fmt: skip


def main() -> int:
    """Predict, run, compare, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SCENARIOS), default=list(SCENARIOS))
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    result: dict[str, Any] = {"machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} CPUs", "scenarios": {}}
    if options.out and options.out.exists():
        result["scenarios"] = json.loads(options.out.read_text())["scenarios"]
    off = 0
    for name in options.only:
        found = check(name, options.steps)
        result["scenarios"][name] = found
        off += any(abs(e) > (NEAR if key == "steps_hour" else NEAR_PHASE) for key, e in found["errors"].items())
        if options.out:
            options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return int(bool(off))


if __name__ == "__main__":
    sys.exit(main())
