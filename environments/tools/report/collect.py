"""What a run folder holds, as the page's data. Damaged lines are counted and left out."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from environments.common.run_folder import check
from environments.common.settings import ConfigError
from environments.tools.report.breakdown import evaluation, tables
from environments.tools.report.charts import axes, curves, held_out, left_out, refused
from environments.tools.report.code import tokens as coloured
from environments.tools.report.groups import by_group, by_problem
from environments.tools.report.story import overview, settings
from environments.tools.report.timeline import timeline
from environments.tools.report.token_data import (
    key_of,
    of_record,
    read_trained,
    split,
    tokenizer_folder,
    vocabulary,
)
from environments.tools.report.values import Row, Rows

_OF_PROBLEMS = ".problems.jsonl"
RECORDS = ("metrics", "environment", "environment_metrics", "evaluations")
MAX_TEXT = 20_000  # characters of an answer that the page keeps: its beginning and its end


def collect(run: Path, most_rollouts: int, now: float | None = None) -> dict[str, Any]:
    """The page's data: `summary`'s, with `late`'s.

    Args:
        now: seconds since 1970; None: the clock's.

    Raises:
        ConfigError: not a run folder.
    """
    damaged: Counter[str] = Counter()
    records = read_records(run, damaged)
    files = sorted((run / "rollouts").glob("*.jsonl"))
    shown = [rollout(record) for record in _newest((read(path, damaged) for path in reversed(files)), most_rollouts)]
    shown += samples(run / "evaluations", most_rollouts - len(shown), damaged)
    if not (shown or any(records.values())):
        raise ConfigError(
            f"report: {run}: none of metrics.jsonl, environment.jsonl, evaluations.jsonl, evaluations/ and rollouts/ "
            "is in it. Give a run's folder."
        )
    packed = {key_of(one["group"], one["index"]) for one in shown if one["packed"]}
    rest = late(run, shown, records["environment"], read_trained(run, read, packed, damaged))
    return summary(run, records, damaged, time.time() if now is None else now) | rest


def late(run: Path, shown: Rows, groups: Rows, trained: dict[str, Row], seen: int = 0) -> dict[str, Any]:
    """What the page reads when rollouts are looked at: {rollouts, groups, problems, tokens, vocabulary}.

    Args:
        shown: rollouts, the oldest first.
        groups: rows of environment.jsonl.
        trained: what the trainer says of their tokens.
        seen: the number of groups, from the first on, whose problems are known already.
    """
    trainer, environment = settings(run, "trainer"), settings(run, "environment")
    rollouts, tokens = split(shown, trained)
    return {
        "rollouts": rollouts,
        "groups": by_group(groups, {str(one["group"]) for one in shown}, trainer, environment),
        "problems": by_problem(groups[seen:]),
        "tokens": tokens,
        "vocabulary": vocabulary(tokens.values(), tokenizer_folder(environment, trainer)) if tokens else {},
    }


def read_records(run: Path, damaged: Counter[str]) -> dict[str, Rows]:
    """The rows of the run's records by file name: metrics, environment, environment_metrics, evaluations.

    Raises:
        ConfigError: not a run folder.
    """
    if not run.is_dir():
        raise ConfigError(f"report: {run}: no such folder. Give the folder that env.run_dir or --run_dir names.")
    check(run)
    return {name: read(run / f"{name}.jsonl", damaged) for name in RECORDS}


def summary(run: Path, records: dict[str, Rows], damaged: Counter[str], now: float) -> dict[str, Any]:
    """All of the page's data but the rollouts: {title, overview, axes, curves, evaluations, tables, timeline, ...}."""
    metrics, groups, evaluations = (records[name] for name in ("metrics", "environment", "evaluations"))
    notes = [] if metrics or not groups else ["No step was trained yet."]
    if unfinished := len(list((run / "evaluations").glob("*.partial.jsonl"))):
        notes.append(f"Evaluations without a score yet, since they are not finished: {unfinished}.")
    return {
        "title": run.resolve().name,
        "overview": overview(run, records, dict(damaged), now),
        "axes": axes(metrics),
        "curves": [
            *held_out(evaluations),
            *curves(metrics, records["environment_metrics"]),
            *left_out(groups),
            *refused(records["environment_metrics"]),
        ],
        "evaluations": [graded for record in evaluations if "pass_at_1" in record for graded in evaluation(record)],
        "tables": tables(groups),
        "timeline": timeline(metrics, groups),
        "evaluating": under_way(run),
        "damaged": dict(damaged),
        "notes": notes,
    }


def under_way(run: Path) -> int:
    """Judged samples of the evaluations that are not finished."""
    count = 0
    for path in (run / "evaluations").glob("*.partial.jsonl"):
        try:
            with path.open("rb") as stream:
                count += sum(1 for _ in stream)
        except OSError:  # it was finished meanwhile, and has another name
            continue
    return count


def read(path: Path, damaged: Counter[str]) -> Rows:
    """The objects of a JSONL file; what is not one is counted under the file's name."""
    if not path.is_file():
        return []
    with path.open("rb") as stream:
        return [row for line in stream if (row := parsed(line, path, damaged)) is not None]


def parsed(line: bytes, path: Path, damaged: Counter[str]) -> dict[str, Any] | None:
    """The object in a line of a file; None, and counted, where it is none."""
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
        "group": record.get("group_id"),
        "index": record.get("index"),
        "dropped": record.get("dropped"),
        "spans": record.get("versions"),
        "packed": of_record(record),
        "finish": record.get("finish_reason"),
        "graded": graded if isinstance(graded := record.get("graded"), list) else [],
        "sample": record.get("sample"),
        "passed": verdict.get("passed"),
        "total": verdict.get("total"),
        "failed": verdict.get("failed_test"),
        "message": str(verdict.get("message") or ""),
        "refused": _refused(verdict.get("attempts")),
        "test": record.get("failing_test"),
        "prompt": cut(str(record.get("prompt", ""))),
        "answer": cut(str(record.get("completion", ""))),
        "code": coloured(code[:MAX_TEXT]) if isinstance(code, str) else None,
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
                row = parsed(line, path, damaged)
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


def _refused(attempts: Any) -> str:
    """Refused system calls by kind, for a person; empty where there were none."""
    if not isinstance(attempts, dict):
        return ""
    return ", ".join(f"{str(kind).replace('_', ' ')} {count}" for kind, count in sorted(attempts.items()))


def _version(spans: Any) -> Any:
    return spans[0][0] if isinstance(spans, list) and spans and isinstance(spans[0], Sequence) and spans[0] else None


def cut(text: str) -> str:
    """At most MAX_TEXT characters: the beginning and the end."""
    if len(text) <= MAX_TEXT:
        return text
    half = MAX_TEXT // 2
    return f"{text[:half]}\n\n[... {len(text) - 2 * half} characters ...]\n\n{text[-half:]}"
