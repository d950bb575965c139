"""2,000 rollouts of up to 30,720 tokens in flight in one environment process: is its event loop blocked, what memory.

    python -m benchmarks.load [--rollouts 2048] [--minutes 9.5] [--out FILE.json]

Every part is a process of its own: the environment (the product, in mode serve, with the heartbeat of
benchmarks/measured.py beside it), two judges, the API server with its journal, a scripted generation server that
holds as many requests as it gets, and a trainer that takes batches and nothing else (benchmarks/scripted.py). Groups of
16; the lengths of answers are log-normal, cut at 30,720 tokens. All rollouts of the start that are interrupted
end in the same moment, as they do where a server decodes them in step. Exit code 1 when the loop's thread used more
than half a second of CPU in one turn, or when the rollouts were not really in flight.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import yaml

from benchmarks.measured import rss_mb
from benchmarks.scripted import STEPS, Program, Script, prepare
from environments.launch.processes import Family, free_port
from environments.livecode.problems.problem import Problem
from environments.livecode.problems.warmup import build

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "models" / "SmolLM2-135M-Instruct"
BOUND_S = 0.5
STALENESS = 63  # steps of 8 groups: the trainer takes at once what comes, so that slots are the only bound


def programs(limit: int = 200) -> tuple[list[Problem], dict[str, list[Program]]]:
    """Warm-up problems, each with its reference program and one that solves another problem of its kind."""
    sets = build(0)
    chosen = sets.train[:limit]
    found = {}
    for place, problem in enumerate(chosen):
        others = [other for other in chosen if other.kind == problem.kind]
        other = others[(place + len(others) // 2) % len(others)]
        found[problem.id] = [("right", sets.references[problem.id], 1.0), ("wrong", sets.references[other.id], 1.0)]
    return chosen, found


def environment_config(folder: Path, script: Script, rollouts: int, server: str, api: str, **env: Any) -> Path:
    """The environment's configuration file."""
    options = {
        "run_dir": str(folder / "run"), "problems": str(folder / "problems.jsonl"), "group_size": script.group_size,
        "total_steps": STEPS, "context": script.context, "max_new_tokens": script.cap, "max_staleness": STALENESS,
        "max_concurrent_rollouts": rollouts, "rollout_deadline_s": 7200.0, "rollout_server_url": api,
        "verifier_workers": 2,
    }  # fmt: skip
    path = folder / "environment.yaml"
    path.write_text(yaml.safe_dump({"model": str(folder), "servers": [server], "env": options | env}))
    return path


class Run:
    """The processes of one run, from the generation server to the trainer."""

    def __init__(
        self, folder: Path, rollouts: int, script: Script, variables: Mapping[str, str] | None = None, **env: Any
    ) -> None:
        self.folder, self.family = folder, Family()
        self.server, self.api = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
        logs, python = folder / "logs", sys.executable
        all_variables = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])} | dict(
            variables or {}
        )
        config = environment_config(folder, script, rollouts, self.server, self.api, **env)

        def start(name: str, *argv: str) -> Any:
            return self.family.start(name, [python, "-m", *argv], logs / f"{name}.log", all_variables)

        try:
            generation = start("server", "benchmarks.scripted", "server", str(folder), self.server.rpartition(":")[2])
            api_port = self.api.rpartition(":")[2]
            api = start(
                "api", "environments.cli", "run-api", "--port", api_port, "--journal", str(folder / "api.journal")
            )
            api.wait_ready(f"{self.api}/health", 120)
            generation.wait_ready(f"{self.server}/health", 300)
            start("trainer", "benchmarks.scripted", "trainer", str(folder), self.api, self.server)
            self.measured = folder / "measured.json"
            self.environment = start("environment", "benchmarks.measured", str(self.measured), "--config", str(config))
        except BaseException:
            self.family.stop()
            raise

    def asked(self) -> dict[str, Any]:
        """The generation server's own figures."""
        answer: dict[str, Any] = httpx.get(f"{self.server}/scripted", timeout=60, trust_env=False).json()
        return answer

    def pid(self, name: str) -> int:
        """Of the child with this name."""
        return next(child.process.pid for child in self.family.children if child.name == name)

    def finish(self) -> dict[str, Any]:
        """Asks the environment to end; what it measured. The other processes continue until `stop`."""
        self.environment.process.terminate()
        self.environment.process.wait(300)
        self.environment.check()
        measured: dict[str, Any] = json.loads(self.measured.read_text())
        return measured

    def stop(self) -> None:
        """Ends what is left."""
        self.family.stop()


