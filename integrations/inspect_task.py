"""inspect-ai: a set of problems as a task, LiveCodeBench v6's window by default.

    inspect eval integrations/livecodebench_v6_window -T problems=data/test --model ...

pass@1 is the mean over problems of the share of their samples (epochs) that passed, as `atropos evaluate` has it. A
sample without a verdict is unscored: inspect keeps it out of metrics and reducers.
"""

from __future__ import annotations

import asyncio
from typing import Any

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.scorer import Score, Scorer, Target, mean, scorer, stderr
from inspect_ai.solver import TaskState, generate, system_message

from environments.livecode.problems.prompts import SYSTEM, user_message
from integrations.grading import Judging, NoVerdict, of_profile, problem_of, problem_text, problems_named, shared_grader


@task  # type: ignore[untyped-decorator, unused-ignore]
def livecodebench_v6_window(problems: str = "data/test", profile: str = "livecodebench", epochs: int = 1) -> Task:
    """Problems judged by all of their tests.

    Args:
        problems: a split that `atropos data build` made, a JSONL file, or a warm-up set.
        profile: the limits that programs are judged by: livecodebench (official) or nouscoder.
        epochs: samples of each problem.
    """
    samples = [
        Sample(
            id=problem.id,
            input=user_message(problem.statement, problem.starter_code, problem.fn_name),
            target=problem.id,
            metadata={"problem": problem_text(problem)},
        )
        for problem in problems_named(problems)
    ]
    return Task(
        dataset=MemoryDataset(samples, name=str(problems)),
        solver=[system_message(SYSTEM), generate()],
        scorer=all_tests(of_profile(profile)),
        epochs=epochs,
    )


@scorer(metrics=[mean(), stderr()], name="pass@1")  # type: ignore[untyped-decorator, unused-ignore]
def all_tests(judging: Judging | None = None) -> Scorer:
    """1 where the program passes every test, 0 where it does not, unscored where no judge could say."""

    async def score(state: TaskState, target: Target) -> Score:
        problem = problem_of(state.metadata["problem"])
        try:
            grade = await asyncio.to_thread(shared_grader(judging).grade, problem, state.output.completion)
        except NoVerdict as fault:
            return Score.unscored(reason="scoring_failed", explanation=str(fault))
        said: dict[str, Any] = {"status": grade.status}
        return Score(value=float(grade.accepted), explanation=str(grade.verdict.get("message", "")), metadata=said)

    return score  # type: ignore[no-any-return, unused-ignore]
