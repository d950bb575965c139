"""Two runs beside each other: options, held-out scores with paired intervals, metrics, and the phases of a step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from environments.common.settings import ConfigError
from environments.livecode.evaluation.evaluate import EvaluationError, paired_difference
from environments.tools.report.charts import axes, curves, held_out
from environments.tools.report.records import RunRecords, read_records
from environments.tools.report.story import PARTS_OF_A_STEP, settings
from environments.tools.report.story import held_out as by_set
from environments.tools.report.values import Row, Rows, interval, lineage, number, numbers, share

PROCESSES = ("trainer", "environment", "server", "demo", "train", "evaluate")
"""Whose options are compared: the files of a run's folder config/."""
OF_THE_PLACE = frozenset(
    ("run_dir", "url", "servers", "server_url", "rollout_server_url", "port", "server_port", "api_port", "wandb_name")
)
"""Options that say where a run is and not what it does."""
NOTHING = "-"


def compare(first: Path, second: Path) -> Row:
    """All that tells the runs apart: {names, settings, scores, metrics, speed, curves}; shares are of 1, times seconds.

    Raises:
        ConfigError: not a run folder, or one without records.
    """
    runs = [_read(path) for path in (first, second)]
    return {
        "names": _names(first, second),
        "settings": option_differences(first, second),
        "scores": scores(*(run.evaluations for run in runs)),
        "metrics": metrics(*(run.metrics for run in runs)),
        "speed": speed(*(run.metrics for run in runs)),
        "curves": both_curves(*runs),
        "axes": [axes(run.metrics) for run in runs],
    }


def option_differences(first: Path, second: Path) -> list[list[str]]:
    """[process, option, value of the first, value of the second] of each that differs, in the order of the files."""
    rows = []
    for process in PROCESSES:
        one, other = (dict(_flat(settings(run, process))) for run in (first, second))
        if not one or not other:
            continue  # the runs were started in other ways: the same options are in the other files
        for name in dict.fromkeys((*one, *other)):
            values = [run.get(name, NOTHING) for run in (one, other)]
            if values[0] != values[1] and name.rpartition(".")[2] not in OF_THE_PLACE:
                rows.append([process, name, *map(_text, values)])
    return rows


def scores(first: Rows, second: Rows) -> Rows:
    """Held-out results on sets that both runs were evaluated on: after each one's last weights, and where other
    weights are the last that both have, after those.

    Returns:
        {set, versions, rates, intervals, gain, gain_ci95, why} each; gain: second minus first, None with `why` where
        the two are not comparable.
    """
    one, other = ({_key(rows[0]): rows for rows in by_set(_scored(run))} for run in (first, second))
    found = []
    for key in one.keys() & other.keys():
        pairs = [(one[key][-1], other[key][-1])]
        known = ({row.get("weight_version"): row for row in run[key]} for run in (one, other))
        mine, theirs = known
        common = [version for version in mine.keys() & theirs.keys() if number(version)]
        if common and (pair := (mine[max(common)], theirs[max(common)])) != pairs[0]:
            pairs.append(pair)
        found += [_difference(*pair) for pair in pairs]
    return sorted(found, key=lambda row: (row["set"], str(row["versions"])))


def metrics(first: Rows, second: Rows) -> list[list[Any]]:
    """[name, unit, mean of the first, of the second] over the steps that both took, of every chart's lines."""
    one, other = ({row["step"]: row for row in lineage(rows)} for rows in (first, second))
    steps = one.keys() & other.keys()
    rows = []
    for chart in curves([one[step] for step in sorted(steps)]):
        for line in chart["series"]:
            means = [_mean(run[step].get(line["field"]) for step in steps) for run in (one, other)]
            name = chart["title"] if len(chart["series"]) == 1 else f"{chart['title']}: {line['name'].lower()}"
            if all(mean is not None for mean in means):
                rows.append([name, chart["unit"], *means])
    return rows


def speed(first: Rows, second: Rows) -> list[list[Any]]:
    """[phase, mean seconds a step of the first, of the second]; the last row is tokens trained on a second."""
    rows = []
    for field, name, _ in (*PARTS_OF_A_STEP, ("seconds_step", "Whole step", "")):
        means = [sum(numbers(run, field)) / len(run) if run else None for run in (first, second)]
        if any(means):
            rows.append([name, *means])
    rates = []
    for run in (first, second):
        seconds = sum(numbers(run, "seconds_step"))
        rates.append(sum(numbers(run, "tokens_trained")) / seconds if seconds > 0 else None)
    return [*rows, ["Tokens trained on a second", *rates]] if rows else []


def both_curves(first: RunRecords, second: RunRecords) -> Rows:
    """The report's charts that either run has, each line once for each run: `run` is 0 or 1."""
    found: dict[str, Row] = {}
    for place, run in enumerate((first, second)):
        for chart in held_out(run.evaluations) + curves(run.metrics, run.environment_metrics):
            both = found.setdefault(chart["title"], {**chart, "series": []})
            both["series"] += [{**line, "run": place} for line in chart["series"]]
    return list(found.values())


def _read(path: Path) -> RunRecords:
    records = read_records(path, Counter())
    if not records:
        raise ConfigError(
            f"diff: {path}: none of metrics.jsonl, environment.jsonl and evaluations.jsonl is in it. Give a run's "
            "folder."
        )
    return records


def _names(first: Path, second: Path) -> list[str]:
    """What to call the runs: the folders' names, with the folder above where these are the same."""
    paths = [path.resolve() for path in (first, second)]
    names = [path.name for path in paths]
    return names if names[0] != names[1] else [f"{path.parent.name}/{path.name}" for path in paths]


def _flat(options: Row, path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in options.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def _text(value: Any) -> str:
    return "empty" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _scored(evaluations: Rows) -> Rows:
    return [row for row in evaluations if share(row.get("pass_at_1"))]


def _key(row: Row) -> tuple[str, ...]:
    return tuple(str(row.get(name)) for name in ("set", "greedy", "n", "temperature", "profile"))


def _difference(one: Row, other: Row) -> Row:
    row: Row = {
        "set": str(one.get("set")) + (", greedy" if one.get("greedy") else f", {one.get('n')} samples"),
        "versions": [run.get("weight_version") for run in (one, other)],
        "rates": [run["pass_at_1"] for run in (one, other)],
        "intervals": [interval(run.get("ci95")) for run in (one, other)],
        "gain": None, "gain_ci95": None, "why": "",
    }  # fmt: skip
    try:
        row["gain"], row["gain_ci95"] = paired_difference(one, other)
    except EvaluationError as error:
        row["why"] = str(error)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        row["why"] = "an evaluation holds no counts of its problems"
    return row


def _mean(values: Iterator[Any]) -> float | None:
    known = [value for value in values if number(value)]
    return fmean(known) if known else None
