"""The audit finds each loss, repetition and false reward in journals that have one, and nothing in sound ones."""

from __future__ import annotations

import json
import re
import shlex
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from environments.api_server.journal import Journal
from environments.api_server.store import Entry, Store
from environments.cli import app
from environments.common.settings import ConfigError
from environments.livecode.recovery.progress_file import NAME, Change, KeptGroup, ProgressFile
from environments.tools.audit import audit


class Run:
    """A run of four steps of two groups in a folder: three of them trained, the checkpoint is of step 2."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: list[dict[str, Any]] = [self.group(f"g{n}") for n in range(9)]
        self.made.append(self.group("flat", scores=[-1.0, -1.0], verdicts=["no_code"] * 2, sent=False) | {
            "dropped": "all_fail"})  # fmt: skip
        self.trained: list[dict[str, Any]] = [
            {"step": 0, "groups": ["g0", "g1"], "dropped": {}},
            {"step": 1, "groups": ["g2"], "dropped": {"g3": "all_pass"}},
            {"step": 2, "groups": ["g4", "g5"], "dropped": {}},
        ]
        self.durable, self.acked = 2, 2

    @staticmethod
    def group(name: str, **changes: Any) -> dict[str, Any]:
        row = {"group_id": name, "scores": [1.0, -1.0], "verdicts": ["accepted", "wrong_answer"], "sent": True,
               "overlong": [False, False], "dropped": None}  # fmt: skip
        return row | changes

    def write(self) -> Path:
        for name, rows in (("environment", self.made), ("trained", self.trained)):
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (self.folder / f"{name}.jsonl").write_text(text)
        checkpoint = self.folder / "checkpoints" / f"step-{self.durable:08d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "meta.json").write_text("{}")
        path = self.folder / "api.journal"
        if not path.exists():
            self.serve(path, [f"g{n}" for n in range(8)])
        progress = ProgressFile(self.folder)
        progress.write([Change(group=KeptGroup("g8", "p", 0), body=b"as it is sent")])
        progress.close()
        return self.folder

    def serve(self, path: Path, names: list[str]) -> None:
        store = Store(Journal(path))
        store.register({"starting_step": 0})
        for name in names:
            store.add(Entry(name, 2, None, b"{}"))
        for step in range(3):
            store.lease(step, 4)
        store.ack(self.acked)
        store.close()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def test_each_violation_comes_with_the_command_that_shows_its_records(run: Run) -> None:
    run.made[2]["scores"] = [1.0, 1.0]
    lines = audit(run.write()).lines()
    at = next(place for place, line in enumerate(lines) if line.startswith("VIOLATION: group g2:"))
    command = lines[at + 1].removeprefix("  see: ")
    shown = subprocess.run(shlex.split(command), capture_output=True, text=True, check=True).stdout
    assert "[1.0, 1.0]" in shown
    assert "trained.jsonl" in shown


def test_a_sound_run_is_proved_and_counted(run: Run) -> None:
    found = audit(run.write())
    assert found.violations == []
    assert dict(found.counts) == {
        "rollouts with a score": 20, "groups made": 10, "groups sent": 9, "dropped by the environment: all_fail": 1,
        "steps trained": 3, "groups trained on": 5, "left out by the trainer: all_pass": 1, "groups in an outbox": 1,
        "groups waiting at the API server": 2,
    }  # fmt: skip
    done = CliRunner().invoke(app, ["audit", str(run.folder)])
    assert (done.exit_code, done.output.splitlines()[-1][:7]) == (0, "proved:")


def test_a_trainer_that_went_back_has_trained_each_group_once(run: Run) -> None:
    run.trained.append(dict(run.trained[2]))  # died after step 2 was recorded, before its checkpoint
    found = audit(run.write())
    assert found.violations == []
    assert found.counts["steps undone by a death and trained again or to be"] == 1


def twice(run: Run) -> None:
    run.trained[2]["groups"].append("g0")


def nowhere(run: Run) -> None:
    run.made.append(run.group("g99"))


def acknowledged_untrained(run: Run) -> None:
    run.trained[1] = {"step": 1, "groups": ["g2"], "dropped": {}}


def other_groups(run: Run) -> None:
    run.trained[2]["groups"] = ["g4", "g6"]


def not_durable(run: Run) -> None:
    run.durable = 1


def missing_step(run: Run) -> None:
    del run.trained[1]


def without_reason(run: Run) -> None:
    run.made[9]["dropped"] = None


def false_reward(run: Run) -> None:
    run.made[4]["verdicts"] = ["accepted", "host_overloaded"]


def turned_reward(run: Run) -> None:
    run.made[4]["scores"] = [-1.0, 1.0]


def without_verdict(run: Run) -> None:
    run.made[4]["verdicts"] = ["accepted"]


def from_nowhere(run: Run) -> None:
    del run.made[4]


def dropped_and_trained(run: Run) -> None:
    run.made[4] |= {"sent": False, "dropped": "infrastructure"}


def sent_and_dropped(run: Run) -> None:
    run.made.append(run.group("g4", sent=False, dropped="stopped"))


def two_scores(run: Run) -> None:
    run.made.append(run.group("g4", scores=[-1.0, 1.0], verdicts=["no_code", "accepted"]))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (twice, "group g0: taken by step 0 and again by step 2"),
        (nowhere, "group g99: neither trained on nor anywhere"),
        (acknowledged_untrained, "group g3: acknowledged and never trained on"),
        (other_groups, "step 2: trained on other groups than the API server leased to it"),
        (not_durable, "step 2 is acknowledged, the last complete checkpoint is of step 1"),
        (missing_step, r"steps \[0, 2\]: one is missing"),
        (without_reason, "group flat: neither sent nor dropped with a reason"),
        (
            false_reward,
            r"group g4: scores \[1.0, -1.0\] are not those of the verdicts \['accepted', 'host_overloaded'\]",
        ),
        (turned_reward, r"group g4: scores \[-1.0, 1.0\] are not those"),
        (without_verdict, "group g4: 2 scores, 1 verdicts"),
        (from_nowhere, "group g4: trained on in step 2, and no environment made it"),
        (dropped_and_trained, "group g4: dropped by the environment, and trained on in step 2"),
        (sent_and_dropped, "group g4: sent, and dropped as stopped"),
        (two_scores, r"group g4: recorded with scores \[1.0, -1.0\] and with \[-1.0, 1.0\]"),
    ],
)
def test_what_must_not_be_is_found(run: Run, harm: Any, message: str) -> None:
    harm(run)
    found = audit(run.write())
    assert any(re.match(message, one) for one in found.violations), found.violations
    done = CliRunner().invoke(app, ["audit", str(run.folder)])
    assert done.exit_code == 1
    assert "VIOLATION: " in done.output


def test_rewards_that_were_dealt_out_at_random_are_held_against_the_whole_group(run: Run) -> None:
    turned_reward(run)
    (run.folder / "config").mkdir()
    (run.folder / "config" / "environment.yaml").write_text("env:\n  shuffle_rewards: true\n")
    assert audit(run.write()).violations == []


def test_a_torn_line_is_counted(run: Run) -> None:
    folder = run.write()
    with (folder / "environment.jsonl").open("a") as file:
        file.write('{"group_id": "g')
    found = audit(folder)
    assert found.violations == []
    assert found.counts["damaged lines of environment.jsonl, left out"] == 1


def test_what_cannot_be_audited_is_said(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        audit(tmp_path / "absent")
    with pytest.raises(ConfigError, match=r"no environment\.jsonl"):
        audit(tmp_path)
    folder = run.write()
    with pytest.raises(ConfigError, match="no such file"):
        audit(folder, journal=tmp_path / "absent")
    (folder / "trained.jsonl").rename(folder / "metrics.jsonl")
    with pytest.raises(ConfigError, match="an older version trained there"):
        audit(folder)
    (folder / "metrics.jsonl").unlink()
    (folder / "api.journal").write_bytes(b"notes")
    with pytest.raises(ConfigError, match="not a file of this version"):
        audit(folder)


def progress(run: Run, *events: dict[str, Any], sent: int = 0, under_way: tuple[str, ...] = ()) -> None:
    snapshot = {"open": [[name, "p", 0] for name in under_way], "sent": sent}
    file = ProgressFile(run.folder)
    file.write([Change(snapshot=json.dumps(snapshot).encode()), *(Change(event=json.dumps(event)) for event in events)])
    file.close()


def test_what_the_environment_began_is_recorded_or_under_way(run: Run) -> None:
    begin, end = {"begin": "g8", "problem": "p", "version": 0}, {"end": "g8", "sent": True}
    progress(run, begin, end, {"begin": "new", "problem": "p", "version": 0}, sent=8)
    found = audit(run.write())
    assert found.violations == []
    assert found.counts["groups under way"] == 1


def test_a_group_that_ended_and_was_never_recorded_is_found(run: Run) -> None:
    progress(run, {"cut_off": "gone"}, sent=9, under_way=("gone",))
    (violation,) = audit(run.write()).violations
    assert violation.startswith("group gone: it ended, and ")


def test_records_that_are_fewer_than_the_groups_sent_are_found(run: Run) -> None:
    progress(run, sent=10)
    (violation,) = audit(run.write()).violations
    assert violation.endswith("progress.db counts 10 groups that were sent, environment.jsonl has 9")


def test_a_record_that_is_not_yet_in_its_file_counts_once(run: Run) -> None:
    progress(run, sent=9)
    last = run.made.pop(8)
    run.write()
    with closing(sqlite3.connect(run.folder / NAME)) as connection, connection:
        for row in (run.made[0], last):
            connection.execute("INSERT INTO lines (line) VALUES (?)", (json.dumps(row),))
    found = audit(run.folder)
    assert found.violations == []
    assert (found.counts["groups sent"], found.counts["rollouts with a score"]) == (9, 20)


def test_a_folder_of_the_form_before_names_the_version_that_reads_it(run: Run) -> None:
    folder = run.write()
    (folder / NAME).unlink()
    (folder / "progress.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match="reads up to commit"):
        audit(folder)
