"""`atropos audit`: what the journals of a run prove about its groups.

Every group that an environment made is trained on once in the lineage of the last weights, or left out with a reason,
or still on its way (outbox, API server); and every reward is that of a verdict. The sources are written by different
processes: environment.jsonl and progress.db by the environment, api.journal by the API server, trained.jsonl by the
trainer.
"""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from environments.api_server.journal import JournalError
from environments.api_server.store import REMEMBERED_IDS, Store
from environments.common.record_lines import RecordError, convert, decode
from environments.common.rewards import FAIL, reward
from environments.common.run_folder import check
from environments.common.settings import ConfigError
from environments.common.shards import folders as folders_of
from environments.common.trained_records import TrainedStep
from environments.livecode.records.schema import GroupRecord
from environments.livecode.recovery import progress_file
from environments.tools.report.records import read

Row = dict[str, Any]
T = TypeVar("T", bound=msgspec.Struct)
_SHOWN = 20


@dataclass
class Audit:
    """What was found. `violations` empty: proved."""

    counts: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    """Where lines about a group or a step stand."""

    def lines(self) -> list[str]:
        """For a terminal: counts, notes, then the verdict."""
        shown = [f"{count:8d}  {name}" for name, count in self.counts.items()]
        shown += [f"note: {note}" for note in self.notes]
        if not self.violations and not self.counts["groups made"]:
            return [*shown, "nothing to prove: no group was made for a trainer in this run"]
        if not self.violations:
            return [*shown, "proved: each group once or counted, each reward a verdict's"]
        more = len(self.violations) - _SHOWN
        for one in self.violations[:_SHOWN]:
            shown += [f"VIOLATION: {one}", f"  see: {self.command(one)}"]
        return shown + ([f"... and {more} more"] if more > 0 else [])

    def command(self, violation: str) -> str:
        """What shows the records that a violation is about: those of its group, else the steps' own."""
        kind, _, rest = violation.partition(" ")
        if kind == "group":
            return shlex.join(["grep", "-F", rest.partition(":")[0], *map(str, self.files)])
        return shlex.join(["tail", "-n", "5", *map(str, self.files)])


def audit(run: Path, environments: Sequence[Path] = (), journal: Path | None = None) -> Audit:
    """Compares what each process of a run has written.

    Args:
        run: the trainer's run folder.
        environments: the environments' run folders; none: `run`. Of one with shards each shard's is taken.
        journal: the API server's; None: run/api.journal where it is.

    Raises:
        ConfigError: a folder or journal that is missing, of another version, or unreadable.
    """
    found = Audit()
    damaged: Counter[str] = Counter()
    given = list(environments) or [run]
    for folder in {run, *given}:
        if not folder.is_dir():
            raise ConfigError(f"audit: {folder}: no such folder. Give the folder that --run_dir or env.run_dir names.")
        check(folder)
    folders = [own for folder in given for own in folders_of(folder)]
    if not any((folder / "environment.jsonl").is_file() for folder in folders):
        raise ConfigError(f"audit: {folders[0]}: no environment.jsonl. Name the environment's folder: --environment.")
    sent, known = _generated(folders, found, damaged)
    for folder in dict.fromkeys((*given, *folders)):
        if evaluations := len(list(read(folder / "evaluations.jsonl", damaged))):
            found.counts[f"evaluations of {folder.name}, which have no groups"] = evaluations
    outbox = {group_id for folder in folders for group_id in _outbox(folder)}
    steps = _lineage(run, found, damaged)
    beside = [run / "trained.jsonl", *(folder / "environment.jsonl" for folder in folders)]
    found.files = [path for path in beside if path.is_file()]
    store = _store(journal or run / "api.journal", required=journal is not None)
    if store is None:
        found.notes.append("no API journal: what is neither trained nor in an outbox may wait there")
    fates = _fates(steps, found)
    _follow(sent, known, outbox, fates, store, found)
    if store is not None:
        _compare(steps, store, _durable_step(run), found)
    for name, count in damaged.items():
        found.counts[f"damaged lines of {name}, left out"] = count
    return found


