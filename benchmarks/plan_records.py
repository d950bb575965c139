"""Runs of the demo with real vLLM and the real trainer, predicted from another run's constants.

    python -m benchmarks.plan_records [--constants seed-0] [--out FILE.json]

benchmarks/results/learning keeps four runs of eight steps of the demo (two cores). Of one of them the constants are
taken: tokens a second of vLLM from its evaluation before the first step, which is no part of the training; seconds for
a packed token and of a publication from its steps' medians; lengths and verdicts of its groups. The others are then
simulated from these and compared with what they did. All ran on machines of the same kind, beside other work.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from environments.common.settings import load
from environments.tools.plan.config import PlanConfig
from environments.tools.plan.figures import Figures, simulate
from environments.tools.plan.rates import rates
from environments.tools.plan.recipe import read, recipe

ROOT = Path(__file__).resolve().parents[1]
RUNS = Path(__file__).parent / "results" / "learning"
SEEDS = 20
DEMO = {name: ROOT / "configs" / "demo" / f"{name}.yaml" for name in ("trainer", "environment", "server")}


def rows(run: str, name: str) -> list[dict[str, Any]]:
    """The lines of one of a run's records."""
    return [json.loads(line) for line in (RUNS / run / f"{name}.jsonl").read_text().splitlines()]


def constants(run: str) -> dict[str, float]:
    """Options of `atropos plan` from a run."""
    before = [row for row in rows(run, "evaluations") if row["weight_version"] == 0]
    tokens = sum(row["total"] * row["mean_length"] for row in before)
    steps = rows(run, "metrics")
    return {
        # All sets are evaluated together, with as many requests as slots.
        "rates.decode_sequence_s": max(row["seconds"] for row in before) / tokens,
        "rates.train_token_s": median(row["seconds_train"] / row["packed_tokens"] for row in steps),
        "rates.pause_s": median(row["seconds_sync"] for row in steps),
    }


def predict(run: str, measured: dict[str, float], seed: int) -> Figures:
    """Eight steps with the demo's own files."""
    options: dict[str, object] = {
        **DEMO, **measured, "workload.records": RUNS / run / "environment.jsonl", "workload.tests": 6,
        "workload.test_s": 0.01, "cluster.trainer_gpu": "cpu", "cluster.server_gpu": "cpu", "cluster.server_gpus": 1,
        "rates.decode_weights_s": 0.05, "rates.decode_kv_token_s": 0, "rates.decode_overhead_s": 0,
        "rates.prompt_token_s": 0, "rates.cache_tokens": 40_000, "cluster.disk_write_gb_s": 1000,
        "cluster.disk_read_gb_s": 1000, "cluster.disk_shared_gb_s": 1000, "recipe.steps": 8,
        "recipe.checkpoint_every": 0, "simulated_steps": 8, "first_steps": 0, "seed": seed,
    }  # fmt: skip
    config = load(PlanConfig, [word for name, value in options.items() for word in (f"--{name}", str(value))])
    files = read(config)
    chosen = recipe(config, files)
    return simulate(config, chosen, rates(config, files, chosen))


def observed(run: str) -> dict[str, float]:
    """What a run did, by the names of a prediction."""
    steps = rows(run, "metrics")
    groups = rows(run, "environment")
    each = fmean(row["seconds_step"] for row in steps)
    return {
        "steps_hour": 3600 / each, "wait": fmean(row["seconds_wait"] for row in steps),
        "train": fmean(row["seconds_train"] for row in steps), "sync": fmean(row["seconds_sync"] for row in steps),
        "median_step_s": median(row["seconds_step"] for row in steps),
        "staleness": fmean(row["staleness"] for row in steps),
        "flat": sum(group["dropped"] not in (None, "stopped") for group in groups) / len(groups),
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Predict, compare, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = sorted(path.name for path in RUNS.iterdir() if path.is_dir())
    parser.add_argument("--constants", choices=known, default="seed-0")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    measured = constants(options.constants)
    found = [predict(options.constants, measured, seed) for seed in range(SEEDS)]
    predicted = {
        "steps_hour": fmean(one.steps_hour for one in found), "staleness": fmean(one.staleness[0] for one in found),
        "flat": 1 - fmean(one.groups["sent"] for one in found),
        **{name: fmean(one.phases[name] for one in found) for name in ("wait", "train", "sync")},
    }  # fmt: skip
    result: dict[str, Any] = {"constants_of": options.constants, "constants": measured, "predicted": predicted}
    result["runs"] = {}
    for run in known:
        did = observed(run)
        off = {name: predicted[name] / did[name] - 1 for name in ("steps_hour", "wait", "train", "sync")}
        # A neighbour made single steps of each run twice as long: the median step leaves them out.
        off["median_step"] = 3600 / predicted["steps_hour"] / did["median_step_s"] - 1
        result["runs"][run] = {"observed": did, "errors": off}
        print(run, {name: f"{value:+.0%}" for name, value in off.items()}, file=sys.stderr)
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
