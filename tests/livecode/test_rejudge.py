"""A run's programs judged again: what is equal, what changes, what of it matters for training."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from environments.cli import app
from environments.livecode.command import run_process
from environments.livecode.config import RunConfig
from environments.livecode.environment import LivecodeEnv
from environments.livecode.problems.load import save_problems
from environments.livecode.problems.problem import Problem, TestCase
from environments.livecode.records.programs import unpacked
from environments.livecode.records.schema import GroupRecord, ProgramsRecord, VerdictRecord
from environments.tools.rejudge import Comparison, Results, compare_groups, recorded

ANSWERS = {
    "right": "```python\nprint(int(input()) + 1)\n```",
    "wrong": "```python\nprint(int(input()) + 2)\n```",
    "error": "```python\nraise SystemExit(str(1 / 0))\n```",
    "prose": "I do not know.",
}


def problems(path: Path, add: int) -> None:
    """Two problems whose answer is n + `add`."""
    tests = [TestCase(input=f"{n}\n", output=f"{n + add}\n") for n in (1, 7)]
    save_problems(
        [Problem(id=f"p{number}", source="t", kind="stdin", statement=f"Variant {number}.", tests=tests)
         for number in range(2)], path,
    )  # fmt: skip


@pytest.fixture
async def run(tmp_path: Path, model_dir: Path, generation: Any) -> Path:
    """A run of two groups of four with every program recorded; its folder says how it was made."""
    problems(tmp_path / "problems.jsonl", 1)
    options: dict[str, Any] = {
        "model": str(model_dir),
        "servers": [generation.url],
        "env": {
            "problems": str(tmp_path / "problems.jsonl"), "group_size": 4, "context": 2048, "max_new_tokens": 100,
            "run_dir": str(tmp_path / "run"), "max_concurrent_rollouts": 4, "record_programs": True,
            "record_rollouts_per_group": 1, "verifier_workers": 1,
        },
        "process": {"groups": 2},
    }  # fmt: skip
    turns: Counter[str] = Counter()

    def script(prompt: str, number: int) -> dict[str, Any]:
        turns[prompt] += 1
        return {"text": list(ANSWERS.values())[turns[prompt] % 4]}

    generation.script = script
    await run_process(LivecodeEnv, RunConfig.model_validate(options))
    config = tmp_path / "run" / "config" / "environment.yaml"
    config.parent.mkdir()
    config.write_text(yaml.safe_dump(options | {"env": options["env"] | {"record_programs": False}}))
    return tmp_path / "run"


def rejudge(run: Path, out: Path, *words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["rejudge", str(run), "--out", str(out), *words])
    assert result.exit_code in (0, 1), (result.output, result.exception)
    return result.exit_code, result.stdout


def test_every_program_of_a_run_is_recorded_once(run: Path) -> None:
    found = list(recorded(run, evaluations=False))
    assert len(found) == len({one.key for one in found}) == 8
    statuses = ["accepted", "wrong_answer", "runtime_error", "no_code"]
    assert Counter(one.before.status for one in found) == dict.fromkeys(statuses, 2)
    assert (
        sorted(code for code in (one.code for one in found) if code and "+ 1" in code)
        == ["print(int(input()) + 1)"] * 2
    )


def test_the_same_judge_changes_nothing(run: Path, tmp_path: Path) -> None:
    code, shown = rejudge(run, tmp_path / "again")
    assert code == 0
    assert "6 programs judged again: 6 have the same status" in shown
    assert "groups with every program recorded: 2; advantages change sign or vanish in 0; 0 would be dropped" in shown


def test_other_tests_change_rewards_and_the_groups_that_train(run: Path, tmp_path: Path) -> None:
    problems(tmp_path / "others.jsonl", 2)
    code, shown = rejudge(run, tmp_path / "others", "--env.problems", str(tmp_path / "others.jsonl"))
    assert code == 1
    assert "2  accepted -> wrong_answer" in shown
    assert "2  wrong_answer -> accepted" in shown
    assert "groups with every program recorded: 2; advantages change sign or vanish in 2; 0 would be dropped" in shown
    changed = [json.loads(line) for line in (tmp_path / "others" / "changed.jsonl").read_text().splitlines()]
    assert Counter((row["before"], row["after"]) for row in changed) == {
        ("accepted", "wrong_answer"): 2,
        ("wrong_answer", "accepted"): 2,
    }
    assert all(row["now"] for row in changed if row["after"] == "wrong_answer")


def test_a_second_run_judges_only_what_is_missing(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    assert rejudge(run, out, "--limit", "3")[0] == 0
    first = (out / "rejudged.jsonl").read_text()
    with (out / "rejudged.jsonl").open("a") as stream:
        stream.write('{"key": "torn')
    code, shown = rejudge(run, out)
    assert code == 0
    assert "6 programs judged again: 6 have the same status" in shown
    whole = (out / "rejudged.jsonl").read_text()
    assert whole.startswith(first)
    keys = [json.loads(line)["key"] for line in whole.splitlines() if line.endswith("}")]
    assert len(keys) == len(set(keys)) == 6


def test_ctrl_c_keeps_the_verdicts_and_says_how_to_continue(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "again"
    add = Results.add

    def stopped(self: Results, key: str, verdict: VerdictRecord) -> None:
        add(self, key, verdict)
        if len(self.known) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Results, "add", stopped)
        result = CliRunner().invoke(app, ["rejudge", str(run), "--out", str(out)])
    assert result.exit_code == 130
    assert f"stopped: the verdicts so far are in {out}" in result.output
    assert len((out / "rejudged.jsonl").read_text().splitlines()) == 2
    code, shown = rejudge(run, out)
    assert (code, "6 programs judged again: 6 have the same status" in shown) == (0, True)
    assert len((out / "rejudged.jsonl").read_text().splitlines()) == 6


def test_verdicts_by_other_rules_are_not_mixed(run: Path, tmp_path: Path) -> None:
    rejudge(run, tmp_path / "again")
    result = CliRunner().invoke(app, ["rejudge", str(run), "--out", str(tmp_path / "again"), "--profile", "nouscoder"])
    assert "holds verdicts by other rules" in result.output
    bad = CliRunner().invoke(app, ["rejudge", str(run), "--out", str(tmp_path / "x"), "--profile", "verl"])
    assert bad.exit_code == 2


def test_a_problem_that_is_gone_is_counted(run: Path, tmp_path: Path) -> None:
    rows = (tmp_path / "problems.jsonl").read_text().splitlines()
    (tmp_path / "less.jsonl").write_text(rows[0] + "\n")
    code, shown = rejudge(run, tmp_path / "less", "--env.problems", str(tmp_path / "less.jsonl"))
    assert code == 0
    assert "left out: 3 programs whose problem is not in env.problems" in shown
    assert "groups with every program recorded: 1;" in shown


def test_a_folder_without_programs_is_one_error(tmp_path: Path) -> None:
    for folder, words in ((tmp_path / "none", "no such folder"), (tmp_path, "no program is recorded there")):
        result = CliRunner().invoke(app, ["rejudge", str(folder), "--out", str(tmp_path / "out"), "--model", "m"])
        assert words in result.output


@pytest.mark.parametrize(
    ("before", "after", "overlong", "counts"),
    [
        ("accepted wrong_answer", "accepted runtime_error", [0, 0], (1, 0, 0, 0)),
        ("accepted wrong_answer", "wrong_answer wrong_answer", [0, 0], (1, 1, 1, 0)),
        ("wrong_answer wrong_answer", "accepted wrong_answer", [0, 0], (1, 1, 0, 1)),
        ("accepted wrong_answer", "wrong_answer wrong_answer", [0, 1], (1, 1, 1, 0)),
        ("accepted wrong_answer", "accepted accepted", [1, 1], (1, 0, 0, 0)),
        ("accepted overlong wrong_answer", "accepted overlong accepted", [0, 1, 0], (1, 1, 1, 0)),
        ("accepted", "wrong_answer", [0, 0], (0, 0, 0, 0)),  # one of two is recorded: nothing can be said
    ],
)
def test_a_group_changes_where_a_sign_of_its_advantages_does(
    before: str, after: str, overlong: list[int], counts: tuple[int, int, int, int]
) -> None:
    found = Comparison()
    found.statuses["g"] = dict(enumerate(zip(before.split(), after.split(), strict=True)))
    baseline = "exclude" if "overlong" in before else "include"
    compare_groups(found, [GroupRecord(group_id="g", overlong=[bool(one) for one in overlong])], baseline)
    assert (found.groups, found.groups_changed, found.groups_dropped, found.groups_new) == counts


@pytest.mark.parametrize("packed", ["", "!", "AAAA", "eJyLrgUAAXUA+Q=="])
def test_a_damaged_line_holds_no_program(packed: str) -> None:
    assert unpacked(ProgramsRecord(group_id="g", problem_id="p", programs=packed)) == []
