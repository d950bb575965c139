"""What `process` and `evaluate` leave behind and print, and what an audit makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from environments.livecode import command
from environments.livecode.config import RunConfig
from environments.livecode.environment import LivecodeEnv
from environments.livecode.evaluation.evaluate import wilson
from environments.livecode.problems.load import save_problems
from environments.livecode.problems.problem import Problem, TestCase
from environments.tools.audit import audit

RIGHT, WRONG = "```python\nprint(int(input()) + 1)\n```", "```python\nprint(0)\n```"


@pytest.fixture
def config(tmp_path: Path, model_dir: Path, generation: Any) -> RunConfig:
    tests = [TestCase(input="1\n", output="2\n")]
    some = [Problem(id=f"p{n}", source="mine", kind="stdin", statement=f"Add one {n}.", tests=tests) for n in range(3)]
    save_problems(some, tmp_path / "problems.jsonl")
    generation.script = lambda prompt, number: {"text": (RIGHT, WRONG)[number % 2]}
    return RunConfig.model_validate(
        {
            "model": str(model_dir),
            "servers": [generation.url],
            "process": {"groups": 2},
            "evaluation": {"n": 2, "greedy": False},
            "env": {"problems": str(tmp_path / "problems.jsonl"), "group_size": 2, "context": 2048,
                    "max_new_tokens": 100, "run_dir": str(tmp_path / "run"), "verifier_workers": 1},
        }
    )  # fmt: skip


def test_process_adds_to_its_file_and_an_audit_knows_its_groups(config: RunConfig) -> None:
    run = Path(config.env.run_dir)
    assert command.run(LivecodeEnv, "process", config) == 0
    first = (run / "groups.jsonl").read_bytes()
    assert command.run(LivecodeEnv, "process", config) == 0
    again = (run / "groups.jsonl").read_bytes()
    assert again.startswith(first)
    assert len(again.splitlines()) == 4
    found = audit(run)
    assert found.violations == []
    assert found.counts["groups written to a file by process"] == 4


def test_evaluate_takes_the_problems_of_env_and_prints_a_summary(
    config: RunConfig, generation: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    generation.script = lambda prompt, number: {"text": RIGHT}
    assert command.run(LivecodeEnv, "evaluate", config) == 0
    shown = capsys.readouterr().out
    run = Path(config.env.run_dir)
    assert f"{config.env.problems}, T 1, 2 samples: 6 of 6 right, 3 problems" in shown
    assert "pass@1 1.000, 95 % bootstrap [1.000, 1.000], Wilson [0.439, 1.000]" in shown
    assert "pass@1 1.000, pass@2 1.000" in shown
    assert "verdicts: accepted 6" in shown
    assert str(run / "evaluations.jsonl") in shown
    (record,) = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    settings = record["settings"]
    assert (settings["prompt_style"], settings["n"], settings["top_p"], settings["like"]) == (
        "livecodebench",
        2,
        1.0,
        None,
    )
    assert settings["graders"] == ["run: 15 s, 4096 MB, exact decimals"]
    assert settings["versions"]["atropos-livecode"]
    assert record["wilson95"] == pytest.approx([0.4385, 1.0], abs=1e-4)
    assert audit(run).lines()[-1].startswith("nothing to prove")
    assert audit(run).counts["evaluations of run, which have no groups"] == 1


@pytest.mark.parametrize("words", [["--like", "nouscoder"], ["--like=nouscoder"]])
def test_like_is_short_for_the_option(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[RunConfig] = []

    def run(_: type[LivecodeEnv], mode: str, config: RunConfig) -> int:
        seen.append(config)
        return 0

    monkeypatch.setattr(command, "run", run)
    assert command.run_command(LivecodeEnv, "evaluate", ["--model", "m", *words]) == 0
    assert seen[0].evaluation.like == "nouscoder"


def test_wilsons_interval_has_a_width_at_the_edges() -> None:
    assert wilson(0.0, 10) == pytest.approx((0.0, 0.27753), abs=1e-4)
    assert wilson(0.5, 10) == pytest.approx((0.23659, 0.76341), abs=1e-4)
