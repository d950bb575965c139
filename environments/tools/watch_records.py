"""A run's records as they grow: each file is read on from where the last look ended, and nothing is written."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

from environments.common.run_folder import check
from environments.common.settings import ConfigError
from environments.common.shards import record_files
from environments.tools.report.collect import late, samples, shown_rollouts, summary
from environments.tools.report.records import FILES, RunRecords, files, parsed, read
from environments.tools.report.state import State, alive, state
from environments.tools.report.story import settings
from environments.tools.report.token_data import FOLDER, forget_tokens, key_of, split, trained
from environments.tools.report.values import Row, Rows


class Tail:
    """The rows of a JSONL file that is added to."""

    def __init__(self, path: Path) -> None:
        self.path, self._read = path, 0

    def more(self, damaged: Counter[str]) -> Rows:
        """The rows since the last call; a line that is not written to its end waits for the next one.

        A file that became shorter was rewritten, and is read again from its beginning.
        """
        try:
            size = self.path.stat().st_size
            if size < self._read:
                self._read = 0
            if size == self._read:
                return []
            with self.path.open("rb") as stream:
                stream.seek(self._read)
                data = stream.read()
        except OSError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        return [row for line in whole.splitlines() if (row := parsed(line, self.path, damaged)) is not None]


class Watched:
    """All that the page shows of one run, kept up to date by `look`.

    Args:
        most_rollouts: how many are kept, the newest ones.

    Raises:
        ConfigError: no folder, or one of another version.
    """

    def __init__(self, run: Path, most_rollouts: int = 2000) -> None:
        if not run.is_dir():
            raise ConfigError(f"watch: {run}: no such folder. Give the folder that --run_dir names.")
        check(run)
        self.run, self.most = run, most_rollouts
        self.damaged: Counter[str] = Counter()
        self.records = RunRecords()
        self.rollouts: list[Row] = []
        self.forgotten = 0
        """Rollouts that were kept once."""
        self.trained: dict[str, Row] = {}
        """What the trainer says of the tokens of rollouts that are kept."""
        self._came: dict[str, int] = {}
        self._told = 0  # of `_came`: how many records of the trainer there were until this one
        self._trained_seen: dict[Path, int] = {}
        self._tails: dict[Path, Tail] = {}
        self._texts: dict[Path, Tail] = {}
        self._processes: tuple[list[str], str] | None = None

    def look(self) -> bool:
        """Reads what is new; whether there is something, a process that began or ended included."""
        found = False
        for name, path in [(record, path) for record in FILES for path in files(self.run, record)]:
            rows = self._tails.setdefault(path, Tail(path)).more(self.damaged)
            self.records.add(name, rows)
            found = found or bool(rows)
        for path in record_files(self.run, "rollouts"):
            rows = self._texts.setdefault(path, Tail(path)).more(self.damaged)
            self.rollouts += shown_rollouts(rows[-self.most :]) if self.most else []
            found = found or bool(rows)
        if (over := len(self.rollouts) - self.most) > 0:
            del self.rollouts[:over]
            self.forgotten += over
        forget_tokens(self.rollouts)
        self._look_at_trained()
        now = (alive(self.run), self.state().kind)
        found = found or now != self._processes
        self._processes = now
        return found

    def _look_at_trained(self) -> None:
        """Reads the trainer's files that are new: each is written in one piece, and again when its step is."""
        kept = {key_of(one["group"], one["index"]) for one in self.rollouts if one["packed"]}
        for gone in self.trained.keys() - kept:
            del self.trained[gone], self._came[gone]
        for path in sorted((self.run / FOLDER).glob("*.jsonl")) if kept else ():
            try:
                written = path.stat().st_mtime_ns
            except OSError:
                continue
            if self._trained_seen.get(path) == written:
                continue
            self._trained_seen[path] = written
            for row in read(path, self.damaged):
                key = key_of(row.get("group_id"), row.get("index"))
                if key in kept and (one := trained(row)):
                    self._told += 1
                    self.trained[key], self._came[key] = one, self._told

    def state(self) -> State:
        """The run's state by the rows that were read."""
        trainer, evaluated = settings(self.run, "trainer"), bool(self.records.evaluations)
        return state(self.run, self.records.metrics, trainer, evaluated, time.time())

    @property
    def position(self) -> tuple[int, int, int]:
        """How many rollouts, groups and trained rollouts were seen: what a reader has who got everything."""
        return self.forgotten + len(self.rollouts), len(self.records.groups), self._told

    def page(self) -> Row:
        """The whole page's data."""
        shown = list(self.rollouts)
        shown += samples(self.run / "evaluations", self.most - len(shown), Counter())
        return self._summary() | late(self.run, shown, self.records.groups, self.trained)

    def since(self, rollouts: int, groups: int, trained: int) -> Row:
        """What a page needs that has seen so many rollouts, groups and trained ones: `page`'s, with the newer alone."""
        newer = self.rollouts[max(rollouts - self.forgotten, 0) :]
        came = {key for key, number in self._came.items() if number > trained}
        again = [one for one in self.rollouts if one["packed"] and key_of(one["group"], one["index"]) in came]
        found = late(self.run, newer, self.records.groups, self.trained, seen=groups)
        return self._summary() | found | {"tokens": split(again, self.trained)[1] | found["tokens"]}

    def _summary(self) -> Row:
        return summary(self.run, self.records, self.damaged, time.time())