def _generated(folders: Sequence[Path], found: Audit, damaged: Counter[str]) -> tuple[set[str], set[str]]:
    """Ids of the groups that were sent, and of all groups; every score is compared with its verdict."""
    sent: dict[str, list[float]] = {}
    dropped: dict[str, str] = {}
    written: set[str] = set()
    for folder in folders:
        shuffled = _shuffled(folder)
        begun = _begun(folder)  # read first: what is under way there may have ended, and be recorded, meanwhile
        recorded: dict[str, bool] = {}
        rows = _records(folder / "environment.jsonl", GroupRecord, damaged)
        names = {row.group_id for row in rows}
        for row in rows + [row for row in (begun.unwritten if begun else ()) if row.group_id not in names]:
            name, scores = row.group_id, row.scores
            recorded[name] = recorded.get(name, False) or row.sent
            if scores:
                _check_scores(row, shuffled, found)
            if row.sent:
                if sent.setdefault(name, scores) != scores:
                    found.violations.append(f"group {name}: recorded with scores {sent[name]} and with {scores}")
            elif row.written:
                written.add(name)
            elif not row.dropped:
                found.violations.append(f"group {name}: neither sent nor dropped with a reason")
            else:
                dropped.setdefault(name, row.dropped)
        if begun is not None:
            _settled(folder, begun, recorded, found)
    found.violations += [
        f"group {name}: sent, and dropped as {dropped[name]}" for name in sorted(sent.keys() & dropped)
    ]
    found.counts["groups made"] = len(sent.keys() | dropped.keys() | written)
    if written:
        found.counts["groups written to a file by process"] = len(written)
    found.counts["groups sent"] = len(sent)
    for reason, count in sorted(Counter(dropped.values()).items()):
        found.counts[f"dropped by the environment: {reason}"] = count
    return set(sent), sent.keys() | dropped.keys()


@dataclass
class BegunGroups:
    """What progress.db says: groups under way, how many were sent, which ended since its snapshot, and the records that
    environment.jsonl may lack."""

    under_way: set[str]
    sent: int
    ended: list[str] = field(default_factory=list)
    unwritten: list[GroupRecord] = field(default_factory=list)


def _records(path: Path, kind: type[T], damaged: Counter[str]) -> list[T]:
    """A file's records; a line that is none is counted."""
    found = []
    for row in read(path, damaged):
        try:
            found.append(convert(row, kind))
        except RecordError:
            damaged[path.name] += 1
    return found


def _begun(folder: Path) -> BegunGroups | None:
    with progress_file.reading(folder) as kept:
        snapshot = kept.snapshot() if kept is not None else None
        if kept is None or snapshot is None:
            return None
        try:
            begun = BegunGroups({group_id for group_id, _, _ in snapshot["open"]}, snapshot["sent"])
            for _, event in kept.events():
                _follow_event(begun, json.loads(event))
            begun.unwritten = [decode(line, GroupRecord) for _, line in kept.lines()]
        except (ValueError, KeyError, TypeError) as error:
            path = folder / progress_file.NAME
            raise ConfigError(f"audit: {path}: cannot be read ({type(error).__name__}: {error}). Restore it.") from None
        return begun


def _follow_event(begun: BegunGroups, event: Row) -> None:
    if "begin" in event:
        begun.under_way.add(event["begin"])
    elif "named" not in event:
        name = event.get("end") or event["cut_off"]
        begun.under_way.remove(name)
        begun.ended.append(name)
        begun.sent += event.get("sent", False)


def _settled(folder: Path, begun: BegunGroups, recorded: dict[str, bool], found: Audit) -> None:
    """Each group that began is recorded with what became of it, or under way."""
    found.counts["groups under way"] += len(begun.under_way - recorded.keys())
    found.violations += [
        f"group {name}: it ended, and {folder}/environment.jsonl does not have it"
        for name in begun.ended
        if name not in recorded
    ]
    sent = sum(was_sent for name, was_sent in recorded.items() if name not in begun.under_way)
    if sent < begun.sent:
        found.violations.append(
            f"{folder}: progress.db counts {begun.sent} groups that were sent, environment.jsonl has {sent}"
        )


def _check_scores(row: GroupRecord, shuffled: bool, found: Audit) -> None:
    name, statuses, scores = row.group_id, row.verdicts, row.scores
    overlong = row.overlong or [False] * len(statuses)
    if len(statuses) != len(scores):
        found.violations.append(f"group {name}: {len(scores)} scores, {len(statuses)} verdicts")
        return
    wanted: list[float] = []
    for status, long in zip(statuses, overlong, strict=True):
        try:
            given = FAIL if status == "overlong" and long else reward({"status": status})
        except ValueError:
            given = None
        wanted.append(float("nan") if given is None else given)
    same = sorted(wanted) == sorted(scores) if shuffled else wanted == scores
    found.counts["rollouts with a score"] += len(scores)
    if not same:
        found.violations.append(f"group {name}: scores {scores} are not those of the verdicts {statuses}")


