"""Several environments on one API server, each a shard: its part of the problems and its share of every batch.

The places of all batches are dealt out in turn: place p of the run belongs to shard p modulo their number. So the
shares of a batch add up to it exactly, whatever the number, and how many places a shard has up to any step needs no
message. Each shard keeps the staleness bound for its own places alone, and the API server fills a batch by them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

FOLDER = "shards"
"""In the run's folder: a folder for each shard."""

_WRITTEN = re.compile(r"(\d+)/(\d+)")
_NAMED = re.compile(r"(\d+)-of-(\d+)")


@dataclass(frozen=True)
class Shard:
    """Shard `index` of `count`, from 0 on; shard 0 of 1 is a run with one environment."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.index}-of-{self.count}"

    def places(self, groups: int) -> int:
        """How many of the first `groups` places of the run are this shard's."""
        return max(0, -(-(groups - self.index) // self.count))


WHOLE = Shard(0, 1)


def read(text: str) -> Shard:
    """A shard as `0/2`. Raises ValueError with the fix."""
    found = _WRITTEN.fullmatch(text)
    shard = Shard(int(found[1]), int(found[2])) if found else None
    if shard is None or shard.index >= shard.count:
        raise ValueError("give INDEX/COUNT with an index from 0 on, such as 0/2 and 1/2 for two environments")
    return shard


def _written(text: str) -> str:
    return str(read(text))


ShardText = Annotated[str, AfterValidator(_written)]
"""An option that names a shard: INDEX/COUNT."""


def folders(run: Path) -> list[Path]:
    """Where the environments of a run keep their records: a folder for each shard, the run's own for one without."""
    found = [(int(named[2]), int(named[1]), path) for path in _parts(run) if (named := _NAMED.fullmatch(path.name))]
    return [path for _, _, path in sorted(found)] or [run]


def record_files(run: Path, folder: str) -> list[Path]:
    """The files of a folder that each environment of a run has, in the order of their names."""
    return sorted((path for own in folders(run) for path in (own / folder).glob("*.jsonl")), key=lambda path: path.name)


def others(run: Path, shard: str | None) -> list[str]:
    """Folders of this run that do not belong to a run of as many shards as this option names; None: of none."""
    own = f"-of-{read(shard).count}" if shard else "/"
    return [path.name for path in folders(run) if path != run and not path.name.endswith(own)]


def _parts(run: Path) -> list[Path]:
    return [path for path in (run / FOLDER).glob("*-of-*") if path.is_dir()]
