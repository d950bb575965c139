"""A source's files to a part: rows in the normal form, test sets in the store, a line for everything left out."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from environments.common.settings import ConfigError
from environments.dataset.deduplicate import hashed_inputs
from environments.dataset.drop_reasons import Dropped
from environments.dataset.readers import read_row
from environments.dataset.rows import Row
from environments.dataset.sources import Source, read_rows
from environments.livecode.problems.problem import Problem, ProblemError
from environments.livecode.problems.stored_tests import write_json
from verifier_app.judge.store import TestStore

KEPT_SOLUTIONS = 3
FORMAT = 4  # of a part: raised when its reader or its columns change


def make_part(source: Source, files: list[Path], out: Path, min_tests: int) -> dict[str, Any]:
    """Reads a source into OUT/parts/NAME.jsonl and OUT/tests, or finds that done, and returns its record.

    Raises:
        ConfigError: a file that cannot be read, a disk that is full; parts that were finished stay.
    """
    record_path = out / "parts" / f"{source.name}.json"
    key = {
        "format": FORMAT,
        "source": json.loads(json.dumps(asdict(source), default=_named)),
        "min_tests": min_tests,
        "files": [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files],
    }
    if record_path.is_file():
        record: dict[str, Any] = json.loads(record_path.read_text(encoding="utf-8"))
        if record["key"] == key:
            return record
    record_path.parent.mkdir(parents=True, exist_ok=True)
    try:
        record = _read(source, files, out, min_tests) | {"key": key}
        write_json(record_path, record)
    except OSError as error:
        raise ConfigError(
            f"data build: {error.filename or out}: {error.strerror}. Mend it and run the same command again: finished "
            "parts stay."
        ) from None
    return record


def _named(value: Any) -> str:
    """A reader of another package by its name, which is the same in every process; a path as it is."""
    return f"{value.__module__}.{value.__qualname__}" if callable(value) else str(value)


def _read(source: Source, files: list[Path], out: Path, min_tests: int) -> dict[str, Any]:
    store = TestStore(out / "tests")
    counts: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    part, left_out = out / "parts" / f"{source.name}.jsonl.part", out / "parts" / f"{source.name}.dropped.jsonl"
    number = 0
    with part.open("w", encoding="utf-8") as kept, left_out.open("w", encoding="utf-8") as drops:
        for path in files:
            for line, raw in read_rows(path):
                number += 1
                try:
                    if isinstance(raw, Dropped):
                        raise raw
                    row = read_row(source.reader, raw)
                    del raw  # it may hold 200 MB, and its tests as much
                    if not _inside(source, row.date):
                        counts["outside_window"] += 1
                        continue
                    counts["read"] += 1
                    kept.write(json.dumps(_normal(source, row, number, store, min_tests)) + "\n")
                    counts["kept"] += 1
                except Dropped as error:
                    dropped[error.reason] += 1
                    entry = {"file": path.name, "line": line, "reason": error.reason, "detail": error.detail[:300]}
                    drops.write(json.dumps(entry, ensure_ascii=True) + "\n")
    part.replace(out / "parts" / f"{source.name}.jsonl")
    return {"rows": number, **{name: counts[name] for name in ("outside_window", "read", "kept")},
            "dropped": dict(sorted(dropped.items()))}  # fmt: skip


def _inside(source: Source, date: str | None) -> bool:
    if source.after is None and source.before is None:
        return True
    if not date:
        return False
    return (source.after or "") <= date and (source.before is None or date < source.before)


def _normal(source: Source, row: Row, number: int, store: TestStore, min_tests: int) -> dict[str, Any]:
    if len(row.tests) < min_tests and source.split == "train":
        raise Dropped("few_tests", f"{len(row.tests)} of at least {min_tests}")
    fields = {
        "id": row.id or f"{source.name}/{number:06d}",
        "source": source.name,
        "kind": "stdin" if row.fn_name is None else "function",
        "fn_name": row.fn_name,
        "statement": row.statement,
        "starter_code": row.starter_code,
        "difficulty": row.difficulty,
        "date": row.date,
        "platform": row.platform,
    }
    more = {"time_limit_s": row.time_limit_s, "memory_limit_mb": row.memory_limit_mb, "checker": row.checker}
    try:
        Problem.model_validate(fields | more | {"tests": row.tests})
        for value in fields.values():
            (value or "").encode()  # parquet holds no lone surrogates
        reference = store.put(row.tests)
        readings = [store.put(tests)["sha256"] for tests in row.readings]
    except (ValidationError, ProblemError, UnicodeEncodeError) as error:
        raise Dropped("invalid", str(error).replace("\n", " ")) from None
    return (
        fields
        | more
        | {
            "tests_sha256": reference["sha256"],
            "tests_count": reference["count"],
            "tests_bytes": store.path(reference["sha256"]).stat().st_size,
            "inputs": sorted(hashed_inputs(test["input"] for test in row.tests)),
            "readings": [[sha, store.path(sha).stat().st_size] for sha in readings],
            "solutions": list(row.solutions[:KEPT_SOLUTIONS]),
        }
    )


def rows_of(out: Path, source: Source) -> list[dict[str, Any]]:
    """The rows of a finished part."""
    with (out / "parts" / f"{source.name}.jsonl").open(encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]
