"""`atropos rejudge RUN`: a run's recorded programs through another judge, other limits, or another version.

What changes is a matrix of verdicts, a list of programs with both messages, and the share of groups that would train
otherwise. Every verdict is on disk in OUT/rejudged.jsonl before it counts, so that the same command resumes.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path

import msgspec

from environments.common.errors import ConfigError
from environments.common.record_lines import read_lines
from environments.common.rewards import FAIL, drop_reason, group_advantages, reward
from environments.common.run_folder import append_line, check
from environments.common.shards import folders, record_files
from environments.livecode.config import RunConfig, load_run_config
from environments.livecode.evaluation.profiles import GradingProfile, Name, grading_profiles
from environments.livecode.evaluation.samples import Sample
from environments.livecode.problems.problem import Problem
from environments.livecode.problems.sampler import load_set
from environments.livecode.records.programs import FOLDER, unpacked
from environments.livecode.records.schema import (
    GroupRecord,
    ProgramsRecord,
    RolloutRecord,
    VerdictRecord,
    verdict_record,
)
from environments.livecode.verification.base import Verifier, VerifierError
from environments.livecode.verification.factory import build_verifier
from environments.livecode.verification.judge_requests import judge_request

IN_FLIGHT = 64
"""Programs that wait for a verdict at a time; the verifier bounds itself, this bounds memory."""


@dataclass
class Program:
    """A recorded program with the verdict it got. group_id: None for a sample of an evaluation."""

    key: str
    problem_id: str
    code: str | None
    before: VerdictRecord
    group_id: str | None = None
    index: int = 0


class Change(msgspec.Struct):
    """A line of changed.jsonl: a program whose status changed, with both messages."""

    key: str
    problem_id: str
    before: str
    after: str
    was: str | None
    now: str | None


class Rejudged(msgspec.Struct):
    """A line of rejudged.jsonl."""

    key: str
    verdict: VerdictRecord


@dataclass
class Comparison:
    """What judging again changed.

    matrix: (status before, status after) -> programs. changed: programs whose status changed. lost: programs without
    a verdict now, which are judged again by the same command. missing: programs left out, by reason. statuses: before
    and after, by group and index. groups: those of which every program is recorded.
    """

    matrix: Counter[tuple[str, str]] = field(default_factory=Counter)
    changed: list[Change] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    missing: Counter[str] = field(default_factory=Counter)
    statuses: dict[str, dict[int, tuple[str, str]]] = field(default_factory=lambda: defaultdict(dict))
    groups: int = 0
    groups_changed: int = 0
    groups_dropped: int = 0
    groups_new: int = 0

    @property
    def rewards_changed(self) -> int:
        """Programs whose reward is another one."""
        return sum("accepted" in (one.before, one.after) for one in self.changed)

    def lines(self, most: int = 20) -> list[str]:
        """For a terminal: the matrix, the first changed programs, the groups."""
        judged = sum(self.matrix.values())
        shown = [f"{judged} programs judged again: {judged - len(self.changed)} have the same status"]
        shown += [
            f"  {count:8d}  {before} -> {after}"
            for (before, after), count in sorted(self.matrix.items(), key=lambda item: -item[1])
            if before != after
        ]
        for one in self.changed[:most]:
            shown.append(f"{one.key} ({one.problem_id}): {one.before} -> {one.after}")
            shown += [f"    {when}: {text}" for when, text in (("was", one.was), ("now", one.now)) if text]
        if len(self.changed) > most:
            shown.append(f"... and {len(self.changed) - most} more")
        if self.groups:
            shown.append(
                f"groups with every program recorded: {self.groups}; advantages change sign or vanish in "
                f"{self.groups_changed}; {self.groups_dropped} would be dropped, {self.groups_new} no longer"
            )
        shown += [f"left out: {count} programs {reason}" for reason, count in self.missing.items()]
        if self.lost:
            shown.append(f"no verdict for {len(self.lost)} programs: run the same command again")
        return shown


def recorded(run: Path, evaluations: bool) -> Iterator[Program]:
    """The programs that a run's folder holds, each once: programs/, rollouts/ and, where wanted, evaluations/.

    Raises:
        ConfigError: no run folder, or of another version.
    """
    if not run.is_dir():
        raise ConfigError(f"rejudge: {run}: no such folder; give a run's folder (env.run_dir)")
    check(run)
    seen = set()
    for program in chain(_packed(run), _sampled(run)):
        if program.key not in seen:
            seen.add(program.key)
            yield program
    if evaluations:
        yield from _evaluated(run)


def _packed(run: Path) -> Iterator[Program]:
    """Of programs/."""
    for path in record_files(run, FOLDER):
        for line in read_lines(path, ProgramsRecord):
            for row in unpacked(line):
                key, before = f"{line.group_id}/{row.index}", row.verdict or VerdictRecord(row.status)
                yield Program(key, line.problem_id, row.code, before, line.group_id, row.index)


def _sampled(run: Path) -> Iterator[Program]:
    """Of rollouts/."""
    for path in record_files(run, "rollouts"):
        for row in read_lines(path, RolloutRecord):
            if row.group_id is not None and row.index is not None and row.status:
                key, before = f"{row.group_id}/{row.index}", row.verdict or VerdictRecord(row.status)
                yield Program(key, row.problem_id, row.code, before, row.group_id, row.index)


def _evaluated(run: Path) -> Iterator[Program]:
    """Of evaluations/, whose samples have a program."""
    for path in sorted((run / "evaluations").glob("*.jsonl")):
        if path.name.endswith(".problems.jsonl"):
            continue
        for row in read_lines(path, Sample):
            if row.status is not None and isinstance(row.code, str):
                before = VerdictRecord(row.status, message=row.message)
                yield Program(f"{path.stem}/{row.problem}/{row.index}", row.problem, row.code, before)


class Results:
    """OUT/rejudged.jsonl: verdicts by program, kept from run to run.

    Raises:
        ConfigError: the folder holds verdicts by other rules.
    """

    def __init__(self, out: Path, rules: dict[str, str]) -> None:
        self.path = out / "rejudged.jsonl"
        out.mkdir(parents=True, exist_ok=True)
        stamp, rules = out / "rules.json", rules | {"version": version("atropos-livecode")}
        if stamp.is_file() and json.loads(stamp.read_text(encoding="utf-8")) != rules:
            raise ConfigError(f"--out {out}: holds verdicts by other rules ({stamp}); give another folder")
        stamp.write_text(json.dumps(rules, sort_keys=True, indent=1) + "\n", encoding="utf-8")
        rows = read_lines(self.path, Rejudged) if self.path.is_file() else ()
        self.known = {row.key: row.verdict for row in rows}

    def add(self, key: str, verdict: VerdictRecord) -> None:
        append_line(self.path, json.dumps(msgspec.to_builtins(Rejudged(key, verdict)), ensure_ascii=False))
        self.known[key] = verdict


async def rejudge(
    programs: Iterator[Program],
    problems: Mapping[str, Problem],
    verifier: Verifier,
    rules: GradingProfile,
    results: Results,
    progress: Callable[[], None],
) -> Comparison:
    """Judge every program that has no verdict by these rules yet, and compare.

    Args:
        problems: by id; a program of another problem is counted as missing.
    """
    work = _Rejudging(verifier, rules, results, progress)
    async with asyncio.TaskGroup() as tasks:
        for program in programs:
            problem = problems.get(program.problem_id)
            if program.code is None:  # nothing to judge: no_code stays no_code
                if program.group_id is not None:
                    work.found.statuses[program.group_id][program.index] = (program.before.status,) * 2
                progress()
            elif problem is None:
                work.found.missing["whose problem is not in env.problems"] += 1
                progress()
            elif program.key in results.known:
                work.compare(program)
            else:
                await work.places.acquire()
                tasks.create_task(work.judge(program, program.code, problem))
    work.found.changed.sort(key=lambda one: one.key)
    return work.found


@dataclass
class _Rejudging:
    """One call of `rejudge`: what it was given, and what there is so far."""

    verifier: Verifier
    rules: GradingProfile
    results: Results
    progress: Callable[[], None]
    found: Comparison = field(default_factory=Comparison)
    places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(IN_FLIGHT))

    async def judge(self, program: Program, code: str, problem: Problem) -> None:
        """Judges a program that a place is taken for, and compares."""
        try:
            verdict = await self.verifier.verify(judge_request(problem, code, **self.rules.limits))
            self.results.add(program.key, verdict_record(verdict))
        except VerifierError as error:
            self.found.lost.append(f"{program.key}: {error}")
        finally:
            self.places.release()
        self.compare(program)

    def compare(self, program: Program) -> None:
        """Counts a program by its verdicts before and after; one without a new verdict is not counted."""
        self.progress()
        after = self.results.known.get(program.key)
        if after is None:
            return
        was, now = program.before, after
        self.found.matrix[was.status, now.status] += 1
        if program.group_id is not None:
            self.found.statuses[program.group_id][program.index] = was.status, now.status
        if was.status != now.status:
            change = Change(program.key, program.problem_id, was.status, now.status, was.said, now.said)
            self.found.changed.append(change)


def compare_groups(found: Comparison, groups: Iterable[GroupRecord], baseline: str) -> None:
    """Count the groups whose training would differ, among those of which every program is recorded.

    Args:
        groups: the rows of environment.jsonl.
        baseline: env.overlong_baseline.
    """
    for row in groups:
        own, overlong = found.statuses.get(row.group_id), row.overlong
        if own is None or len(own) != len(overlong) or set(own) != set(range(len(overlong))):
            continue
        found.groups += 1
        scores = [[_reward(own[index][side]) for index in range(len(own))] for side in (0, 1)]
        before, after = (group_advantages(side, overlong, baseline) for side in scores)
        found.groups_changed += any(_sign(a) != _sign(b) for a, b in zip(before, after, strict=True))
        dropped = [drop_reason(side, overlong, baseline) is not None for side in scores]
        found.groups_dropped += dropped == [False, True]
        found.groups_new += dropped == [True, False]


def _reward(status: str) -> float:
    if status == "overlong":  # was not judged: `exclude`, by which its score counts for nothing
        return FAIL
    value = reward({"status": status})
    assert value is not None
    return value


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def rejudge_run(
    run: Path, out: Path, profile: Name, evaluations: bool, limit: int | None, words: Sequence[str],
    progress: Callable[[int], Callable[[], None]],
) -> Comparison:  # fmt: skip
    """What judging a run's recorded programs again changes.

    Args:
        run: the run's folder. Where it has config/environment.yaml those options hold, below `words`.
        out: the folder of the new verdicts.
        profile: whose rules; `run`: the environment's own options.
        evaluations: the samples of the run's evaluations are judged, too.
        limit: of programs; None: all.
        words: options of the environment as on its command line.
        progress: called with the number of programs; what it returns, once for each that is done.

    Raises:
        ConfigError: a folder, an option or a problem that cannot be used; nothing was recorded.
    """
    config = _options(run, out, words)
    options, env = config.evaluation, config.env
    (rules,) = grading_profiles(
        [profile], time_limit_s=env.time_limit_s, memory_limit_mb=env.memory_limit_mb, own_limits=env.own_limits,
        decimal_tolerance=env.decimal_tolerance, no_memory_limit_mb=options.no_memory_limit_mb,
        semantics=options.semantics,
    )  # fmt: skip
    count = sum(1 for _ in recorded(run, evaluations))
    if not count:
        raise ConfigError(
            f"rejudge: {run}: no program is recorded there; env.record_programs keeps all of a run, "
            "env.record_rollouts_per_group some of each group"
        )
    problems = {problem.id: problem for problem in load_set(env.problems, env.seed)}
    if evaluations:
        for name in options.problems:
            problems |= {problem.id: problem for problem in load_set(name, env.seed)}
    results = Results(out, {"rules": str(rules), "verifier": env.verifier, "problems": env.problems})
    tick = progress(count if limit is None else min(limit, count))

    async def work() -> Comparison:
        async with build_verifier(env) as verifier:
            programs = islice(recorded(run, evaluations), limit)
            return await rejudge(programs, problems, verifier, rules, results, tick)

    found = asyncio.run(work())
    for path in filter(Path.is_file, (own / "environment.jsonl" for own in folders(run))):
        compare_groups(found, read_lines(path, GroupRecord), env.overlong_baseline)
    rows = [json.dumps(msgspec.to_builtins(one)) + "\n" for one in found.changed]
    (out / "changed.jsonl").write_text("".join(rows), encoding="utf-8")
    return found


def _options(run: Path, out: Path, words: Sequence[str]) -> RunConfig:
    own = run / "config" / "environment.yaml"
    begin = ["--config", str(own)] if own.is_file() and "--config" not in words else []
    return load_run_config(None, [*begin, *words, "--env.run_dir", str(out), "--env.shard", ""], leave_out=("process",))
