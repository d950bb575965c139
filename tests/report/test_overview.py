"""The report's first page, by value: state, headline, time, faults, commands, and where charts stand on their axes."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import UNSET

from environments.livecode.records.schema import GroupRecord, RolloutRecord, VerdictRecord
from environments.tools.report.charts import CHARTS, ENVIRONMENT_CHARTS, SENTENCES, axes, curves, refused
from environments.tools.report.collect import collect, rollout
from environments.tools.report.faults import faults
from environments.tools.report.groups import by_group, by_problem
from environments.tools.report.records import RunRecords
from environments.tools.report.state import state
from environments.tools.report.story import headline, sampled, time_parts
from environments.tools.report.values import Rows
from tests.report.made_run import BEGUN, STEP_S, make_run
from trainer.metric_table import METRICS

LATER = BEGUN + 100 * STEP_S


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return collect(make_run(tmp_path_factory.mktemp("runs") / "mine"), 5000, LATER)


def test_the_first_page_says_what_the_run_is_and_how_it_ended(data: dict[str, Any]) -> None:
    told = data["overview"]
    facts = dict(told["facts"])
    assert facts["Model"] == "Qwen/Qwen3-14B"
    assert facts["Objective"] == "GSPO+, learning rate 1e-06"
    assert facts["Problems"] == "data/train.jsonl"
    assert told["state"]["kind"] == "died"
    assert told["state"]["text"] == "Died after step 60 of 80, 60 min ago."
    assert told["state"]["detail"].startswith("torch.OutOfMemoryError")
    commands = dict(told["commands"])
    assert commands["Continue it"].startswith("atropos train --config ")
    assert commands["Repeat it"].endswith("mine-again")


def test_what_went_wrong_is_told_once_each_the_worst_first(data: dict[str, Any]) -> None:
    told = [fault["text"] for fault in data["overview"]["faults"]]
    assert "The trainer began again from a checkpoint after step 30: 4 steps done again" in told
    assert "A generation server was gone or hung when weights were published, in 1 step" in told
    assert "2 failed requests to generation, sent again" in told
    levels = [fault["level"] for fault in data["overview"]["faults"]]
    assert levels == sorted(levels)


def test_steps_that_were_done_again_are_shown_as_the_weights_descend_from_them(data: dict[str, Any]) -> None:
    (reward,) = [chart["series"][0]["points"] for chart in data["curves"] if chart["title"] == "Reward"]
    assert [step for step, _ in reward] == list(range(1, 61))
    assert data["axes"]["steps"] == list(range(61))
    assert data["axes"]["tokens"] == sorted(data["axes"]["tokens"])


def test_hours_begin_with_the_first_step_and_tokens_add_up() -> None:
    rows = [{"step": n, "time": 1000.0 + 360 * n, "seconds_step": 360, "tokens_trained": 2e6} for n in (1, 2)]
    assert axes(rows) == {"steps": [0, 1, 2], "hours": [0, 0.1, 0.2], "tokens": [0, 2, 4]}
    assert axes([{"step": 1}])["hours"] == []


def score(version: int, right: int) -> dict[str, Any]:
    table = {f"q{n}": [f"t{n}", right, 4] for n in range(20)}
    return {"set": "s", "n": 4, "temperature": 0.6, "pass_at_1": right / 4, "ci95": [0.2, 0.8],
            "weight_version": version, "per_problem": table}  # fmt: skip


def test_a_gain_is_paired_and_a_verdict_needs_its_interval() -> None:
    told = headline([score(0, 1), score(5, 3), score(9, 2)])
    assert (told["gain"], told["gain_ci95"], told["verdict"]) == (0.25, [0.25, 0.25], "better")
    assert (told["best"]["pass_at_1"], told["best"]["version"]) == (0.75, 5)
    assert headline([score(0, 2), score(1, 1)])["verdict"] == "worse"
    assert headline([score(0, 2), score(1, 2)])["verdict"] == "unclear"
    assert headline([score(0, 2)])["verdict"] == "single"
    assert headline([score(0, 1), score(1, 3) | {"per_problem": {}}])["verdict"] == "unclear"


def test_the_sampled_pass_rate_counts_flat_groups_and_takes_groups_as_its_unit() -> None:
    groups = [GroupRecord(weight_version=3, verdicts=["accepted"] * n + ["no_code"] * (4 - n)) for n in (1, 2, 3)]
    ((version, mean, low, high),) = sampled(groups)
    assert (version, mean) == (3, 0.5)
    assert high - mean == pytest.approx(1.96 * 0.25 / 3**0.5)
    assert mean - low == pytest.approx(high - mean)


def test_the_parts_of_the_time_are_the_whole_of_it() -> None:
    rows = [{"seconds_step": 10, "seconds_wait": 4, "seconds_train": 3.5}] * 2
    assert [part[:2] for part in time_parts(rows)] == [["Waiting for rollouts", 8], ["Training", 7], ["Other", 5]]


def test_a_counter_that_starts_again_is_added_up() -> None:
    rows: Rows = [{"resubmitted_failure": value} for value in (2, 3, 1, None, "x", 4)]
    (fault,) = faults(RunRecords(environment_metrics=rows), {})
    assert fault.text == "7 failed requests to generation, sent again"


def test_refused_system_calls_are_a_chart_a_line_and_part_of_the_rollout() -> None:
    rows: Rows = [{"step": 1, "attempts": {}}, {"step": 2, "attempts": {"sockets": 3}}, {"step": 3}]
    rows.append({"step": 4, "attempts": {"sockets": 1, "other_processes": 2}})
    (chart,) = refused(rows)
    assert {line["name"]: line["points"] for line in chart["series"]} == {
        "other processes": [[1, 0], [2, 0], [4, 2]],
        "sockets": [[1, 0], [2, 3], [4, 1]],
    }
    assert [fault.text for fault in faults(RunRecords(environment_metrics=rows), {})] == [
        "Programs made system calls that the sandbox refused: sockets 4, other processes 2"
    ]
    untold: Rows = [{"step": 1, "attempts": None}]
    assert refused(untold) == []
    assert faults(RunRecords(environment_metrics=untold), {}) == []
    for attempts, words in (({"sockets": 2, "kernel": 1}, "kernel 1, sockets 2"), (None, ""), (UNSET, "")):
        record = RolloutRecord(verdict=VerdictRecord("accepted", attempts=attempts))
        assert rollout(record)["refused"] == words


def test_a_run_is_running_while_its_trainer_holds_the_lock_and_finished_after_the_last_step(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    rows, settings = [{"step": 3}], {"steps": 4}
    with (tmp_path / "trainer.lock").open("a") as lock:
        assert state(tmp_path, rows, settings, False, LATER).kind == "died"
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert state(tmp_path, rows, settings, False, LATER).text == "Running: step 3 of 4 is done."
    assert state(tmp_path, rows, {"steps": 3}, False, LATER).kind == "finished"
    kept = tmp_path / "checkpoints" / "step-00000003"
    kept.mkdir(parents=True)
    (kept / "meta.json").write_text("{}")
    assert state(tmp_path, rows, settings, False, LATER).kind == "stopped"


def test_a_trainer_that_a_signal_ended_was_stopped_and_did_not_die(tmp_path: Path) -> None:
    run = make_run(tmp_path / "mine", steps=3)
    (run / "logs" / "trainer.log").write_text(
        "2026-11-27 trainer.process.signals SIGTERM: ending the step and saving\n"
    )
    told = collect(run, 0, LATER)["overview"]["state"]
    assert told["kind"] == "stopped"
    assert told["text"].startswith("Stopped by a signal after step 3 of 80, ")


def test_the_folder_one_stands_in_has_commands_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make_run(tmp_path / "my run", steps=3))
    told = dict(collect(Path(), 0, LATER)["overview"]["commands"])
    assert told["Export the model"] == f"atropos export '{tmp_path}/my run' --out '{tmp_path}/my run-model'"


def test_every_line_of_a_chart_has_a_sentence_and_a_name_of_its_own() -> None:
    for chart in CHARTS:
        assert set(chart.lines) <= {*METRICS, *SENTENCES}
    for chart in ENVIRONMENT_CHARTS:
        assert set(chart.lines) <= set(SENTENCES)
    titles = [chart.title for chart in (*CHARTS, *ENVIRONMENT_CHARTS)]
    assert len(titles) == len(set(titles))
    (drawn,) = curves([{"step": 1, "entropy": 0.5}])
    assert drawn["series"][0]["hint"] == METRICS["entropy"].sentence


def test_a_group_shows_the_advantages_that_its_objective_takes() -> None:
    group = GroupRecord(
        group_id="g", scores=[1, -1, -1, -1], overlong=[False, False, False, True], verdicts=["accepted"]
    )
    env = {"env": {"overlong_baseline": "include"}}
    plain = by_group([group], {"g"}, {"objective": {"name": "dr_grpo"}}, env)["g"]["advantages"]
    assert plain == [1.5, -0.5, -0.5, 0.0]
    scaled = by_group([group], {"g"}, {"objective": {"name": "dapo", "overlong_baseline": "exclude"}}, {})["g"]
    assert scaled["advantages"] == [1.4142, -0.7071, -0.7071, 0.0]
    assert by_group([msgspec.structs.replace(group, scores=[])], {"g"}, {}, {})["g"]["advantages"] is None


def test_a_problems_rollouts_are_kept_in_the_order_in_which_they_ended() -> None:
    rows = [GroupRecord(problem_id="p", weight_version=n, verdicts=["accepted"], group_id=str(n)) for n in (2, 1)]
    assert by_problem([*rows, GroupRecord(problem_id="q")]) == {
        "p": [[2, ["accepted"], None, "2"], [1, ["accepted"], None, "1"]]
    }


def test_the_data_of_the_page_are_json(data: dict[str, Any]) -> None:
    json.dumps(data, allow_nan=False)
