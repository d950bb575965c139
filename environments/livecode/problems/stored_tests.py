"""Built problems on disk: rows in problems.parquet, test sets beside them under their hash, read when needed."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast, overload

import pyarrow as pa
import pyarrow.parquet as pq

from environments.livecode.problems.problem import LATER, Problem, ProblemError, TestCase
from verifier_app.judge.protocol import JudgeError
from verifier_app.judge.store import TestStore

TESTS = "tests"  # the folder of test sets, beside the folders of the splits
KEPT_BYTES = 256 << 20  # test sets kept in memory, over all problems
COLUMNS = ("id", "source", "kind", "fn_name", "statement", "starter_code", "difficulty", "date", "platform")
SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.string()) for name in COLUMNS),
        ("tests_sha256", pa.string()),
        ("tests_count", pa.int32()),
        ("tests_bytes", pa.int64()),
        ("time_limit_s", pa.float64()),
        ("memory_limit_mb", pa.float64()),
        ("checker", pa.string()),  # JSON
        ("pass_rate", pa.float64()),
    ]
)
_kept: OrderedDict[tuple[str, str], tuple[list[dict[str, str]], int]] = OrderedDict()
_lock = threading.Lock()


class StoredTests(Sequence[TestCase]):
    """A test set in a store, read when it is looked at. Equal sets share what is in memory."""

    def __init__(self, folder: Path, sha256: str, total: int, size: int) -> None:
        self.folder, self.sha256, self.total, self.size = folder, sha256, total, size
        self._input_sizes: list[int] | None = None

    @property
    def path(self) -> Path:
        """The set's file."""
        return TestStore(self.folder).path(self.sha256)

    def plain(self) -> list[dict[str, str]]:
        """The tests in the judge's form. ProblemError for a file that is missing or damaged."""
        key = (str(self.folder), self.sha256)
        with _lock:
            if key in _kept:
                _kept.move_to_end(key)
                return _kept[key][0]
        try:
            found = TestStore(self.folder).get(self.sha256, self.total)
        except JudgeError as error:
            raise ProblemError(f"{self.path}: {error}. Run `atropos data build` again.") from None
        tests = [{"input": i, "output": o} for i, o in zip(found.inputs, found.outputs, strict=True)]
        with _lock:
            _kept[key] = (tests, self.size)
            while len(_kept) > 1 and sum(size for _, size in _kept.values()) > KEPT_BYTES:
                _kept.popitem(last=False)
        return tests

    def input_sizes(self) -> list[int]:
        """Length of every input; kept, since the order of tests asks for it with every rollout."""
        if self._input_sizes is None:
            self._input_sizes = [len(test["input"]) for test in self.plain()]
        return self._input_sizes

    def read(self) -> bytes:
        """The canonical bytes. ProblemError for a file that cannot be read."""
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise ProblemError(f"{self.path}: {error.strerror}. Run `atropos data build` again.") from None

    def __len__(self) -> int:
        return self.total

    @overload
    def __getitem__(self, index: int) -> TestCase: ...
    @overload
    def __getitem__(self, index: slice) -> list[TestCase]: ...
    def __getitem__(self, index: int | slice) -> TestCase | list[TestCase]:
        if isinstance(index, slice):
            return [TestCase(**test) for test in self.plain()[index]]
        return TestCase(**self.plain()[index])

    def __iter__(self) -> Iterator[TestCase]:
        return (TestCase(**test) for test in self.plain())


def is_built(path: Path) -> bool:
    """Whether this is a split that `atropos data build` made."""
    return (path / "problems.parquet").is_file() or path.suffix == ".parquet"


def load_built(path: Path) -> list[Problem]:
    """The problems of a built split (its folder, or its problems.parquet), test sets left on disk.

    Raises:
        ProblemError: another file's columns, an id that occurs twice.
    """
    file = path / "problems.parquet" if path.is_dir() else path
    try:
        table = pq.read_table(file)
    except (OSError, pa.ArrowException) as error:
        raise ProblemError(f"{file}: cannot be read ({error}). Run `atropos data build` again.") from None
    there = set(table.schema.names)
    if table.schema.names != [name for name in SCHEMA.names if name in there or name not in LATER]:
        raise ProblemError(f"{file}: its columns are {', '.join(table.schema.names)}; need {', '.join(SCHEMA.names)}")
    folder = file.parent.parent / TESTS
    problems, seen = [], set()
    for row in table.to_pylist():
        tests = StoredTests(folder, row.pop("tests_sha256"), row.pop("tests_count"), row.pop("tests_bytes"))
        if row["id"] in seen:
            raise ProblemError(f"{file}: problem {row['id']}: the id occurs twice. Run `atropos data build` again.")
        seen.add(row["id"])
        row["checker"] = json.loads(row.get("checker") or "null")
        # The builder validated the row together with its tests, which would have to be read for that.
        problems.append(Problem.model_construct(**row, tests=cast(list[TestCase], tests)))
    return problems


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Rows of SCHEMA's columns; equal rows give equal bytes. In place only when it is whole."""
    waiting, part = [], path.with_suffix(".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(part, SCHEMA, compression="zstd") as writer:
        for row in rows:
            checker = row.get("checker")
            packed = {"checker": None if checker is None else json.dumps(checker, sort_keys=True)}
            stated = {name: row.get(name) for name in LATER}
            waiting.append({name: (row | stated | packed)[name] for name in SCHEMA.names})
            if len(waiting) == 1024:
                writer.write_table(pa.Table.from_pylist(waiting, SCHEMA))
                waiting = []
        if waiting:
            writer.write_table(pa.Table.from_pylist(waiting, SCHEMA))
    part.replace(path)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a built split, as `write_rows` takes them."""
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return [row | {"checker": json.loads(row.get("checker") or "null")} for row in rows]


def write_json(path: Path, value: Any) -> None:
    """A JSON file with sorted keys, in place only when it is whole."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)