def measure(
    folder: Path, script: Script, seconds: float, model: Path = MODEL, *, groups: int = 1, problems: int = 200,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> dict[str, Any]:  # fmt: skip
    """One run: `seconds` from the moment that `script.hold` rollouts are in flight, and until so many groups ended."""
    prepare(folder, model, *programs(problems), script)
    run = Run(folder, script.hold, script)
    flying: list[int] = []
    api_peak = 0.0
    try:
        full, begun, said = None, time.monotonic(), 0.0
        while full is None or time.monotonic() - full < seconds or ended(folder) < groups:
            time.sleep(1)
            run.family.check()
            asked = run.asked()
            api_peak = max(api_peak, rss_mb(run.pid("api")))
            if full is None and asked["peak"] >= script.hold:
                full = time.monotonic()
            if full is not None:
                flying.append(asked["running"])
            if time.monotonic() - said > 15:
                said = time.monotonic()
                say(
                    f"{said - begun:5.0f} s: {asked['running']} in flight, {sum(asked['kinds'].values())} answered, "
                    f"environment {rss_mb(run.pid('environment')):.0f} MB, API {api_peak:.0f} MB"
                )
        return result(folder, run, flying, seconds, api_peak)
    finally:
        run.stop()


def result(folder: Path, run: Run, flying: list[int], seconds: float, api_peak_mb: float) -> dict[str, Any]:
    """What a run has to show; it ends here. flying: rollouts in flight, once a second."""
    found = run.finish()
    asked = run.asked()
    lines = [json.loads(line) for line in (folder / "run" / "environment.jsonl").read_text().splitlines()]
    finished = [line for line in lines if line["dropped"] not in ("stopped", "lost_inflight")]
    statuses: dict[str, int] = {}
    for line in finished:
        for status in line["verdicts"]:
            statuses[status] = statuses.get(status, 0) + 1
    trainer = folder / "trainer.json"
    return {
        "rollouts_in_flight": {"most": asked["peak"], "mean": round(sum(flying) / len(flying))},
        "seconds": round(seconds),
        "answers": sum(asked["kinds"].values()),
        "answer_tokens_mean": round(asked["tokens"] / max(1, sum(asked["kinds"].values()))),
        "answers_received_mb": round(asked["sent_bytes"] / 1e6),
        "cut_at_the_limit": asked["kinds"].get("overlong", 0),
        "groups": len(finished),
        "groups_sent": sum(line["sent"] for line in lines),
        "verdicts": statuses,
        "trainer": json.loads(trainer.read_text()) if trainer.exists() else {},
        "api_peak_mb": round(api_peak_mb),
        **{name: value for name, value in found.items() if name != "series"},
        "series": thin(found["series"], 60),
    }


def ended(folder: Path) -> int:
    """Groups that the environment has finished with."""
    return (folder / "run" / "environment.jsonl").read_bytes().count(b"\n")


def thin(series: list[Any], count: int) -> list[Any]:
    """At most `count` rows, evenly."""
    step = max(1, -(-len(series) // count))
    return series[::step]


def broken(result: dict[str, Any], rollouts: int) -> list[str]:
    """The bounds that a result breaks, in words."""
    found = []
    if result["loop_thread_lag_s"]["max"] > BOUND_S:
        found.append(f"the event loop worked for {result['loop_thread_lag_s']['max']} s in a turn, bound {BOUND_S} s")
    if result["rollouts_in_flight"]["most"] < rollouts:
        found.append(f"{result['rollouts_in_flight']['most']} rollouts were in flight, not {rollouts}")
    if not result["groups_sent"]:
        found.append("no group was sent: nothing was measured")
    return found


def main() -> int:
    """Measure, print, and judge by the bounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=2048)
    parser.add_argument("--minutes", type=float, default=9.5, help="from the moment that all are in flight")
    parser.add_argument("--tokens-per-s", type=float, default=60.0, help="of one rollout")
    parser.add_argument("--mean", type=float, default=14_000.0, help="mean length of an answer before it is cut")
    parser.add_argument("--model", type=Path, default=MODEL, help="folder with a tokenizer")
    parser.add_argument("--keep", type=Path, help="folder for the run's files; empty: a temporary one")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.rollouts % 16:
        parser.error(f"--rollouts {options.rollouts}: groups have 16; give a multiple")
    script = Script(
        context=32_768, mean=options.mean, sigma=0.8, cap=30_720, tokens_per_s=options.tokens_per_s,
        group_size=16, batch=128, hold=options.rollouts,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = options.keep or Path(name)
        found = measure(folder, script, 60 * options.minutes, options.model)
    machine = f"{platform.machine()}, {len(os.sched_getaffinity(0))} CPUs, Python {platform.python_version()}"
    result = {"machine": machine, "group_size": script.group_size, "tokens_per_s": script.tokens_per_s, **found}
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    failures = broken(result, options.rollouts)
    for failure in failures:
        print(f"BROKEN: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
