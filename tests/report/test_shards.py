"""A run of several environments is read as one: report, watch, audit, rejudge."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from environments.common.shards import Shard
from environments.tools.audit import audit
from environments.tools.rejudge import recorded
from environments.tools.report.collect import collect
from environments.tools.report.records import read_records
from environments.tools.report.shards import merged
from environments.tools.watch_records import Watched
from tests.livecode.test_environment import lines
from tests.report.made_run import make_run
from tests.tools.test_audit import Run

SHARDS = [Shard(index, 3) for index in range(3)]


def deal(run: Path, name: str) -> None:
    """The lines of a record, in turn into the shards' own files."""
    rows = (run / name).read_text().splitlines()
    (run / name).unlink()
    for shard in SHARDS:
        path = run / "shards" / shard.name / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(row + "\n" for row in rows[shard.index :: shard.count]))


def divided(whole: Path, folder: Path) -> Path:
    """The run as three shards would have written it, but for their metrics."""
    shutil.copytree(whole, folder)
    for name in ["environment.jsonl", *(f"rollouts/{path.name}" for path in (folder / "rollouts").iterdir())]:
        deal(folder, name)
    return folder


def shown(run: Path) -> dict[str, Any]:
    page = collect(run, 5000, now=1_790_100_000.0)
    page["rollouts"] = sorted(page["rollouts"], key=lambda one: (str(one["group"]), one["index"]))
    return {name: page[name] for name in ("rollouts", "tables", "curves", "timeline", "groups", "evaluations")}


def test_the_report_of_a_divided_run_shows_what_that_of_the_whole_does(tmp_path: Path) -> None:
    whole = make_run(tmp_path / "whole", steps=6)
    (whole / "environment_metrics.jsonl").unlink()
    assert shown(divided(whole, tmp_path / "divided")) == shown(whole)


def test_a_watched_run_grows_by_what_each_shard_writes(tmp_path: Path) -> None:
    run = divided(make_run(tmp_path / "whole", steps=4), tmp_path / "divided")
    watched = Watched(run)
    assert watched.look()
    before = len(watched.records.groups)
    assert before == 4 * 6
    path = run / "shards" / SHARDS[2].name / "environment.jsonl"
    with path.open("a") as file:
        file.write(json.dumps(lines(path)[-1] | {"group_id": "new"}) + "\n")
    assert watched.look()
    assert [one.group_id for one in watched.records.groups[before:]] == ["new"]
    assert not watched.look()


def test_recorded_programs_of_every_shard_are_judged_again(tmp_path: Path) -> None:
    whole = make_run(tmp_path / "whole", steps=4)
    run = divided(whole, tmp_path / "divided")
    assert Counter(one.key for one in recorded(run, False)) == Counter(one.key for one in recorded(whole, False))


def row(step: int, shard: str | None, groups: int, **fields: Any) -> dict[str, Any]:
    return {"step": step, "groups": groups} | fields | ({"shard": shard} if shard else {})


def test_metrics_of_a_step_are_sums_of_counts_means_by_groups_and_the_largest_maxima() -> None:
    rows = [
        row(0, "0/2", 3, sent=2, pass_rate=0.5, verdicts={"accepted": 4}, seconds=2.0, slots_busy=0.4,
            verify_seconds={"mean": 1.0, "p95": 2.0, "max": 3.0}, in_flight=1),
        row(1, "0/2", 9, sent=9, pass_rate=0.9),
        row(1, "0/2", 4, sent=4, pass_rate=0.25),  # as it was done again after a death
        row(0, "1/2", 1, sent=1, pass_rate=0.9, verdicts={"accepted": 1, "no_code": 2}, seconds=5.0, slots_busy=0.8,
            verify_seconds={"mean": 2.0, "p95": 4.0, "max": 2.5}, in_flight=2),
        row(2, "1/2", 0, sent=0, pass_rate=None),
    ]  # fmt: skip
    assert merged(rows) == [
        {"step": 0, "groups": 4, "sent": 3, "pass_rate": 0.6, "verdicts": {"accepted": 5, "no_code": 2},
         "seconds": 5.0, "slots_busy": 0.5, "verify_seconds": {"max": 3.0, "mean": 1.25, "p95": 4.0}, "in_flight": 3},
        {"step": 1, "groups": 4, "sent": 4, "pass_rate": 0.25},
        {"step": 2, "groups": 0, "sent": 0, "pass_rate": None},
    ]  # fmt: skip
    alone = [row(0, None, 3), row(0, None, 4)]
    assert merged(alone) == alone


def test_metrics_of_a_divided_run_are_read_from_every_shard(tmp_path: Path) -> None:
    for shard in SHARDS:
        folder = tmp_path / "shards" / shard.name
        folder.mkdir(parents=True)
        (folder / "environment_metrics.jsonl").write_text(json.dumps(row(0, str(shard), 2)) + "\n")
    assert read_records(tmp_path, Counter()).environment_metrics == [{"step": 0, "groups": 6}]


def test_the_audit_of_a_run_takes_every_shards_folder(tmp_path: Path) -> None:
    run = Run(tmp_path).write()
    for name in ("progress.db", "progress.db-wal", "progress.db-shm", "progress.db.lock"):
        if (run / name).exists():
            (run / "shards" / SHARDS[1].name).mkdir(parents=True, exist_ok=True)
            (run / name).rename(run / "shards" / SHARDS[1].name / name)
    deal(run, "environment.jsonl")
    found = audit(run)
    assert found.violations == []
    assert (found.counts["groups made"], found.counts["groups in an outbox"]) == (10, 1)
    (run / "shards" / SHARDS[0].name / "environment.jsonl").unlink()
    assert any("no environment made it" in one for one in audit(run).violations)
