"""What a run folder holds, as the page's data. Damaged lines are counted and left out."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from environments.common.run_folder import check
from environments.common.settings import ConfigError
from environments.tools.report.code import tokens

_OF_PROBLEMS = ".problems.jsonl"
MAX_TEXT = 20_000  # characters of an answer that the page keeps: its beginning and its end
Rows = list[dict[str, Any]]

CURVES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("Reward", "mean reward of the trained rollouts", ("reward",)),
    ("pass@1", "share of the trained rollouts that passed", ("pass_at_1", "pass_at_group")),
    ("Length", "sampled tokens", ("length_passed", "length_failed", "length_overlong")),
    ("Entropy", "nats a token", ("entropy",)),
    ("Clipped tokens", "share", ("clip_low_tokens", "clip_high_tokens")),
    ("Trainer against sampler", "mean |difference| of log-probabilities", ("mismatch_abs", "mismatch_abs_after_sync")),
    ("Staleness", "steps", ("staleness", "staleness_max")),
    ("Seconds", "by phase of a step", ("seconds_wait", "seconds_old_logprobs", "seconds_train", "seconds_sync")),
    ("Gradient norm", "before clipping", ("grad_norm",)),
)  # fmt: skip


def collect(run: Path, most_rollouts: int) -> dict[str, Any]:
    """The page's data: {title, curves, evaluations, tables, rollouts, damaged, notes}.

    Raises:
        ConfigError: not a run folder.
    """
    if not run.is_dir():
        raise ConfigError(f"report: {run}: no such folder. Give the folder that env.run_dir or --run_dir names.")
    check(run)
    damaged: Counter[str] = Counter()
    metrics = read(run / "metrics.jsonl", damaged)
    groups = read(run / "environment.jsonl", damaged)
    evaluations = read(run / "evaluations.jsonl", damaged)
    files = sorted((run / "rollouts").glob("*.jsonl"))
    shown = [rollout(record) for record in _newest((read(path, damaged) for path in reversed(files)), most_rollouts)]
    shown += samples(run / "evaluations", most_rollouts - len(shown), damaged)
    if not (metrics or groups or evaluations or shown):
        raise ConfigError(
            f"report: {run}: none of metrics.jsonl, environment.jsonl, evaluations.jsonl, evaluations/ and rollouts/ "
            "is in it. Give a run's folder."
        )
    notes = [] if metrics or not groups else ["No step was trained yet: there are no curves."]
    if unfinished := len(list((run / "evaluations").glob("*.partial.jsonl"))):
        notes.append(f"Evaluations without a score yet, since they are not finished: {unfinished}.")
    return {
        "title": run.resolve().name,
        "curves": curves(metrics) + left_out(groups),
        "evaluations": [graded for record in evaluations if "pass_at_1" in record for graded in evaluation(record)],
        "tables": tables(groups),
        "rollouts": shown,
        "damaged": dict(damaged),
        "notes": notes,
    }


def read(path: Path, damaged: Counter[str]) -> Rows:
    """The objects of a JSONL file; what is not one is counted under the file's name."""
    if not path.is_file():
        return []
    with path.open("rb") as stream:
        return [row for line in stream if (row := _object(line, path, damaged)) is not None]


def _object(line: bytes, path: Path, damaged: Counter[str]) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if isinstance(row, dict):
        return row
    if line.strip():
        damaged[path.name] += 1
    return None


def _newest(files: Iterable[Rows], most: int) -> Rows:
    kept: Rows = []
    for rows in files:
        if len(kept) >= most:
            break
        kept = rows[-(most - len(kept)) :] + kept
    return kept


def curves(metrics: Rows) -> list[dict[str, Any]]:
    """One chart for each row of CURVES that has a value, over steps."""
    found = []
    for title, unit, names in CURVES:
        series = []
        for name in names:
            points = [
                [row["step"], row[name]] for row in metrics if _number(row.get("step")) and _number(row.get(name))
            ]
            if points:
                series.append({"name": name, "points": points})
        if series:
            found.append({"title": title, "unit": unit, "series": series})
    return found


def left_out(groups: Rows) -> list[dict[str, Any]]:
    """A chart of the groups that were left out, by reason, over weight versions."""
    pairs = [(group.get("weight_version"), group.get("dropped")) for group in groups]
    counts = Counter((version, reason) for version, reason in pairs if _number(version) and isinstance(reason, str))
    versions: list[float] = sorted({version for version, _ in pairs if version is not None and _number(version)})
    reasons = sorted({reason for _, reason in counts if isinstance(reason, str)})
    if not reasons:
        return []
    series = [{"name": name, "points": [[v, counts[v, name]] for v in versions]} for name in reasons]
    return [{"title": "Groups left out", "unit": "groups, by the weights that sampled them", "series": series}]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value and abs(value) < 1e300


def evaluation(record: dict[str, Any]) -> list[dict[str, Any]]:
    """One evaluation's lines, one for each profile, with their parts by difficulty, kind, platform and month."""
    kept = ("set", "temperature", "n", "greedy", "problems", "correct", "total", "pass_at_1", "ci95", "overlong",
            "no_verdict", "mean_length", "weight_version", "verdicts", "without_known_bad", "cutoff",
            "around_cutoff", "settings")  # fmt: skip
    profiles = record.get("profiles")
    graded = profiles if isinstance(profiles, dict) and profiles else {"": {}}
    merged = [record | scores | {"profile": name} for name, scores in graded.items() if isinstance(scores, dict)]
    return [{name: one.get(name) for name in (*kept, "profile")} | {"by": one.get("by") or {}} for one in merged]


