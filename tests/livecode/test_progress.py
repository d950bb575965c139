"""The order of problems outlives its process: the same after a restart, wherever it was cut off."""

from __future__ import annotations

import errno
import json
import os
import random
import sqlite3
from array import array
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from environments.common.settings import ConfigError
from environments.livecode.generation.completions import Completion
from environments.livecode.pipeline import JudgedGroup, JudgedRollout
from environments.livecode.problems.problem import Problem, TestCase
from environments.livecode.problems.prompts import Prompt
from environments.livecode.problems.sampler import Rule, build_sampler
from environments.livecode.recovery import progress as progress_module
from environments.livecode.recovery import progress_file
from environments.livecode.recovery.progress import DiskFull, OpenGroup, Progress, ProgressError
from environments.livecode.recovery.progress_file import NAME, KeptGroup, ProgressFile, reading
from environments.livecode.verification.ordering import TestOrder
from verifier_app.judge.verdict import RanTest, Verdict

PROBLEMS = [
    Problem(id=f"p{n}", source="t", kind="stdin", statement="s", tests=[TestCase(input="1", output="2")] * 3)
    for n in range(7)
]
PROMPT = Prompt(ids=[1], text="", reasoning_open=False)


def opened(folder: Path, rule: Rule = "uniform", **settings: Any) -> Progress:
    return Progress(
        folder,
        problems=PROBLEMS,
        settings={"seed": 3, **settings},
        sampler=build_sampler(rule, PROBLEMS, 3, 2),
        order=TestOrder(),
    )


def finished(begun: OpenGroup, passed: int, dropped: str | None = None) -> JudgedGroup:
    """A group of four, so many of them accepted; the others failed their second test."""
    group = JudgedGroup(begun.problem, PROMPT, begun.version, begun.group_id, dropped=dropped)
    for index in range(4):
        right = index < passed
        status = "accepted" if right else "wrong_answer"
        tests: list[RanTest] = [
            {"index": 0, "status": "accepted", "wall_s": 0.01, "cpu_s": 0.01, "peak_mb": 9.0},
            {"index": 1, "status": status, "wall_s": 0.02, "cpu_s": 0.02, "peak_mb": 9.0},
        ]
        verdict: Verdict = {"status": status, "passed": 1 + right, "total": 2, "tests": tests}
        group.rollouts.append(
            JudgedRollout(
                Completion(array("i", [1]), array("d", [0.0]), "stop", [(0, 0, 1)], 0.0), b"", "code", verdict, 0.1
            )
        )
    return group


def record(begun: OpenGroup) -> str:
    return json.dumps({"group_id": begun.group_id, "problem_id": begun.problem.id})


def history(progress: Progress, steps: int, seed: int) -> None:
    """Groups that begin and end in any order."""
    draw = random.Random(seed)
    for _ in range(steps):
        kind = draw.random()
        if kind < 0.5 or not progress.open:
            progress.begin(0)
            continue
        begun = progress.open[draw.choice(sorted(progress.open))]
        if kind < 0.9:
            group = finished(begun, draw.randrange(5), draw.choice([None, "all_pass", "infrastructure"]))
            progress.end(group, record(begun), None if group.dropped else begun.group_id.encode())
        else:
            progress.cut_off(begun.group_id, record(begun))


def everything(progress: Progress) -> dict[str, Any]:
    whole = {
        "sampler": progress.sampler.state(),
        "order": progress.order.state(),
        "open": {name: (begun.problem.id, begun.version) for name, begun in progress.open.items()},
        "again": [problem.id for problem in progress.again],
        "sent": progress.sent,
    }
    return dict(json.loads(json.dumps(whole)))


@pytest.mark.parametrize("rule", ["uniform", "learnable"])
@pytest.mark.parametrize("compact_above", [1, 2000, 1 << 20])
def test_events_bring_back_sampler_order_and_open_groups(
    tmp_path: Path, rule: Rule, compact_above: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_module, "COMPACT_ABOVE", compact_above)
    for life in range(4):
        progress = opened(tmp_path, rule)
        history(progress, 40, seed=life)
        before = everything(progress)
        progress.close()
        again = opened(tmp_path, rule)
        assert everything(again) == before
        assert again.sampler.next().id == progress.sampler.next().id
        again.close()
        assert events(tmp_path) == []  # a snapshot is made at the start


