"""Does the demo learn, and from the reward? Runs it for several seeds and for a control, and plots the curves.

    python -m benchmarks.learning run --seeds 0,1,2 --control 0     # one demo after the other
    python -m benchmarks.learning plot                              # curves.png and the table in results/learning

The control deals each group's rewards out at random, so that everything but the reward's meaning is the same.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "learning"
KEPT = ("metrics.jsonl", "evaluations.jsonl", "summary.json", "environment.jsonl")


def run(name: str, seed: int, steps: int, *, shuffle: bool, runs: Path) -> int:
    """One demo; what the plot and the table need of its folder is kept under `name`. Its exit code."""
    folder = runs / f"learning-{name}"
    command = [sys.executable, "-m", "environments.cli", "demo", "--seed", str(seed), "--steps", str(steps)]
    command += ["--run-dir", str(folder), "--shuffle_rewards", str(shuffle).lower()]
    command += ["--eval_samples", "4", "--environment.evaluation.greedy", "true"]
    code = subprocess.run(command, check=False).returncode
    if code == 0:
        kept = RESULTS / name
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        for file in KEPT:
            shutil.copyfile(folder / file, kept / file)
        # not demo.yaml: it only names the folders of this machine
        shutil.copytree(folder / "config", kept / "config", ignore=shutil.ignore_patterns("demo.yaml"))
    return code


def lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of one JSON object a line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def training_curve(folder: Path) -> tuple[list[int], list[float]]:
    """pass@1 of all rollouts generated with each weight version, flat groups included."""
    cells: dict[int, list[int]] = {}
    for group in lines(folder / "environment.jsonl"):
        # from the verdicts: in a control run the scores are dealt out at random
        passed, total = group["verdicts"].count("accepted"), len(group["verdicts"])
        cell = cells.setdefault(group["begun_at_version"], [0, 0])
        cell[0], cell[1] = cell[0] + passed, cell[1] + total
    versions = sorted(cells)
    return versions, [cells[version][0] / cells[version][1] for version in versions]


def plot() -> Path:
    """Writes curves.png: held-out pass@1 before and after, and training pass@1 by weight version."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for folder in sorted(path for path in RESULTS.iterdir() if path.is_dir()):
        control = folder.name.startswith("control")
        style = {"linestyle": "--", "color": "grey"} if control else {}
        versions, rates = training_curve(folder)
        left.plot(versions, [100 * rate for rate in rates], label=folder.name, **style)
        held = [row for row in lines(folder / "evaluations.jsonl") if row["set"].endswith("new_instances")]
        sampled = [row for row in held if not row["greedy"]]
        steps = [row["weight_version"] or 0 for row in sampled]
        values = [100 * row["pass_at_1"] for row in sampled]
        spread = [
            [value - 100 * row["ci95"][0] for value, row in zip(values, sampled, strict=True)],
            [100 * row["ci95"][1] - value for value, row in zip(values, sampled, strict=True)],
        ]
        right.errorbar(steps, values, yerr=spread, capsize=3, marker="o", label=folder.name, **style)
    left.set(title="training problems, all rollouts", xlabel="weight version", ylabel="pass@1 in %")
    right.set(title="held-out: new instances, T 0.7, 95 % intervals", xlabel="weight version")
    right.legend()
    path = RESULTS / "curves.png"
    figure.savefig(path, dpi=110)
    return path


def table() -> str:
    """Held-out pass@1 before and after, and the gain with its interval, as Markdown."""
    rows = ["| run | set | before | after | gain (95 % interval) | seconds |", "|---|---|---|---|---|---|"]
    for folder in sorted(path for path in RESULTS.iterdir() if path.is_dir()):
        evaluations = lines(folder / "evaluations.jsonl")
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        for gain in summary["gains"]:
            same = [r for r in evaluations if r["set"] == gain["set"] and r["greedy"] == gain["greedy"]]
            low, high = (100 * bound for bound in gain["ci95"])
            rows.append(
                f"| {folder.name} | {gain['set'].removeprefix('warmup:').replace('_', ' ')}"
                f"{', greedy' if gain['greedy'] else ''} | {100 * same[0]['pass_at_1']:.1f} % | "
                f"{100 * same[-1]['pass_at_1']:.1f} % | {100 * gain['gain']:+.1f} [{low:.1f}, {high:.1f}] | "
                f"{summary['seconds']:.0f} |"
            )
    return "\n".join(rows) + "\n"


def phases() -> str:
    """Where the wall time of the training steps went, as Markdown."""
    rows = [
        "| run | seconds a step | generate and judge | train | sync | rollouts/s | generated tokens/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for folder in sorted(path for path in RESULTS.iterdir() if path.is_dir()):
        steps, groups = lines(folder / "metrics.jsonl"), lines(folder / "environment.jsonl")
        total = sum(step["seconds_step"] for step in steps)
        shares = [100 * sum(step[f"seconds_{phase}"] for step in steps) / total for phase in ("wait", "train", "sync")]
        rollouts, tokens = sum(len(g["lengths"]) for g in groups), sum(sum(g["lengths"]) for g in groups)
        cells = " | ".join(f"{share:.0f} %" for share in shares)
        rows.append(
            f"| {folder.name} | {total / len(steps):.0f} | {cells} | {rollouts / total:.1f} | {tokens / total:.0f} |"
        )
    return "\n".join(rows) + "\n"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run", help="run the demos")
    runner.add_argument("--seeds", default="0,1,2", help="seeds with the true reward")
    runner.add_argument("--control", default="0", help="seeds with shuffled rewards; empty: none")
    runner.add_argument("--steps", type=int, default=8)
    runner.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs")
    commands.add_parser("plot", help="write curves.png and print the table")
    options = parser.parse_args()
    if options.command == "plot":
        print(f"{plot()}\n\n{table()}\n{phases()}", end="")
        return 0
    wanted = [(f"seed-{seed}", int(seed), False) for seed in options.seeds.split(",") if seed]
    wanted += [(f"control-{seed}", int(seed), True) for seed in options.control.split(",") if seed]
    failed = [
        name for name, seed, shuffle in wanted if run(name, seed, options.steps, shuffle=shuffle, runs=options.runs)
    ]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
