"""Judged samples of problems from the running servers: what an evaluation and the filter of a data set are made of."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

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


@dataclass(frozen=True)
class Draws:
    """How an evaluation samples. greedy: one answer per problem without sampling; n and temperature are not used then.

    Every request carries a seed of its own, made of `seed`, the problem and the sample's number, so that two
    evaluations with equal seeds draw with equal random numbers and differ by the weights alone.
    """

    n: int
    temperature: float
    greedy: bool
    max_new_tokens: int | None
    top_p: float = 1.0
    seed: int = 0

    @property
    def each(self) -> int:
        """Samples of a problem."""
        return 1 if self.greedy else self.n

    @property
    def sampling(self) -> SamplingParams:
        """Of each request."""
        if self.greedy:
            return SamplingParams(self.max_new_tokens, 0.0, 1.0)
        return SamplingParams(self.max_new_tokens, self.temperature, self.top_p)


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
    draw = _Draw(pipeline, name, sampling, seed, samples, grading, prompts, pinned, len(wanted))
    left = iter(wanted)
    await all_of([draw.work(left) for _ in range(min(len(wanted), _WAITING * pipeline.max_concurrent))])
    return [draw.found[problem.id, index] for problem, index in wanted]


@dataclass
class _Draw:
    """One call of `draw_samples`: what it was given, and what there is so far."""

    pipeline: Pipeline
    name: str
    sampling: SamplingParams
    seed: int
    samples: SampleStore | None
    grading: Sequence[GradingProfile]
    prompts: PromptBuilder | None
    pinned: int | None
    wanted: int
    found: dict[tuple[str, int], Sample] = field(default_factory=dict)
    right: int = 0

    async def work(self, left: Iterator[tuple[Problem, int]]) -> None:
        """Draws one sample after the other, of what nobody has begun yet."""
        for problem, index in left:
            kept = self.samples.kept.get((problem.id, index)) if self.samples is not None else None
            sample = kept or await self._generated(problem, index)
            if self.samples is not None and kept is None and sample.status is not None:
                self.samples.add(sample)
            self.found[problem.id, index] = sample
            self.right += sample.status == "accepted"
            self._log()

    async def _generated(self, problem: Problem, index: int) -> Sample:
        drawn = replace(self.sampling, seed=request_seed(self.seed, problem.id, index))
        limits = self.grading[0].limits if self.grading else None
        try:
            judged = await self.pipeline.run(problem, drawn, limits=limits, prompts=self.prompts)
            _check_version(judged.sample, self.pinned)
            assert judged.verdict is not None  # overlong answers are judged as well
            verdicts = {profile.name: judged.verdict for profile in self.grading}
            if judged.code is not None:
                for profile in self.grading[1:]:
                    verdicts[profile.name] = await self.pipeline.judge(problem, judged.code, profile.limits)
        except VerifierError as error:
            logger.error("problem %s, sample %d: no verdict: %s", problem.id, index, error)
            return as_sample(problem, index, None)
        return as_sample(problem, index, judged, verdicts)

    def _log(self) -> None:
        done, share = len(self.found), 100 * self.right / len(self.found)
        if done % max(1, self.wanted // 10) == 0:
            logger.info("%s: %d of %d samples, %.1f %% of them right", self.name, done, self.wanted, share)


def _check_version(sample: Completion, pinned: int | None) -> None:
    if pinned is not None and (others := {version for version, _, _ in sample.versions} - {pinned}):
        raise WeightsMoved(f"a server has the weights of step {max(others)} while those of step {pinned} are evaluated")
