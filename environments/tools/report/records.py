"""The records of a run as they are read for the report; what is damaged is counted and left out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from environments.common.record_lines import tolerant
from environments.common.run_folder import check
from environments.common.settings import ConfigError
from environments.common.shards import folders
from environments.livecode.records.schema import GroupRecord
from environments.tools.report.shards import OF_ENVIRONMENTS, merged
from environments.tools.report.values import Row, Rows

FILES = ("metrics", "environment", "environment_metrics", "evaluations")
"""The files, without their ending."""


@dataclass
class RunRecords:
    """What the run's processes have recorded so far: metrics.jsonl and so on; `groups` is environment.jsonl."""

    metrics: Rows = field(default_factory=list)
    groups: list[GroupRecord] = field(default_factory=list)
    environment_metrics: Rows = field(default_factory=list)
    evaluations: Rows = field(default_factory=list)
    _by_shard: Rows = field(default_factory=list, repr=False)

    def add(self, name: str, rows: Iterable[Row]) -> None:
        """Takes further rows of the file with this name."""
        if name == "environment_metrics":
            self._by_shard += rows
            self.environment_metrics = merged(self._by_shard)
        elif name == "environment":
            self.groups += [one for row in rows if (one := tolerant(row, GroupRecord)) is not None]
        else:
            found: Rows = getattr(self, name)
            found += rows

    def __bool__(self) -> bool:
        """Whether any file holds a record."""
        return bool(self.metrics or self.groups or self.environment_metrics or self.evaluations)


def read_records(run: Path, damaged: Counter[str]) -> RunRecords:
    """The run's records.

    Raises:
        ConfigError: not a run folder.
    """
    if not run.is_dir():
        raise ConfigError(f"report: {run}: no such folder. Give the folder that env.run_dir or --run_dir names.")
    check(run)
    records = RunRecords()
    for name in FILES:
        for path in files(run, name):
            records.add(name, read(path, damaged))
    if len(folders(run)) > 1:
        records.groups.sort(key=lambda group: group.time or 0.0)
    return records


def files(run: Path, name: str) -> list[Path]:
    """Where a record is: in the run's folder, and what each environment writes in each one's own."""
    return [folder / f"{name}.jsonl" for folder in (folders(run) if name in OF_ENVIRONMENTS else [run])]


def read(path: Path, damaged: Counter[str]) -> Rows:
    """The objects of a JSONL file; what is not one is counted under the file's name."""
    if not path.is_file():
        return []
    with path.open("rb") as stream:
        return [row for line in stream if (row := parsed(line, path, damaged)) is not None]


def parsed(line: bytes, path: Path, damaged: Counter[str]) -> Row | None:
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
