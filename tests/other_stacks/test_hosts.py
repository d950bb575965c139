"""The forty programs through the real packages, each in an environment of its own: the same verdicts in all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from environments.livecode.evaluation.evaluate import scores
from environments.livecode.evaluation.samples import Sample
from environments.livecode.problems.prompts import SYSTEM, user_message
from tests.install.archives import ROOT, build, copy_of_the_tree
from tests.install.hosts import environment, install, run
from tests.other_stacks.programs import numbered, write

pytestmark = pytest.mark.slow  # fetches each host with what it needs, some GB in all

HOSTS: dict[str, tuple[list[str], bool]] = {
    "verifiers": (["verifiers==0.4.0"], False),
    "inspect": (["inspect-ai==0.3.285", "openai"], False),
    "lm_eval": (["lm-eval==0.4.13"], False),
    "openenv": (["openenv-core==0.3.0"], False),
    "trl": (["trl==1.16.0"], True),
    "verl": (
        ["verl==0.9.1", "ray", "tensordict", "omegaconf", "hydra-core", "antlr4-python3-runtime==4.9.3", "codetiming",
         "msgpack", "pyvers"],
        True,
    ),
}  # fmt: skip
"""{host: what to install, whether upon this environment's packages (torch, transformers)}."""
EXPECTED = {
    problem.id: None if answer.status == "no verdict" else answer.status == "accepted" for problem, answer in numbered()
}
LIMITS = {"LIVECODE_TIME_LIMIT_S": "2", "LIVECODE_MEMORY_LIMIT_MB": "512"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", copy_of_the_tree(tmp_path_factory.mktemp("tree")), tmp_path_factory.mktemp("wheel"))


def driven(host: str, wheel: Path, folder: Path, *more: str) -> dict[str, Any]:
    """What drive_HOST.py finds in the host's environment."""
    requirements, upon_ours = HOSTS[host]
    python = environment(host, requirements, upon_ours=upon_ours)
    if not upon_ours:
        install(python, str(wheel))
        install(python, "--force-reinstall", "--no-deps", str(wheel))  # of an earlier tree with the same version
    problems, answers = write(folder)
    driver = Path(__file__).with_name(f"drive_{host}.py")
    done = run(python, str(driver), str(problems), str(answers), *more, cwd=folder, timeout_s=900, **LIMITS)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def accepted(found: dict[str, Any]) -> dict[str, bool | None]:
    return {name: None if value is None else value > 0 for name, value in found["by_problem"].items()}


@pytest.mark.parametrize("host", ["verifiers", "verl", "openenv"])
def test_a_trainer_gets_the_same_verdicts_and_no_reward_of_a_fault(host: str, wheel: Path, tmp_path: Path) -> None:
    found = driven(host, wheel, tmp_path)
    assert accepted(found) == EXPECTED
    assert set(found["by_problem"].values()) == {1.0, -1.0, None}


@pytest.mark.parametrize("host", ["lm_eval", "inspect"])
def test_an_evaluation_has_the_pass_at_1_of_ours(host: str, wheel: Path, tmp_path: Path) -> None:
    found = driven(host, wheel, tmp_path)
    assert accepted(found) == EXPECTED
    problems = [problem for problem, _ in numbered()]
    samples: list[Sample] = [
        Sample(problem.id, 0, None if answer.status == "no verdict" else answer.status)
        for problem, answer in numbered()
    ]
    assert found["pass@1"] == pytest.approx(scores(problems, samples)["pass_at_1"], abs=1e-12)


def test_lm_eval_asks_as_the_benchmark_does(wheel: Path, tmp_path: Path) -> None:
    problem = numbered()[0][0]
    assert driven("lm_eval", wheel, tmp_path)["prompt"] == SYSTEM + user_message(problem.statement)


def test_trl_trains_two_steps_on_warm_up_problems(wheel: Path, tmp_path: Path) -> None:
    found = driven("trl", wheel, tmp_path, str(ROOT / "models" / "SmolLM2-135M-Instruct"))
    assert accepted(found) == EXPECTED
    assert (found["steps"], found["finite"]) == (2, True)
    assert found["rewards"] == [-1.0, -1.0]  # an untrained model writes no program
    assert found["no_verdict"] == [1.0, 1.0]
