"""The examples do what their pages say: verdicts of the problems' programs, and packages that pip installs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from environments.livecode.problems.load import load_problems
from environments.livecode.problems.problem import Problem
from environments.livecode.verification.judge_requests import judge_request
from tests.support.forked import completed
from verifier_app.judge import verify

EXAMPLES = Path(__file__).parents[1] / "examples"
PROBLEMS = load_problems(EXAMPLES / "own_problems" / "problems.jsonl")


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.id)
def test_the_solution_of_each_problem_is_right_and_an_empty_program_is_not(problem: Problem) -> None:
    solution = (EXAMPLES / "own_problems" / "solutions" / f"{problem.id}.py").read_text()
    for code, right in ((solution, True), ("pass", False)):
        verdict = verify(judge_request(problem, code, time_limit_s=15, memory_limit_mb=1024))
        assert (verdict["status"] == "accepted") is right, verdict


def installed(name: str, target: Path) -> dict[str, str]:
    """The process environment with an example installed in a folder of its own."""
    source = target / "source"  # building writes beside the sources
    source.mkdir()
    for file in (EXAMPLES / name).iterdir():
        if file.is_file():
            (source / file.name).write_bytes(file.read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    where = ["--no-deps", "--no-build-isolation", "--no-index", "--target", str(target / "site"), str(source)]
    subprocess.run([*pip, *where], check=True, timeout=240)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(target / "site"), str(EXAMPLES.parent)])}


def test_the_environment_is_found_by_its_name_and_asks_its_own_way(tmp_path: Path) -> None:
    env = installed("environment", tmp_path)
    command = [sys.executable, "-m", "environments.cli", "run-env", "terse", "--help"]
    shown = completed(command, **env).stdout
    assert "--env.group-size" in shown or "--env.group_size" in shown
    code = (
        "import json, sys\n"
        "from environments.livecode.problems.load import load_problems\n"
        "from terse_environment import TerseEnv, TersePrompts\n"
        "assert TerseEnv.prompt_builder_cls is TersePrompts\n"
        "print(json.dumps([TersePrompts.chat(None, problem) for problem in load_problems(sys.argv[1])]))"
    )
    problems = str(EXAMPLES / "own_problems" / "problems.jsonl")
    done = completed([sys.executable, "-c", code, problems], **env)
    assert done.returncode == 0, done.stderr
    asked = [chat[0]["content"] for chat in json.loads(done.stdout)]
    assert asked[0] == (
        "Read two integers from one line and print their sum.\n\n"
        "Write a Python program that reads stdin and prints the answer. Answer with one code block."
    )
    assert "function count_even.\n```python\ndef count_even(values):" in asked[2]


def test_the_objective_is_taken_by_its_name(tmp_path: Path) -> None:
    code = (
        "from environments.common.settings import load\n"
        "from trainer.config import TrainerConfig\n"
        "row = load(TrainerConfig, ['--model', 'm', '--run-dir', 'r', '--objective.name', 'dapo_wide']).objective.row\n"
        "print(row.name, row.clip_low, row.clip_high)"
    )
    env = installed("objective", tmp_path)
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "dapo_wide 0.2 0.5"), done.stderr