def tables(groups: Rows) -> list[dict[str, Any]]:
    """Pass rates of all rollouts by difficulty, kind, source and month, verdicts, and why groups were left out."""
    found = []
    for title, key in (("difficulty", "difficulty"), ("kind", "kind"), ("source", "source"), ("month", "date")):
        cells: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for group in groups:
            name = group.get(key)
            if not isinstance(name, str) or not isinstance(group.get("verdicts"), list):
                continue
            cell = cells[name[:7] if key == "date" else name]
            cell[0] += sum(verdict == "accepted" for verdict in group["verdicts"])
            cell[1] += len(group["verdicts"])
        if cells:
            rows = [[name, total, passed / total] for name, (passed, total) in sorted(cells.items()) if total]
            found.append({"title": f"Rollouts by {title}", "columns": [title, "rollouts", "passed"], "rows": rows})
    lists = [group["verdicts"] for group in groups if isinstance(group.get("verdicts"), list)]
    verdicts = Counter(str(verdict) for given in lists for verdict in given)
    dropped = Counter(str(group.get("dropped") or "trained on") for group in groups)
    for title, counts in (("Verdicts", verdicts), ("Groups", dropped)):
        if counts:
            rows = [[name, count, count / counts.total()] for name, count in counts.most_common()]
            found.append({"title": title, "columns": [title.lower(), "count", "share"], "rows": rows})
    return found


def rollout(record: dict[str, Any]) -> dict[str, Any]:
    """One rollout as the page shows it: texts cut in their middle, the program as coloured pieces."""
    given = record.get("verdict")
    verdict: dict[str, Any] = given if isinstance(given, dict) else {}
    code = record.get("code")
    return {
        "from": str(record.get("from", "training")),
        "problem": str(record.get("problem_id", "")),
        "status": str(record.get("status", "")),
        "difficulty": str(record.get("difficulty") or "-"),
        "score": record.get("score"),
        "length": record.get("length"),
        "version": _version(record.get("versions")),
        "finish": record.get("finish_reason"),
        "graded": graded if isinstance(graded := record.get("graded"), list) else [],
        "sample": record.get("sample"),
        "passed": verdict.get("passed"),
        "total": verdict.get("total"),
        "failed": verdict.get("failed_test"),
        "message": str(verdict.get("message") or ""),
        "test": record.get("failing_test"),
        "prompt": cut(str(record.get("prompt", ""))),
        "answer": cut(str(record.get("completion", ""))),
        "code": tokens(code[:MAX_TEXT]) if isinstance(code, str) else None,
    }


def samples(folder: Path, most: int, damaged: Counter[str]) -> Rows:
    """Judged samples of evaluations as the page shows them: of every problem the first, then the second, and so on.

    Answers of 40k tokens would not fit into memory together, so the files are read line by line, those that are
    shown a second time.
    """
    places: list[tuple[int, str, str, int]] = []
    for path in sorted(folder.glob("*.jsonl")):
        if path.name.endswith(_OF_PROBLEMS):
            continue
        with path.open("rb") as stream:
            position = 0
            for line in stream:
                row = _object(line, path, damaged)
                if row and row.get("status") is not None and isinstance(row.get("index"), int):
                    places.append((row["index"], path.name, str(row.get("problem")), position))
                position += len(line)
    shown = []
    known: dict[str, dict[str, Any]] = {}
    for index, name, problem, position in sorted(places)[: max(most, 0)]:
        told = name.removesuffix(".jsonl").removesuffix(".partial")
        if told not in known:
            known[told] = {str(row.get("id")): row for row in read(folder / f"{told}{_OF_PROBLEMS}", damaged)}
        with (folder / name).open("rb") as stream:
            stream.seek(position)
            sample = json.loads(stream.readline())
        shown.append(rollout(_as_rollout(sample, told, index, known[told].get(problem, {}))))
    return shown


def _as_rollout(sample: dict[str, Any], told: str, index: int, about: dict[str, Any]) -> dict[str, Any]:
    """A sample in the form of a training rollout's record."""
    given = sample.get("verdicts")
    verdicts = {name: one for name, one in given.items() if isinstance(one, dict)} if isinstance(given, dict) else {}
    return sample | {
        "from": told,
        "problem_id": sample.get("problem"),
        "difficulty": about.get("difficulty"),
        "prompt": about.get("prompt", ""),
        "completion": sample.get("text", ""),
        "verdict": next(iter(verdicts.values()), {"message": sample.get("message")}),
        "graded": [[name, str(one.get("status"))] for name, one in verdicts.items()],
        "sample": index,
    }


def _version(spans: Any) -> Any:
    return spans[0][0] if isinstance(spans, list) and spans and isinstance(spans[0], Sequence) and spans[0] else None


def cut(text: str) -> str:
    """At most MAX_TEXT characters: the beginning and the end."""
    if len(text) <= MAX_TEXT:
        return text
    half = MAX_TEXT // 2
    return f"{text[:half]}\n\n[... {len(text) - 2 * half} characters ...]\n\n{text[-half:]}"
