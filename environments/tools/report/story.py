"""The report's first page: what the run is, what it reached, where its time went, and what to run next."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from math import sqrt
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from environments.livecode.evaluation.evaluate import EvaluationError, paired_difference
from environments.livecode.records.schema import GroupRecord
from environments.tools.report.faults import as_rows, faults
from environments.tools.report.records import RunRecords
from environments.tools.report.state import last_write, state
from environments.tools.report.values import Row, Rows, duration, interval, lineage, number, numbers, share, text

PARTS_OF_A_STEP = (
    ("seconds_wait", "Waiting for rollouts", "The trainer waited for generation and judging."),
    ("seconds_alignment", "Alignment gate", "Whether trainer and sampler compute the same, on the first batch."),
    ("seconds_old_logprobs", "Old log-probabilities", "Recomputed before the first update of a batch."),
    ("seconds_train", "Training", "Forward, backward and optimizer."),
    ("seconds_sync", "Publishing weights", "Until every server served the new weights."),
    ("seconds_checkpoint", "Checkpoints", "Training stood still for them."),
)


def overview(run: Path, records: RunRecords, damaged: dict[str, int], now: float) -> Row:
    """{facts, state, headline, best, learning, time, faults, commands} for the page.

    Args:
        now: seconds since 1970.
    """
    metrics, evaluations = records.metrics, [row for row in records.evaluations if share(row.get("pass_at_1"))]
    trainer, environment = settings(run, "trainer"), settings(run, "environment")
    told = state(run, metrics, trainer, bool(evaluations), now)
    sets = held_out(evaluations)
    return {
        "facts": facts(run, records, trainer, environment),
        "state": told._asdict(),
        "headline": [headline(rows) for rows in sets],
        "best": best(run),
        "learning": [{"name": _set_name(rows[0]), "points": _points(rows)} for rows in sets],
        "sampled": sampled(records.groups),
        "time": time_parts(metrics),
        "busy": _busy(records.environment_metrics),
        "faults": as_rows(faults(records, damaged)),
        "commands": commands(run, trainer, told.kind, bool(metrics)),
    }


def settings(run: Path, name: str) -> Row:
    """The options of a process as the run's folder keeps them; empty where it keeps none."""
    for path in (run / "config" / f"{name}.yaml", run / "config" / "parts" / f"{name}.yaml"):
        try:
            found = yaml.safe_load(path.read_bytes())
        except (OSError, yaml.YAMLError, ValueError):
            continue
        if isinstance(found, dict):
            return found
    return {}


def facts(run: Path, records: RunRecords, trainer: Row, environment: Row) -> list[list[str]]:
    """[label, text] of what the run is; nothing of what its files do not tell."""
    objective, batch = (_part(trainer, name) for name in ("objective", "batch"))
    evaluated = settings(run, "evaluate")
    env = _part(environment, "env") or _part(evaluated, "env")
    metrics = records.metrics
    times = [(one.time, one.seconds or 0.0) for one in records.groups if one.time is not None]
    times += [(row["time"], row.get("seconds_step") or 0.0) for row in metrics if _dated(row)]
    begun = min((time - seconds for time, seconds in times), default=None)
    written = max((time for time, _ in times), default=None) or last_write(run)
    size = ""
    if number(batch.get("rollouts")):
        size = f"{batch['rollouts']:.0f} rollouts, groups of {batch.get('group_size', '?')}"
    lr = _part(trainer, "optimizer").get("lr")
    rate = f"learning rate {lr:g}" if number(lr) else ""
    tokens = sum(numbers(lineage(metrics), "tokens_trained"))
    rows = [
        (
            "Model",
            next((found for part in (trainer, environment, evaluated) if (found := text(part.get("model")))), ""),
        ),
        ("Objective", ", ".join(filter(None, [(text(objective.get("name")) or "").upper(), rate]))),
        ("Problems", text(env.get("problems")) or ""),
        ("A step", size),
        ("Trained on", f"{tokens:,.0f} tokens" if tokens else ""),
        ("Started", _date(begun)),
        ("Last record", _date(written)),
        ("Took", duration(written - begun) if begun is not None and written is not None and written > begun else ""),
    ]
    return [[name, value] for name, value in rows if value]


def held_out(evaluations: Rows) -> list[Rows]:
    """The evaluations of each set under one sampling, in order of weights; the set with most evaluations first."""
    by_set: dict[tuple[Any, ...], Rows] = defaultdict(list)
    for row in evaluations:
        by_set[str(row.get("set")), bool(row.get("greedy")), str(row.get("n")), str(row.get("profile"))].append(row)
    for rows in by_set.values():
        rows.sort(key=lambda row: row["weight_version"] if number(row.get("weight_version")) else -1)
    return sorted(by_set.values(), key=lambda rows: (bool(rows[0].get("greedy")), -len(rows)))


def headline(rows: Rows) -> Row:
    """pass@1 of the first and the last weights on a set, the paired gain between them, and the best weights.

    {set, before, now, best: {pass_at_1, ci95, version}, gain, gain_ci95, verdict}: verdict is better, worse, unclear
    (the gain's interval holds 0) or single.
    """
    first, last = rows[0], rows[-1]
    top = max(rows, key=lambda row: row["pass_at_1"])
    told: Row = {"set": _set_name(first), "before": _score(first), "now": _score(last), "best": _score(top)}
    if first is last:
        return told | {"gain": None, "gain_ci95": None, "verdict": "single"}
    try:
        gain, ends = paired_difference(first, last)
    except (EvaluationError, KeyError, TypeError, ValueError, IndexError, AttributeError):
        gain, ends = last["pass_at_1"] - first["pass_at_1"], None
    verdict = "unclear" if ends is None or ends[0] <= 0 <= ends[1] else "better" if gain > 0 else "worse"
    return told | {"gain": gain, "gain_ci95": None if ends is None else list(ends), "verdict": verdict}


