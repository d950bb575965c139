"""TRL: rewards of GRPOTrainer (and every trainer of its that takes reward functions), and its data set.

    from integrations.trl_reward import livecode_reward, rows
    GRPOTrainer(model=..., reward_funcs=livecode_reward, train_dataset=Dataset.from_list(rows("warmup:train")))

A sample without a verdict is None: TRL keeps it out of its group's mean and gives it no advantage.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from environments.livecode.problems.prompts import Scaffold, messages
from integrations.grading import (
    BlockingGrader,
    Judging,
    NoVerdict,
    answer_text,
    problem_of,
    problem_text,
    problems_named,
    shared_grader,
)

logger = logging.getLogger(__name__)

Reward = Callable[..., list[float | None]]


def rows(problems: str, seed: int = 0, scaffold: Scaffold = "livecodebench") -> list[dict[str, Any]]:
    """{prompt: a chat, problem: what `livecode_reward` reads} of a split, a JSONL file or a warm-up set."""
    return [
        {"prompt": messages(problem, scaffold=scaffold), "problem": problem_text(problem)}
        for problem in problems_named(problems, seed)
    ]


def livecode_reward(
    completions: Sequence[Any], problem: Sequence[str], log_metric: Any = None, **_: Any
) -> list[float | None]:
    """+1 for each completion whose program passes every test, -1 for any other, None where there is no verdict.

    Judged as the variables LIVECODE_... say (`Judging.from_environment`).
    """
    return _rewards(shared_grader(), completions, problem, log_metric)


def reward_function(judging: Judging) -> Reward:
    """`livecode_reward` judged as the options say."""

    def livecode_reward(
        completions: Sequence[Any], problem: Sequence[str], log_metric: Any = None, **_: Any
    ) -> list[float | None]:
        return _rewards(shared_grader(judging), completions, problem, log_metric)

    return livecode_reward


def _rewards(
    grader: BlockingGrader, completions: Sequence[Any], problems: Sequence[str], log_metric: Any
) -> list[float | None]:
    answers = [
        (problem_of(text), answer_text(completion)) for text, completion in zip(problems, completions, strict=True)
    ]
    grades = grader.grade_all(answers)
    missing = [grade for grade in grades if isinstance(grade, NoVerdict)]
    for fault in missing:
        logger.warning("%s", fault)
    if log_metric is not None:
        judged = [grade for grade in grades if not isinstance(grade, NoVerdict)]
        log_metric("livecode/no_verdict", float(len(missing)))
        if judged:
            log_metric("livecode/pass_at_1", sum(grade.accepted for grade in judged) / len(judged))
    return [None if isinstance(grade, NoVerdict) else grade.reward for grade in grades]