def events(folder: Path) -> list[dict[str, Any]]:
    with reading(folder) as kept:
        assert kept is not None
        return [json.loads(text) for _, text in kept.events()]


def test_a_snapshot_takes_the_place_of_the_events_once_they_are_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_module, "COMPACT_ABOVE", 350)
    progress = opened(tmp_path)
    counts = []
    for _ in range(9):  # events of about 100 characters
        progress.begin(0)
        progress.commit()
        counts.append(len(events(tmp_path)))
    assert counts == [1, 2, 3, 0, 1, 2, 3, 0, 1]
    before = everything(progress)
    progress.close()
    again = opened(tmp_path)
    assert everything(again) == before
    again.close()


def execute(folder: Path, statement: str, *values: Any) -> list[Any]:
    with closing(sqlite3.connect(folder / NAME)) as connection, connection:
        return connection.execute(statement, values).fetchall()


DAMAGE = [
    "{}",
    "nonsense",
    '{"begin": "g", "problem": "p99", "version": 0, "again": false}',
    '{"end": "unknown", "rate": 1, "sent": true, "runs": []}',
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_event_is_named(tmp_path: Path, damage: str) -> None:
    progress = opened(tmp_path)
    progress.begin(0)
    progress.close()
    execute(tmp_path, "INSERT INTO events (event) VALUES (?)", damage)
    with pytest.raises(ProgressError, match=r"progress\.db event 2: cannot be read .* give another folder"):
        opened(tmp_path)
    opened(tmp_path / "other").close()


def test_a_folder_of_the_form_before_names_the_version_that_reads_it(tmp_path: Path) -> None:
    snapshot = {"format": 1, "settings": {}, "sampler": {"taken": 1}, "order": {}, "open": [], "again": [], "sent": 1}
    (tmp_path / "progress.jsonl").write_text(json.dumps(snapshot) + "\n")
    (tmp_path / "outbox").mkdir()
    for use in (lambda: opened(tmp_path), lambda: reading(tmp_path).__enter__()):
        with pytest.raises(ConfigError, match=r"of the form before progress\.db, which atropos-livecode reads up to"):
            use()
    assert not (tmp_path / NAME).exists()


def test_a_folder_of_other_settings_or_problems_is_refused(tmp_path: Path) -> None:
    opened(tmp_path).close()
    with pytest.raises(ConfigError, match="holds a run with seed 3, this one has 4"):
        opened(tmp_path, seed=4)
    with pytest.raises(ConfigError, match="problems_sha256"):
        Progress(
            tmp_path,
            problems=PROBLEMS[:3],
            settings={"seed": 3},
            sampler=build_sampler("uniform", PROBLEMS[:3], 3),
            order=TestOrder(),
        )


def test_two_environments_never_share_a_folder(tmp_path: Path) -> None:
    first = opened(tmp_path)
    with pytest.raises(ConfigError, match="another environment is running there"):
        opened(tmp_path)
    first.close()
    opened(tmp_path).close()


def lines(folder: Path) -> list[str]:
    path = folder / "environment.jsonl"
    return [json.loads(line)["group_id"] for line in path.read_bytes().splitlines()] if path.exists() else []


def test_open_groups_begin_again_in_their_order_before_any_new_one(tmp_path: Path) -> None:
    progress = opened(tmp_path)
    begun = [progress.begin(0) for _ in range(3)]
    progress.end(finished(begun[1], 2), record(begun[1]), b"body")
    progress.close()
    again = opened(tmp_path)
    assert list(again.open) == [begun[0].group_id, begun[2].group_id]
    for one in list(again.open.values()):
        again.cut_off(one.group_id, record(one))
    assert [again.begin(1).problem for _ in range(2)] == [begun[0].problem, begun[2].problem]
    assert again.begin(1).problem.id not in {one.problem.id for one in begun}
    again.close()
    assert lines(tmp_path) == [begun[at].group_id for at in (1, 0, 2)]


async def test_kept_groups_come_back_in_their_order_byte_for_byte_until_they_are_delivered(tmp_path: Path) -> None:
    progress = opened(tmp_path)
    bodies = {}
    for size in (0, 1, (1 << 20) - 1, 1 << 20, (5 << 20) + 7):
        begun = progress.begin(3)
        bodies[begun.group_id] = random.Random(size).randbytes(size)
        progress.end(finished(begun, 2), record(begun), bodies[begun.group_id])
    await progress.written()
    progress.close()
    for left in reversed(range(len(bodies) + 1)):
        again = opened(tmp_path)
        assert again.sent == 5
        names = list(bodies)[5 - left :]
        assert again.kept == [KeptGroup(name, again.kept[at].problem, 0) for at, name in enumerate(names)]
        for name in names:
            assert await again.body(name) == bodies[name]
        for name in names[:1]:
            again.delivered(name)
        again.close()
    assert execute(tmp_path, "SELECT count(*) FROM pieces WHERE place >= 1 << 20") == [(0,)]


def test_a_row_deleted_by_hand_takes_its_body_along_at_the_next_start(tmp_path: Path) -> None:
    progress = opened(tmp_path)
    begun = progress.begin(0)
    progress.end(finished(begun, 2), record(begun), bytes(3 << 20))
    progress.close()
    execute(tmp_path, f"DELETE FROM outbox WHERE id = '{begun.group_id}'")
    again = opened(tmp_path)
    assert again.kept == []
    again.close()
    assert execute(tmp_path, "SELECT count(*) FROM pieces WHERE place >= 1 << 20") == [(0,)]


def killed(folder: Path, moment: str) -> str:
    """A group that ended in a process that died before, within, or after its line in environment.jsonl."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        progress = opened(folder)
        begun = progress.begin(0)
        progress.end(finished(begun, 2), record(begun), b"body")
        half = {"before": 0, "within": 20}.get(moment)

        def dying(path: Path, line: str) -> None:
            path.write_text(line[:half])
            os._exit(0)

        if half is not None:
            vars(progress_file)["append_line"] = dying
        os.write(write, begun.group_id.encode())
        progress.commit()
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(write)
    with os.fdopen(read) as pipe:
        return pipe.read()


@pytest.mark.parametrize("moment", ["before", "within", "after"])
def test_the_line_of_a_group_that_ended_is_written_once(tmp_path: Path, moment: str) -> None:
    name = killed(tmp_path, moment)
    written = (tmp_path / "environment.jsonl").read_text()
    assert (written == "", written.endswith("\n")) == (moment == "before", moment == "after")
    with reading(tmp_path) as kept:
        assert kept is not None
        assert [json.loads(line)["group_id"] for _, line in kept.lines()] == [name]
        assert [group.id for group in kept.outbox()] == [name]
    for _ in range(2):
        opened(tmp_path).close()
        assert lines(tmp_path) == [name]


def full(*arguments: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


async def test_on_a_full_disk_nothing_of_a_change_is_kept_and_the_next_try_keeps_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = opened(tmp_path)
    history(progress, 10, seed=0)
    await progress.written()
    written = events(tmp_path)
    begun = progress.begin(0)
    progress.end(finished(begun, 2), record(begun), b"body")
    with monkeypatch.context() as patch:
        patch.setattr(ProgressFile, "write", full)
        for _ in range(2):
            with pytest.raises(DiskFull, match=r"cannot be written \(No space left on device\)\. Free space"):
                await progress.written()
    assert events(tmp_path) == written
    await progress.written()
    assert [event.get("end") for event in events(tmp_path)[len(written) :]] == [None, begun.group_id]
    before = everything(progress)
    progress.close()
    again = opened(tmp_path)
    assert everything(again) == before
    again.close()


async def test_a_line_that_does_not_fit_is_written_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = opened(tmp_path)
    begun = progress.begin(0)
    progress.end(finished(begun, 2), record(begun), b"body")
    with monkeypatch.context() as patch:
        patch.setattr("environments.livecode.recovery.progress_file.append_line", full)
        with pytest.raises(DiskFull):
            await progress.written()
    progress.close()
    assert lines(tmp_path) == []
    again = opened(tmp_path)
    assert lines(tmp_path) == [begun.group_id]
    assert [group.id for group in again.kept] == [begun.group_id]
    again.close()
