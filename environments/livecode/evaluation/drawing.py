"""Judged samples of problems from the running servers: what an evaluation and the filter of a data set are made of."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace

from environments.common.errors import LivecodeError
from environments.livecode.evaluation.profiles import GradingProfile
from environments.livecode.evaluation.samples import Sample, SampleStore, as_sample, request_seed
from environments.livecode.generation.completions import Completion, SamplingParams
from environments.livecode.pipeline import Pipeline, all_of
from environments.livecode.problems.problem import Problem
from environments.livecode.problems.prompts import PromptBuilder
from environments.livecode.verification.base import VerifierError

logger = logging.getLogger(__name__)

_WAITING = 4
"""Samples under way for each generation slot: enough that the slots stay full while verdicts are waited for."""


class WeightsMoved(LivecodeError, RuntimeError):
    """An answer comes from other weights than those that are evaluated."""


async def draw_samples(
    problems: Sequence[Problem],
    count: int,
    sampling: SamplingParams,
    *,
    pipeline: Pipeline,
    name: str,
    seed: int,
    samples: SampleStore | None = None,
    grading: Sequence[GradingProfile] = (),
    prompts: PromptBuilder | None = None,
    pinned: int | None = None,
) -> list[Sample]:
    """`count` judged samples of every problem, problem by problem in order.

    Args:
        sampling: of each request, which gets a seed of its own, made of `seed`, the problem and the sample's number.
        name: what the set is called in the log.
        samples: where judged samples are kept; those that are there already are not generated again.
        grading: every program is judged by each of these, the first one giving the status; without any, by the
            pipeline's limits.
        prompts: in place of the pipeline's own.
        pinned: the weight version that every token has to come from; None: whichever is served.

    Raises:
        WeightsMoved: a token comes from another version than `pinned`.
        RolloutError: the servers refuse or do not answer in time.
    """
    wanted = [(problem, index) for problem in problems for index in range(count)]
    found: dict[tuple[str, int], Sample] = {}
    right = 0

    async def generated(problem: Problem, index: int) -> Sample:
        drawn = replace(sampling, seed=request_seed(seed, problem.id, index))
        try:
            judged = await pipeline.run(problem, drawn, limits=grading[0].limits if grading else None, prompts=prompts)
            _check_version(judged.sample, pinned)
            assert judged.verdict is not None  # overlong answers are judged as well
            verdicts = {profile.name: judged.verdict for profile in grading}
            if judged.code is not None:
                for profile in grading[1:]:
                    verdicts[profile.name] = await pipeline.judge(problem, judged.code, profile.limits)
        except VerifierError as error:
            logger.error("problem %s, sample %d: no verdict: %s", problem.id, index, error)
            return as_sample(problem, index, None)
        return as_sample(problem, index, judged, verdicts)

    async def work(left: Iterator[tuple[Problem, int]]) -> None:
        nonlocal right
        for problem, index in left:
            kept = samples.kept.get((problem.id, index)) if samples is not None else None
            sample = kept or await generated(problem, index)
            if samples is not None and kept is None and sample["status"] is not None:
                samples.add(sample)
            found[problem.id, index] = sample
            right += sample["status"] == "accepted"
            done = len(found)
            if done % max(1, len(wanted) // 10) == 0:
                logger.info("%s: %d of %d samples, %.1f %% of them right", name, done, len(wanted), 100 * right / done)

    left = iter(wanted)
    await all_of([work(left) for _ in range(min(len(wanted), _WAITING * pipeline.max_concurrent))])
    return [found[problem.id, index] for problem, index in wanted]


def _check_version(sample: Completion, pinned: int | None) -> None:
    if pinned is not None and (others := {version for version, _, _ in sample.versions} - {pinned}):
        raise WeightsMoved(f"a server has the weights of step {max(others)} while those of step {pinned} are evaluated")