def _shuffled(folder: Path) -> bool:
    path = folder / "config" / "environment.yaml"
    settings = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return bool((settings.get("env") or {}).get("shuffle_rewards"))


def _outbox(folder: Path) -> set[str]:
    with progress_file.reading(folder) as kept:
        return {group.id for group in kept.outbox()} if kept is not None else set()


def _lineage(run: Path, found: Audit, damaged: Counter[str]) -> dict[int, TrainedStep]:
    """The steps that the last weights came from, by number. A trainer that goes back undoes what came after."""
    path = run / "trained.jsonl"
    if not path.is_file() and (run / "metrics.jsonl").is_file():
        raise ConfigError(f"audit: {run}: metrics.jsonl, but no trained.jsonl: an older version trained there.")
    steps: dict[int, TrainedStep] = {}
    undone = 0
    for row in _records(path, TrainedStep, damaged):
        step = row.step
        for later in [one for one in steps if one >= step]:
            del steps[later]
            undone += 1
        steps[step] = row
    if steps and sorted(steps) != list(range(min(steps), max(steps) + 1)):
        found.violations.append(f"steps {sorted(steps)}: one is missing")
    found.counts["steps trained"] = len(steps)
    if undone:
        found.counts["steps undone by a death and trained again or to be"] = undone
    return steps


def _store(path: Path, *, required: bool) -> Store | None:
    if not path.is_file():
        if required:
            raise ConfigError(f"audit: --journal {path}: no such file. Give the one that run-api was started with.")
        return None
    try:
        return Store.read(path)
    except JournalError as error:
        raise ConfigError(f"audit: {error}") from None


def _fates(steps: dict[int, TrainedStep], found: Audit) -> dict[str, int]:
    """The step that took each group."""
    taken: dict[str, int] = {}
    reasons: Counter[str] = Counter()
    for step, row in sorted(steps.items()):
        for name in [*row.groups, *row.dropped]:
            if name in taken:
                found.violations.append(f"group {name}: taken by step {taken[name]} and again by step {step}")
            taken[name] = step
        reasons.update(row.dropped.values())
    found.counts["groups trained on"] = len(taken) - reasons.total()
    for reason, count in sorted(reasons.items()):
        found.counts[f"left out by the trainer: {reason}"] = count
    return taken


def _follow(
    sent: set[str], known: set[str], outbox: set[str], taken: dict[str, int], store: Store | None, found: Audit
) -> None:
    """Each group that was sent is somewhere, and each that was taken was sent."""
    waiting = store.held - taken.keys() if store is not None else set()
    found.counts["groups in an outbox"] = len(outbox - taken.keys() - waiting)
    found.counts["groups waiting at the API server"] = len(waiting)
    found.violations += [
        f"group {name}: trained on in step {taken[name]}, and no environment made it"
        for name in sorted(taken.keys() - known)
    ]
    found.violations += [
        f"group {name}: dropped by the environment, and trained on in step {taken[name]}"
        for name in sorted((taken.keys() & known) - sent)
    ]
    lost = sent - taken.keys() - waiting - outbox
    if store is None:
        found.counts["groups sent whose place is not known"] = len(lost)
        return
    for name in sorted(lost):
        told = "acknowledged and never trained on" if name in store.done else "neither trained on nor anywhere"
        if name in store.done or len(store.done) < REMEMBERED_IDS:
            found.violations.append(f"group {name}: {told}")


def _compare(steps: dict[int, TrainedStep], store: Store, durable: int | None, found: Audit) -> None:
    """The API server's leases are the trainer's steps, and nothing is acknowledged that a checkpoint lacks."""
    for lease in store.leases:
        row = steps.get(lease.step)
        ids = {entry.group_id for entry in lease.entries}
        if row is not None and ids != {*row.groups, *row.dropped}:
            found.violations.append(f"step {lease.step}: trained on other groups than the API server leased to it")
    if durable is not None and store.acked > durable:
        found.violations.append(
            f"step {store.acked} is acknowledged, the last complete checkpoint is of step {durable}"
        )


def _durable_step(run: Path) -> int | None:
    from trainer.checkpoints import complete_checkpoints

    found = complete_checkpoints(run / "checkpoints")
    return int(found[-1].name.removeprefix("step-")) if found else None
