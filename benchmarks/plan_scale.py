"""Where this design ends: clusters of growing size, simulated, one part exchanged after the other.

    python -m benchmarks.plan_scale published 48 [512 4096] [--out FILE.json]

Each row is `atropos plan` with a file of configs/plan and the options that the table names, those of the rows before
included. "Full" are the parts that work for more than 95 % of the time; where nothing is, the parts wait for each
other: what is in flight is bounded by slots and by the steps that groups may lag behind. The environment and the API in
n processes are their seconds divided by n. 4,096 GPUs are simulated by one of eight equal parts, see `shared`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from environments.common.settings import load
from environments.tools.plan.config import PlanConfig, RatesConfig
from environments.tools.plan.figures import Figures, simulate
from environments.tools.plan.rates import rates
from environments.tools.plan.recipe import read, recipe

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "plan"
FULL = 0.95
PARTS = (
    "trainer", "server sequences", "slots", "verifier", "container starts", "environment process", "API process",
)  # fmt: skip
_DEFAULTS = RatesConfig()
Options = Mapping[str, object]


def processes(count: float) -> Options:
    """The environment in so many processes."""
    return {"rates.environment_token_s": _DEFAULTS.environment_token_s / count}


def api_processes(count: float) -> Options:
    """The API in so many processes."""
    names = ("api_post_token_s", "api_lease_token_s")
    return {f"rates.{name}": getattr(_DEFAULTS, name) / count for name in names}


def shared(times: int) -> Options:
    """A cluster so many times as large, of which one such part is simulated: what all parts share has that much less.

    Servers, trainers and places are alike and independent, so the part behaves as the whole.
    """
    starts = {"rates.modal_starts_per_s": 30 / times, "rates.modal_burst": 2000 // times}
    disk = {"cluster.disk_shared_gb_s": 20 / times}
    return {**processes(1 / times), **api_processes(1 / times), **starts, **disk}


HTTP_JUDGES = {
    # A judge's call and test as measured on this machine (benchmarks/results/verification.json), and no containers.
    "rates.verify_call_s": 0.0085, "rates.verify_test_s": 0.006, "rates.modal_starts_per_s": 1e6,
}  # fmt: skip

ROWS: dict[str, tuple[str, list[tuple[str, Options]]]] = {
    "published": (
        "48-b200",
        [
            (f"answers of {length:,} tokens", {"workload.length_mean": length, "workload.evaluation_problems": 454})
            for length in (6_000, 9_000, 12_000, 16_000, 20_000)
        ],
    ),
    "48": (
        "48-b200",
        [
            ("as shipped", {}),
            ("weights by NCCL", {"recipe.backend": "nccl"}),
            ("1,024 rollouts a step", {"recipe.rollouts": 1024}),
            ("half of the GPUs train", {"cluster.trainer_gpus": 24, "cluster.server_gpus": 24}),
        ],
    ),
    "512": (
        "512-h200",
        [
            ("as shipped", {}),
            ("weights by NCCL", {"recipe.backend": "nccl"}),
            ("8 environment processes", processes(8)),
            ("2,000 judges by HTTP, no containers", HTTP_JUDGES | {"cluster.verifier_places": 2000}),
            ("groups may lag 8 steps", {"recipe.max_staleness": 8}),
        ],
    ),
    "4096": (
        "512-h200",
        [
            ("as shipped", shared(8)),
            ("weights by NCCL", {"recipe.backend": "nccl"}),
            ("64 environment processes", processes(64 / 8)),
            ("16,000 judges by HTTP, no containers", HTTP_JUDGES | {"cluster.verifier_places": 2000}),
            ("4 API processes", api_processes(4 / 8)),
            ("groups may lag 8 steps", {"recipe.max_staleness": 8}),
        ],
    ),
}
"""{GPUs: (file, rows of (what is exchanged, options))}; published: the run of 600 steps in four days"""


def full(found: Figures) -> str:
    """What works all the time."""
    names = [name for name in PARTS if found.busy[name] > FULL]
    return ", ".join(names) or "nothing"


def row(file: str, options: Options) -> tuple[PlanConfig, Figures, float]:
    """(options, figures, seconds of the pause for new weights) of one simulation."""
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    config = load(PlanConfig, ["--config", str(CONFIGS / f"{file}.yaml"), *words])
    files = read(config)
    chosen = recipe(config, files)
    taken = rates(config, files, chosen)
    return config, simulate(config, chosen, taken), taken.pause_s


def line(name: str, found: Figures, pause_s: float, batch_gb: float, times: int) -> str:
    """A row of the table; times: as many such parts has the cluster."""
    busy = found.busy
    cells = [
        name, f"{found.steps_hour:.2f}", f"{found.hours_run:.0f}", f"{times * found.tokens_s / 1e3:,.0f}k",
        f"{times * found.answers_s:,.1f}",
        f"{busy['trainer']:.0%}", f"{busy['server sequences']:.0%}", f"{busy['environment process']:.0%}",
        f"{busy['API process']:.0%}", f"{busy['container starts']:.0%}", f"{pause_s:,.0f} s",
        f"{times * batch_gb:.2f} GB",
        f"{found.staleness[0]:.1f}", f"{times * found.money_step:,.0f}", full(found),
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


HEAD = (
    "exchanged | steps/h | hours of 600 | tokens/s | answers/s | trainer | sequences | environment | API | starts | "
    "pause | batch | staleness | money a step | full"
)


def main() -> int:
    """Simulate, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="+", choices=list(ROWS))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    kept: dict[str, Any] = json.loads(options.out.read_text()) if options.out and options.out.exists() else {}
    for size in options.sizes:
        file, rows = ROWS[size]
        times = 8 if size == "4096" else 1
        print(f"| {HEAD} |\n|{'---|' * (HEAD.count('|') + 1)}", flush=True)
        so_far: dict[str, object] = {}
        kept[size] = []
        for name, more in rows:
            so_far |= more
            began = time.process_time()
            config, found, pause_s = row(file, so_far)
            batch_gb = found.tokens_step * config.rates.wire_bytes_token / 1e9
            print(line(name, found, pause_s, batch_gb, times), flush=True)
            kept[size].append({"exchanged": name, "options": dict(so_far), "figures": found.as_json()})
            print(f"{size}, {name}: {time.process_time() - began:.0f} s of CPU", file=sys.stderr)
            if options.out:
                options.out.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
