"""The order of problems outlives its process: the same after a restart, wherever it was cut off."""

from __future__ import annotations

import gzip
import json
import os
import random
from array import array
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
from environments.livecode.recovery.outbox import Outbox, OutboxError
from environments.livecode.recovery.progress import OpenGroup, Progress, ProgressError
from environments.livecode.verification.ordering import TestOrder

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
        tests = [{"index": 0, "status": "accepted", "cpu_s": 0.01}]
        tests.append({"index": 1, "status": "accepted" if right else "wrong_answer", "cpu_s": 0.02})
        verdict = {"status": "accepted" if right else "wrong_answer", "tests": tests}
        group.rollouts.append(
            JudgedRollout(
                Completion(array("i", [1]), array("d", [0.0]), "stop", [(0, 0, 1)], 0.0), b"", "code", verdict, 0.1
            )
        )
    return group


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
            progress.end(finished(begun, draw.randrange(5), draw.choice([None, "all_pass", "infrastructure"])))
        else:
            progress.cut_off(begun.group_id)


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
        progress_file = tmp_path / "progress.jsonl"
        assert len(progress_file.read_bytes().splitlines()) == 1  # compacted at the start


def test_a_snapshot_above_the_bound_is_not_made_again_at_every_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = opened(tmp_path)
    history(progress, 40, seed=0)
    progress.close()
    monkeypatch.setattr(progress_module, "COMPACT_ABOVE", 400)
    again = opened(tmp_path)
    assert (size := again.path.stat().st_size) > 400
    files = []
    for _ in range(5):  # events of about 115 bytes
        again.begin(0)
        files.append(again.path.stat().st_ino)
    again.close()
    assert files[0] == files[1] == files[2] != files[4]
    assert again.path.stat().st_size < size + 5 * 115


def test_a_line_that_a_death_cut_off_is_as_if_never_begun(tmp_path: Path) -> None:
    progress = opened(tmp_path)
    history(progress, 10, seed=0)
    before = everything(progress)
    progress.begin(0)
    progress.close()
    data = progress.path.read_bytes()
    progress.path.write_bytes(data[:-5])
    again = opened(tmp_path)
    assert everything(again) == before
    again.close()


DAMAGE = [
    b"{}",
    b"nonsense",
    b'{"begin": "g", "problem": "p99", "version": 0, "again": false}',
    b'{"end": "unknown", "rate": 1, "sent": true, "runs": []}',
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_line_is_named(tmp_path: Path, damage: bytes) -> None:
    progress = opened(tmp_path)
    progress.begin(0)
    progress.close()
    with progress.path.open("ab") as file:
        file.write(damage + b"\n")
    with pytest.raises(ProgressError, match=r"progress\.jsonl line 3: cannot be read .* remove it to begin"):
        opened(tmp_path)
    opened(tmp_path / "other").close()


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


def test_open_groups_end_by_the_outbox_or_begin_again_in_their_order(tmp_path: Path) -> None:
    progress = opened(tmp_path)
    begun = [progress.begin(0) for _ in range(3)]
    progress.close()
    again = opened(tmp_path)
    recorded: list[tuple[str, list[float] | None]] = []
    waiting = [(begun[1].group_id, [1.0, -1.0]), ("known long ago", [1.0])]
    assert again.recover(waiting, lambda one, scores: recorded.append((one.group_id, scores))) == 2
    ids = [one.group_id for one in begun]
    assert recorded == [(ids[1], [1.0, -1.0]), (ids[0], None), (ids[2], None)]
    assert again.sent == 1
    assert [again.begin(1).problem for _ in range(2)] == [begun[0].problem, begun[2].problem]
    assert again.begin(1).problem.id not in {one.problem.id for one in begun}
    again.close()


def body(name: str) -> bytes:
    return gzip.compress(json.dumps({"group_overrides": {"group_id": name}, "scores": [1.0, -1.0]}).encode())


def test_an_outbox_gives_what_it_got_in_order_after_a_restart(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox")
    for name in "cab":
        outbox.put(name, body(name))
    (tmp_path / "outbox" / "00000009-d.json.new").write_bytes(b"half")
    assert [outbox.holds(name) for name in ("a", "d")] == [True, False]  # what is half written is not kept
    again = Outbox(tmp_path / "outbox")
    assert [group["group_overrides"]["group_id"] for _, group in again.waiting()] == ["c", "a", "b"]
    assert again.put("e", body("e")).name.startswith("00000003-")
    assert not list((tmp_path / "outbox").glob("*.new"))


@pytest.mark.parametrize(
    "data",
    [b"", b"no gzip", gzip.compress(b"{}"), gzip.compress(b"[1]"), body("x")[:-9]],
    ids=["empty", "no gzip", "no id", "a list", "cut off"],
)
def test_a_damaged_file_in_the_outbox_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "00000000-x.json.gz").write_bytes(data)
    with pytest.raises(OutboxError, match=r"00000000-x\.json\.gz: not a group"):
        list(Outbox(tmp_path).waiting())


def test_a_full_disk_is_named_and_leaves_no_half_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    outbox = Outbox(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OutboxError, match=r"x\.json\.gz: a group of .*No space left.*Free space"):
            outbox.put("x", body("x"))
    assert list(tmp_path.iterdir()) == []


def test_after_a_line_that_did_not_fit_none_is_written_and_the_next_start_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = opened(tmp_path)
    history(progress, 10, seed=0)
    before = everything(progress)
    whole = os.write

    def full(fd: int, data: bytes) -> int:
        if len(data) < 30:
            raise OSError(28, "No space left on device")
        return whole(fd, data[:-20])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(ProgressError, match=r"cannot be written \(No space left on device\)\. Free space"):
            progress.begin(0)
    with pytest.raises(ProgressError, match="an earlier line could not be written"):
        progress.begin(0)
    progress.close()
    again = opened(tmp_path)
    assert everything(again) == before
    again.close()
