"""What a run folder holds, as the page's data. Damaged lines are counted and left out."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec import UNSET

from environments.common.record_lines import tolerant
from environments.common.settings import ConfigError
from environments.common.shards import record_files
from environments.livecode.evaluation.samples import Sample
from environments.livecode.records.schema import GroupRecord, RolloutRecord, VerdictRecord
from environments.tools.report.breakdown import evaluation, tables
from environments.tools.report.charts import axes, curves, held_out, left_out, refused
from environments.tools.report.code import tokens as coloured
from environments.tools.report.groups import by_group, by_problem
from environments.tools.report.records import RunRecords, parsed, read, read_records
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
MAX_TEXT = 20_000  # characters of an answer that the page keeps: its beginning and its end


def collect(run: Path, most_rollouts: int, now: float | None = None) -> Row:
    """The page's data: `summary`'s, with `late`'s.

    Args:
        now: seconds since 1970; None: the clock's.

    Raises:
        ConfigError: not a run folder.
    """
    damaged: Counter[str] = Counter()
    records = read_records(run, damaged)
    files = record_files(run, "rollouts")
    shown = shown_rollouts(_newest((read(path, damaged) for path in reversed(files)), most_rollouts))
    shown += samples(run / "evaluations", most_rollouts - len(shown), damaged)
    if not (shown or records):
        raise ConfigError(
            f"report: {run}: none of metrics.jsonl, environment.jsonl, evaluations.jsonl, evaluations/ and rollouts/ "
            "is in it. Give a run's folder."
        )
    packed = {key_of(one["group"], one["index"]) for one in shown if one["packed"]}
    rest = late(run, shown, records.groups, read_trained(run, read, packed, damaged))
    return summary(run, records, damaged, time.time() if now is None else now) | rest


def late(run: Path, shown: Rows, groups: Sequence[GroupRecord], trained: dict[str, Row], seen: int = 0) -> Row:
    """What the page reads when rollouts are looked at: {rollouts, groups, problems, tokens, vocabulary}.

    Args:
        shown: rollouts, the oldest first.
        groups: those of environment.jsonl.
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


def summary(run: Path, records: RunRecords, damaged: Counter[str], now: float) -> Row:
    """All of the page's data but the rollouts: {title, overview, axes, curves, evaluations, tables, timeline, ...}."""
    metrics, groups, evaluations = records.metrics, records.groups, records.evaluations
    notes = [] if metrics or not groups else ["No step was trained yet."]
    if unfinished := len(list((run / "evaluations").glob("*.partial.jsonl"))):
        notes.append(f"Evaluations without a score yet, since they are not finished: {unfinished}.")
    return {
        "title": run.resolve().name,
        "overview": overview(run, records, dict(damaged), now),
        "axes": axes(metrics),
        "curves": [
            *held_out(evaluations),
            *curves(metrics, records.environment_metrics),
            *left_out(groups),
            *refused(records.environment_metrics),
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


def _newest(files: Iterable[Rows], most: int) -> Rows:
    kept: Rows = []
    for rows in files:
        if len(kept) >= most:
            break
        kept = rows[-(most - len(kept)) :] + kept
    return kept


def rollout(record: RolloutRecord, origin: str = "training", graded: Mapping[str, VerdictRecord] | None = None) -> Row:
    """One rollout as the page shows it: texts cut in their middle, the program as coloured pieces.

    Args:
        origin: training, or the evaluation that it is a sample of.
        graded: of a sample, its verdicts by profile.
    """
    verdict = record.verdict or VerdictRecord()
    return {
        "from": origin,
        "problem": record.problem_id,
        "status": record.status,
        "difficulty": record.difficulty or "-",
        "score": record.score,
        "length": record.length,
        "version": record.versions[0][0] if record.versions else None,
        "group": record.group_id,
        "index": record.index,
        "dropped": record.dropped,
        "spans": record.versions,
        "packed": of_record(record),
        "finish": record.finish_reason,
        "graded": [[name, one.status] for name, one in (graded or {}).items()],
        "sample": None if graded is None else record.index,
        "passed": None if verdict.passed is UNSET else verdict.passed,
        "total": None if verdict.total is UNSET else verdict.total,
        "failed": None if verdict.failed_test is UNSET else verdict.failed_test,
        "message": verdict.said or "",
        "refused": _refused(verdict.attempts or {}),
        "test": msgspec.to_builtins(record.failing_test) if record.failing_test else None,
        "prompt": cut(record.prompt),
        "answer": cut(record.completion),
        "code": None if record.code is None else coloured(record.code[:MAX_TEXT]),
    }


def shown_rollouts(rows: Rows) -> Rows:
    """Rows of a file of rollouts/ as the page shows them; a field of another type counts as missing."""
    return [rollout(one) for row in rows if (one := tolerant(row, RolloutRecord)) is not None]


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
                sample = tolerant(row, Sample) if row else None
                if sample is not None and sample.status is not None:
                    places.append((sample.index, path.name, sample.problem, position))
                position += len(line)
    shown = []
    known: dict[str, dict[str, Row]] = {}
    for _, name, problem, position in sorted(places)[: max(most, 0)]:
        origin = name.removesuffix(".jsonl").removesuffix(".partial")
        if origin not in known:
            known[origin] = {str(row.get("id")): row for row in read(folder / f"{origin}{_OF_PROBLEMS}", damaged)}
        with (folder / name).open("rb") as stream:
            stream.seek(position)
            sample = tolerant(json.loads(stream.readline()), Sample)
        assert sample is not None  # as it was above
        record = tolerant(known[origin].get(problem, {}), RolloutRecord) or RolloutRecord()
        shown.append(rollout(_as_rollout(sample, record), origin, sample.verdicts))
    return shown


def _as_rollout(sample: Sample, about: RolloutRecord) -> RolloutRecord:
    """A sample as a training rollout's record. about: difficulty and prompt of its problem."""
    return msgspec.structs.replace(
        about,
        problem_id=sample.problem,
        index=sample.index,
        status=sample.status or "",
        verdict=next(iter(sample.verdicts.values()), VerdictRecord(message=sample.message)),
        failing_test=sample.failing_test,
        finish_reason=sample.finish_reason,
        length=sample.length,
        completion=sample.text or "",
        code=sample.code or None,
    )


def _refused(attempts: Mapping[str, int]) -> str:
    """Refused system calls by kind, for a person; empty where there were none."""
    return ", ".join(f"{kind.replace('_', ' ')} {count}" for kind, count in sorted(attempts.items()))


def cut(text: str) -> str:
    """At most MAX_TEXT characters: the beginning and the end."""
    if len(text) <= MAX_TEXT:
        return text
    half = MAX_TEXT // 2
    return f"{text[:half]}\n\n[... {len(text) - 2 * half} characters ...]\n\n{text[-half:]}"
