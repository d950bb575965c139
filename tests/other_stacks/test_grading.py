"""The forty programs through what all adapters share, and through those that need no host."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from environments.common.errors import ConfigError
from environments.dataset.miniature import make
from environments.livecode.problems.load import load_problems
from environments.livecode.problems.problem import ProblemError
from environments.livecode.problems.prompts import SYSTEM
from integrations import grading, trl_reward, verl_reward
from integrations.grading import BlockingGrader, Judging, NoVerdict, problem_of, problem_text
from tests.dataset.test_build import run as build_data
from tests.other_stacks.programs import ANSWERS, FAULT, FAULTY, PROBLEMS, Answer

BY_ID = {problem.id: problem for problem in [*PROBLEMS, FAULT]}
LIMITS = {"time_limit_s": 2.0, "memory_limit_mb": 512}
REWARDS = [1.0 if answer.status == "accepted" else -1.0 for answer in ANSWERS]


@pytest.fixture(scope="module", autouse=True)
def limits() -> Iterator[None]:
    """The options of hosts that give none; the shared grader is closed with them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIVECODE_TIME_LIMIT_S", "2")
        patch.setenv("LIVECODE_MEMORY_LIMIT_MB", "512")
        yield
    for grader in grading._shared.values():
        grader.close()
    grading._shared.clear()


@pytest.fixture(scope="module")
def grader() -> Iterator[BlockingGrader]:
    grader = BlockingGrader(Judging(**LIMITS))  # type: ignore[arg-type]
    yield grader
    grader.close()


def test_there_are_forty_answers() -> None:
    assert len(ANSWERS) == 40


def test_every_answer_gets_its_verdict_and_a_fault_of_ours_none(grader: BlockingGrader) -> None:
    grades = grader.grade_all([(BY_ID[one.problem], one.text) for one in [*ANSWERS, FAULTY]])
    found = [grade.status if not isinstance(grade, NoVerdict) else "no verdict" for grade in grades]
    assert found == [*(one.status for one in ANSWERS), "no verdict"]


def test_trl_gets_a_reward_for_each_verdict_and_none_for_a_fault() -> None:
    logged: dict[str, float] = {}
    rewards = trl_reward.livecode_reward(
        completions=[[{"role": "assistant", "content": one.text}] for one in [*ANSWERS, FAULTY]],
        problem=[problem_text(BY_ID[one.problem]) for one in [*ANSWERS, FAULTY]],
        prompts=[],
        log_metric=logged.__setitem__,
    )
    assert rewards == [*REWARDS, None]
    assert logged == {"livecode/no_verdict": 1.0, "livecode/pass_at_1": REWARDS.count(1.0) / 40}


def test_verl_gets_a_score_for_each_verdict_and_an_error_for_a_fault() -> None:
    def score(one: Answer) -> dict[str, object]:
        return verl_reward.compute_score(
            data_source="atropos-livecode",
            solution_str=one.text,
            ground_truth=problem_text(BY_ID[one.problem]),
            extra_info={},
        )

    assert [score(one)["score"] for one in ANSWERS] == REWARDS
    with pytest.raises(NoVerdict, match="problem fault: no verdict: checker_failed"):
        score(FAULTY)
    with pytest.raises(ValueError, match="scores 'atropos-livecode' alone"):
        verl_reward.compute_score("gsm8k", "", "")


def test_lm_eval_gets_the_mean_of_the_samples_with_a_verdict() -> None:
    from integrations.lm_eval_tasks import livecode

    texts = [one.text for one in ANSWERS if one.problem == "sum"][:4]
    doc = {"id": "sum", "problem": problem_text(BY_ID["sum"])}
    assert livecode.process_results(doc, [texts]) == {"no_verdict": 0.0, "pass@1": 0.75}
    doc = {"id": "fault", "problem": problem_text(FAULT)}
    assert livecode.process_results(doc, [[FAULTY.text]]) == {"no_verdict": 1.0}


def test_the_task_of_lm_eval_says_the_benchmarks_system_message() -> None:
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: node.value)
    path = Path(grading.__file__).parent / "lm_eval_tasks" / "livecodebench_v6_window.yaml"
    assert yaml.load(path.read_text(), Loader)["description"] == SYSTEM


def test_a_problem_is_the_same_after_its_way_through_a_column() -> None:
    for problem in BY_ID.values():
        assert problem_of(problem_text(problem)) == problem


def test_large_tests_stay_on_disk_on_their_way_through_a_column(tmp_path: Path) -> None:
    make.write(tmp_path)
    build_data(tmp_path, tmp_path / "built", recipe="miniature")
    for problem in load_problems(tmp_path / "built" / "test")[:3]:
        text = problem_text(problem)
        assert len(text) < 10_000
        again = problem_of(text)
        assert [again.tests[0], len(again.tests), again.id] == [problem.tests[0], len(problem.tests), problem.id]


def test_rows_for_verl_come_back_from_the_file(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    assert verl_reward.write("warmup:new_instances", tmp_path / "rows.parquet") == 40
    row = pq.read_table(tmp_path / "rows.parquet").to_pylist()[0]
    assert list(row) == ["data_source", "prompt", "ability", "reward_model", "extra_info"]
    assert problem_of(row["reward_model"]["ground_truth"]).id == row["extra_info"]["id"]


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "its column is not JSON"), ("[]", "holds a list, need an object"), ("{}", "id: Field required")],
)
def test_a_column_that_holds_no_problem_is_one_clear_error(text: str, message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        problem_of(text)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("LIVECODE_VERIFIER_WORKERS", "many", "LIVECODE_VERIFIER_WORKERS = 'many': give a number"),
        ("LIVECODE_VERIFIER_WORKERS", "0", "workers = 0: give at least 1"),
        ("LIVECODE_TIME_LIMIT_S", "-1", "time_limit_s = -1.0: give a number above 0"),
        ("LIVECODE_VERIFIER_URLS", "judge:8000", "'judge:8000' is no address"),
    ],
)
def test_a_wrong_option_is_one_clear_error(
    variable: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=message):
        Judging.from_environment()


def test_an_unknown_profile_is_one_clear_error() -> None:
    with pytest.raises(ConfigError, match="profile = 'mine': choose livecodebench or nouscoder"):
        grading.of_profile("mine")