def best(run: Path) -> Row | None:
    """What `atropos select` chose: {checkpoint, pass_at_1, ci95, set}; None where it was not run."""
    try:
        found = yaml.safe_load((run / "best.json").read_bytes())
    except (OSError, yaml.YAMLError, ValueError):
        return None
    if not isinstance(found, dict) or not share(found.get("pass_at_1")) or not text(found.get("checkpoint")):
        return None
    kept = {name: found[name] for name in ("checkpoint", "pass_at_1")}
    return kept | {"ci95": interval(found.get("ci95")), "set": str(found.get("set"))}


def sampled(groups: Iterable[GroupRecord]) -> list[list[float]]:
    """[version, pass rate, low, high] of all rollouts by the weights that sampled them, flat groups included.

    The interval is the normal one of the groups' mean: rollouts of one problem are not independent.
    """
    rates: dict[int, list[float]] = defaultdict(list)
    for group in groups:
        if group.weight_version is not None and (verdicts := group.verdicts):
            rates[group.weight_version].append(sum(verdict == "accepted" for verdict in verdicts) / len(verdicts))
    points = []
    for version in sorted(rates):
        values, mean = rates[version], fmean(rates[version])
        spread = sqrt(fmean((value - mean) ** 2 for value in values) / max(len(values) - 1, 1))
        points.append([version, mean, max(mean - 1.96 * spread, 0.0), min(mean + 1.96 * spread, 1.0)])
    return points


def time_parts(metrics: Rows) -> list[list[Any]]:
    """[name, seconds, sentence] of the phases of all steps, those that were done again included, and the rest."""
    parts: list[list[Any]] = [
        [name, sum(max(value, 0.0) for value in numbers(metrics, field)), hint] for field, name, hint in PARTS_OF_A_STEP
    ]
    rest = sum(numbers(metrics, "seconds_step")) - sum(seconds for _, seconds, _ in parts)
    parts.append(["Other", rest, "Records, packing, and what is not timed on its own."])
    return [part for part in parts if part[1] > 0.5]


def commands(run: Path, trainer: Row, kind: str, trained: bool) -> list[list[str]]:
    """[what for, command] to repeat, continue and export the run; trained: there is a step to export."""
    run = run if run.name not in ("", "..") else run.resolve()  # "." has no name to put something behind
    here, config = shlex.quote(str(run)), run / "config"
    steps = trainer.get("steps")
    further = f" --steps {2 * steps}" if kind == "finished" and isinstance(steps, int) else ""
    rows: list[list[str]] = []
    for name, program in (("train", "atropos train"), ("demo", "atropos demo"), ("trainer", "atropos run-trainer")):
        path = config / f"{name}.yaml"
        if path.is_file():
            start = f"{program} --config {shlex.quote(str(path))}"
            rows.append(["Repeat it", f"{start} --run_dir {shlex.quote(str(run.with_name(run.name + '-again')))}"])
            if name != "demo":
                rows.append(["Train further" if further else "Continue it", start + further])
            break
    else:
        if (path := config / "evaluate.yaml").is_file():
            rows.append(["Repeat it", f"atropos run-env livecode evaluate --config {shlex.quote(str(path))}"])
    if trainer and trained:
        model = shlex.quote(str(run.with_name(run.name + "-model")))
        rows.append(["Export the model", f"atropos export {here} --out {model}"])
    if trainer:
        rows.append(["Check its books", f"atropos audit {here}"])
    return rows


def _points(rows: Rows) -> list[list[Any]]:
    """[version, pass@1, low, high], of a version that was evaluated twice the last."""
    found = {row["weight_version"]: row for row in rows if number(row.get("weight_version"))}
    return [[version, found[version]["pass_at_1"], *(interval(found[version].get("ci95")) or (None, None))]
            for version in sorted(found)]  # fmt: skip


def _score(row: Row) -> Row:
    version = row.get("weight_version")
    return {
        "pass_at_1": row["pass_at_1"],
        "ci95": interval(row.get("ci95")),
        "version": version if number(version) else None,
    }


def _set_name(row: Row) -> str:
    return str(row.get("set")) + (", greedy" if row.get("greedy") else "")


def _busy(rows: Rows) -> float | None:
    pairs = [
        (row["slots_busy"], row["seconds"])
        for row in rows
        if share(row.get("slots_busy")) and number(row.get("seconds"))
    ]
    total = sum(seconds for _, seconds in pairs)
    return sum(value * seconds for value, seconds in pairs) / total if total > 0 else None


def _part(options: Row, name: str) -> Row:
    found = options.get(name)
    return found if isinstance(found, dict) else {}


def _dated(row: Row) -> bool:
    return number(row.get("time")) and number(row.get("seconds_step") or 0)


def _date(moment: float | None) -> str:
    if moment is None:
        return ""
    try:
        return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (OverflowError, OSError, ValueError):
        return ""
