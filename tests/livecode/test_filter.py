"""`atropos data filter`: what a model always (or never) solves goes, the rates of the rest stay, nothing is lost."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from environments.cli import app
from environments.dataset.filter import excluded, pass_rates
from environments.livecode.evaluation.samples import Sample
from environments.livecode.problems.load import load_problems, save_problems
from environments.livecode.problems.problem import Problem, TestCase
from environments.livecode.problems.sampler import LearnableSampler
from environments.livecode.problems.stored_tests import SCHEMA, write_rows
from tests.support.forked import Forked
from verifier_app.judge.store import TestStore, encode_tests

RIGHT, WRONG = "```python\nprint(int(input()) + 1)\n```", "```python\nprint(0)\n```"
TESTS = [{"input": "1\n", "output": "2\n"}]


def problem(name: str) -> Problem:
    statement = f"Add one. ({name})"
    return Problem(id=name, source="t", kind="stdin", statement=statement, tests=[TestCase(**test) for test in TESTS])


PROBLEMS = [problem(name) for name in ("always", "half", "never")]


class Model:
    """Answers by problem: always right, right every second time, never."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()

    def __call__(self, prompt: str, number: int) -> dict[str, Any]:
        name = next(one.id for one in PROBLEMS if f"({one.id})" in prompt)
        self.asked[name] += 1
        right = name == "always" or (name == "half" and self.asked[name] % 2)
        return {"text": RIGHT if right else WRONG}


def words(generation: Any, model_dir: Path, split: Path, *more: str) -> list[str]:
    return [
        *("data", "filter", str(split), "--samples", "4", "--model", str(model_dir), "--servers", generation.url),
        *("--env.verifier_workers", "1", "--env.max_new_tokens", "50", *more),
    ]


def run(*argv: str) -> Any:
    result = CliRunner().invoke(app, list(argv))
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture
def split(tmp_path: Path) -> Path:
    save_problems(PROBLEMS, tmp_path / "train.jsonl")
    return tmp_path / "train.jsonl"


def test_what_is_always_solved_goes_and_the_rest_keeps_its_rates(generation: Any, model_dir: Path, split: Path) -> None:
    generation.script = Model()
    run(*words(generation, model_dir, split))
    out = split.with_name("train-filtered")
    assert {one.id: one.pass_rate for one in load_problems(out / "problems.jsonl")} == {"half": 0.5, "never": 0.0}
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["excluded"] == {"always_solved": ["always"]}
    assert manifest["problems"] == {"source": 3, "measured": 3, "left": 2}
    assert manifest["rates"] == {"0": 1, "0.5": 1, "1": 1}
    told = {name: manifest["settings"][name] for name in ("temperature", "max_new_tokens", "context", "model")}
    assert told == {"temperature": 1.0, "max_new_tokens": 50, "context": 4096, "model": str(model_dir)}
    assert {body["sampling_params"]["temperature"] for body in generation.requests} == {1.0}
    # What is never solved goes where it is asked for, and no sample is generated again for that.
    run(*words(generation, model_dir, split, "--leave-out-never"))
    assert [one.id for one in load_problems(out / "problems.jsonl")] == ["half"]
    assert json.loads((out / "manifest.json").read_text())["excluded"]["never_solved"] == ["never"]
    assert len(generation.requests) == 12


def test_more_samples_add_to_those_that_are_there_and_other_settings_begin_anew(
    generation: Any, model_dir: Path, split: Path
) -> None:
    generation.script = Model()
    run(*words(generation, model_dir, split))
    more = [word if word != "4" else "6" for word in words(generation, model_dir, split)]
    run(*more)
    assert generation.script.asked == {"always": 6, "half": 6, "never": 6}
    run(*more, "--env.temperature", "0.5")
    assert generation.script.asked == {"always": 12, "half": 12, "never": 12}


def test_a_built_split_keeps_its_test_sets_and_gets_the_rates(generation: Any, model_dir: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    sha = TestStore(data / "tests").put(TESTS)["sha256"]
    columns = {"tests_sha256": sha, "tests_count": 1, "tests_bytes": len(encode_tests(TESTS))}
    rows = [{name: getattr(one, name, None) for name in SCHEMA.names} | columns for one in PROBLEMS]
    write_rows(data / "train" / "problems.parquet", rows)
    generation.script = Model()
    run(*words(generation, model_dir, data / "train"))
    left = load_problems(data / "train-filtered")
    assert {one.id: one.pass_rate for one in left} == {"half": 0.5, "never": 0.0}
    assert [test.output for test in left[0].tests] == ["2\n"]
    refused = CliRunner().invoke(app, words(generation, model_dir, data / "train", "--out", str(tmp_path / "else")))
    assert refused.exit_code == 2
    assert "a built split's test sets are in" in refused.output


def test_a_death_loses_no_sample(generation: Any, model_dir: Path, split: Path) -> None:
    held = threading.Event()
    model = Model()

    def script(prompt: str, number: int) -> dict[str, Any]:
        return model(prompt, number) | ({} if number < 7 else {"until": held})

    generation.script = script
    argv = words(generation, model_dir, split, "--env.max_concurrent_rollouts", "8")
    process = Forked([sys.executable, "-m", "environments.cli", *argv], stderr=subprocess.PIPE)
    kept = split.with_name("train-filtered") / "samples"
    try:
        until = time.monotonic() + 120
        while sum(path.read_bytes().count(b"\n") for path in kept.glob("rates-*.jsonl")) < 7:
            assert process.poll() is None, process.communicate()[1].decode()
            assert time.monotonic() < until
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    held.set()
    asked = len(generation.requests)
    generation.script = model
    run(*argv)
    assert len(generation.requests) - asked == 12 - 7
    left = load_problems(split.with_name("train-filtered") / "problems.jsonl")
    assert sorted(one.id for one in left) == ["half", "never"]


def test_a_problem_whose_verdicts_are_not_all_there_stays() -> None:
    rows: list[Sample] = [Sample(p, 0, s) for p, s in (
        ("a", "accepted"), ("a", "accepted"), ("b", "accepted"), ("b", None), ("c", None), ("c", None),
        ("d", "wrong_answer"), ("d", "no_code"), ("e", "wrong_answer"), ("e", None),
    )]  # fmt: skip
    rates, incomplete = pass_rates(rows, 2)
    assert (rates, incomplete) == ({"a": 1.0, "b": 1.0, "d": 0.0, "e": 0.0}, {"b", "c", "e"})
    assert excluded(rates, incomplete, True) == {"always_solved": ["a"], "never_solved": ["d"]}
    assert excluded(rates, incomplete, False) == {"always_solved": ["a"]}


def test_the_learnable_sampler_begins_with_the_measured_rates() -> None:
    rates = {"x": 0.5, "y": 0.0, "z": None}
    problems = [problem(name).model_copy(update={"pass_rate": rate}) for name, rate in rates.items()]
    assert LearnableSampler(problems, 0).state()["rates"] == {"x": 0.5, "y": 0.0, "z": 0.5}
    sampler = LearnableSampler(problems, 0)
    drawn = Counter(sampler.next().id for _ in range(1300))
    assert drawn["x"] + drawn["z"] == pytest.approx(1300 * 0.6 / 0.65, abs=60)


def test_none_left_is_an_error(generation: Any, model_dir: Path, tmp_path: Path) -> None:
    save_problems(PROBLEMS[:1], tmp_path / "easy.jsonl")
    generation.script = Model()
    result = CliRunner().invoke(app, words(generation, model_dir, tmp_path / "easy.jsonl"))
    assert result.exit_code == 2
    assert "of 1 problems none is left: 1 always solved" in result.output
