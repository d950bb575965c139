"""One problem's rollouts from prompt to reward.

A rollout's generation slot is free the moment its tokens are there: verification waits in a pool of its own.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
import uuid
import zlib
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from environments.common import worker_threads
from environments.common.rewards import FAIL, PASS, drop_reason, reward
from environments.livecode.generation.completions import Completion, SamplingParams
from environments.livecode.generation.vllm_servers import RolloutDeadlineExceeded
from environments.livecode.problems.extraction import extract_code, reasoning_closed
from environments.livecode.problems.problem import Problem
from environments.livecode.problems.prompts import Prompt, PromptBuilder
from environments.livecode.verification.base import JudgeFault, ManyVerifier, Verdict, Verifier, VerifierError
from environments.livecode.verification.group import GroupVerifier
from environments.livecode.verification.judge_requests import judge_request
from environments.livecode.verification.own_limits import NOT_THEIRS, OwnLimits

logger = logging.getLogger(__name__)

T = TypeVar("T")
Verify = Callable[[dict[str, Any]], Awaitable[Verdict]]

NO_CODE: Verdict = {"status": "no_code", "passed": 0, "total": 0, "message": "no fenced block in the answer"}
_REGENERATIONS = 2  # new rollouts in place of one that got no verdict, before its group is given up


class Client(Protocol):
    """Where answers come from."""

    async def answer(self, prompt: Prompt, sampling: SamplingParams) -> Completion:
        """One finished answer; RolloutError where there is none."""
        ...


@dataclass(frozen=True)
class JudgedRollout:
    """A rollout with what became of it. `verdict` is None where it was not judged (overlong, left out)."""

    sample: Completion
    packed: bytes  # the text, see `pack`: few are ever read, and one arrow makes a str twice as large
    code: str | None
    verdict: Verdict | None
    verify_seconds: float

    @property
    def text(self) -> str:
        """The answer, special tokens removed."""
        return zlib.decompress(self.packed).decode("utf-8", "surrogatepass")

    @property
    def overlong(self) -> bool:
        return self.sample.finish_reason == "length"

    @property
    def status(self) -> str:
        return "overlong" if self.verdict is None else str(self.verdict["status"])


def pack(text: str) -> bytes:
    """A text as `JudgedRollout` keeps it."""
    return zlib.compress(text.encode("utf-8", "surrogatepass"), 1)


@dataclass
class JudgedGroup:
    """All rollouts of one problem. `dropped` says why it is not trained on."""

    problem: Problem
    prompt: Prompt
    begun_at_version: int
    group_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    rollouts: list[JudgedRollout] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    dropped: str | None = None
    reason: str = ""
    seconds: float = 0.0

    @property
    def pass_rate(self) -> float:
        """Share of rollouts whose program passed every test; 0 for a group without rollouts."""
        passed = sum(rollout.status == "accepted" for rollout in self.rollouts)
        return passed / len(self.rollouts) if self.rollouts else 0.0

    @property
    def weight_version(self) -> int:
        """The oldest weight version that any token was sampled with."""
        return min(
            (span[0] for rollout in self.rollouts for span in rollout.sample.versions),
            default=self.begun_at_version,
        )


class Pipeline:
    """Generation, extraction and verification of single rollouts, each stage with its own bound.

    Args:
        max_concurrent: rollouts at the servers at the same time.
        on_free: called each time a generation slot becomes free.
        order: the order to run a problem's tests in; None is the order of its file.
        judge_together: one call for the programs of a group, when all of them are there.
    """

    def __init__(
        self,
        *,
        client: Client,
        verifier: Verifier,
        prompts: PromptBuilder,
        max_concurrent: int,
        time_limit_s: float,
        memory_limit_mb: int,
        own_limits: OwnLimits = NOT_THEIRS,
        decimal_tolerance: float | None = None,
        on_free: Callable[[], None] = lambda: None,
        order: Callable[[Problem], list[int] | None] = lambda _: None,
        judge_together: bool = False,
    ) -> None:
        self.prompts = prompts
        self.max_concurrent = max_concurrent
        self.generating = 0  # at a server or waiting for a slot
        self._announced = 0  # will be in a moment
        self._client = client
        self._verifier = verifier
        self._slots = asyncio.Semaphore(max_concurrent)
        self._limits: dict[str, Any] = {
            "time_limit_s": time_limit_s,
            "memory_limit_mb": memory_limit_mb,
            "own_limits": own_limits,
            "decimal_tolerance": decimal_tolerance,
        }
        self._on_free = on_free
        self._order = order
        self._judge_together = judge_together
        self._taken, self._slot_seconds, self._since = 0, 0.0, time.monotonic()

    @property
    def taken(self) -> int:
        """Generation slots that are taken, wanted, or announced."""
        return self.generating + self._announced

    def announce(self, rollouts: int) -> None:
        """So many calls of `run` follow: a task that was created does nothing before its creator waits."""
        self._announced += rollouts

    def together(self, members: int) -> GroupVerifier | None:
        """The verifier of a group whose programs share a container; None where each has its own."""
        if not self._judge_together:
            return None
        assert isinstance(self._verifier, ManyVerifier)
        return GroupVerifier(self._verifier.verify_many, members)

    def slot_seconds(self) -> float:
        """Time that generation slots were taken since the last call, summed over the slots."""
        self._take(0)
        seconds, self._slot_seconds = self._slot_seconds, 0.0
        return seconds

    def _take(self, slots: int) -> None:
        now = time.monotonic()
        self._slot_seconds += self._taken * (now - self._since)
        self._taken, self._since = self._taken + slots, now

    async def run(
        self,
        problem: Problem,
        sampling: SamplingParams,
        *,
        judge_overlong: bool = True,
        verify: Verify | None = None,
        limits: Mapping[str, Any] | None = None,
        prompts: PromptBuilder | None = None,
    ) -> JudgedRollout:
        """One rollout, judged; by `verify` where it is given, otherwise by the pipeline's verifier.

        Args:
            limits: fields of the judge's request in place of the pipeline's own limits.
            prompts: in place of the pipeline's own.

        Raises:
            RolloutError: no rollout could be had.
            VerifierError: no verdict could be had; the rollout must not be scored.
        """
        prompt = (prompts or self.prompts)(problem)
        self.generating += 1
        self._announced = max(0, self._announced - 1)
        try:
            async with self._slots:
                self._take(1)
                try:
                    sample = await self._client.answer(prompt, sampling.within(prompt.room))
                finally:
                    self._take(-1)
        finally:
            self.generating -= 1
            self._on_free()
        packed, code = await worker_threads.answers(self._code_of, sample, prompt)
        if sample.finish_reason == "length" and not judge_overlong:
            return JudgedRollout(sample, packed, code, None, 0.0)
        if code is None:
            return JudgedRollout(sample, packed, None, NO_CODE, 0.0)
        started = time.monotonic()
        request = judge_request(problem, code, order=self._order(problem), **(limits or self._limits))
        verdict = await (verify or self._verifier.verify)(request)
        return JudgedRollout(sample, packed, code, verdict, time.monotonic() - started)

    async def judge(self, problem: Problem, code: str, limits: Mapping[str, Any]) -> Verdict:
        """The verdict on a program that is there already, under these limits; VerifierError where there is none."""
        request = judge_request(problem, code, order=self._order(problem), **limits)
        return await self._verifier.verify(request)

    def _code_of(self, sample: Completion, prompt: Prompt) -> tuple[bytes, str | None]:
        """The answer's text, packed, and its program."""
        if sample.text is None:
            text = str(self.prompts.tokenizer.decode(list(sample.ids), skip_special_tokens=True))
            return pack(text), extract_code(text, prompt.reasoning_open)
        # Only the server knows whether its template opened the reasoning: without the closing mark it took it out.
        return pack(sample.text), extract_code(sample.text, reasoning_closed(sample.text))


@dataclass(frozen=True)
class GroupRules:
    """How rollouts become a scored group."""

    group_size: int
    sampling: SamplingParams
    overlong_baseline: str
    dynamic_sampling: bool


async def make_group(
    pipeline: Pipeline,
    problem: Problem,
    rules: GroupRules,
    *,
    version: int,
    group_id: str | None = None,
    shuffle_seed: int | None = None,
) -> JudgedGroup:
    """All rollouts of a problem in parallel, scored.

    A group that cannot be completed (no verdict, no rollout in time) comes back with dropped = "infrastructure", or
    "judge_fault" where only the judge's own faults at its programs stand in the way;
    a server that refuses raises, since no further group could be made either.

    Args:
        version: the weight version that is served now: the number of batches that were trained.
        group_id: drawn where none is given.
        shuffle_seed: the control experiment: deals the scores out at random, by this seed and the group's id.
    """
    started = time.monotonic()
    group = JudgedGroup(problem, pipeline.prompts(problem), version, group_id or str(uuid.uuid4()))
    together = pipeline.together(rules.group_size)
    tasks = [asyncio.create_task(_rollout(pipeline, problem, rules, together)) for _ in range(rules.group_size)]
    try:
        results = await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        for task in tasks:
            task.cancel()
    group.seconds = time.monotonic() - started
    for result in results:
        if isinstance(result, JudgedRollout):
            group.rollouts.append(result)
        elif isinstance(result, JudgeFault):
            group.dropped, group.reason = group.dropped or "judge_fault", group.reason or str(result)
        elif isinstance(result, VerifierError | RolloutDeadlineExceeded):
            group.dropped, group.reason = "infrastructure", str(result)
        else:
            raise result
    if group.dropped is None:
        shuffle = None if shuffle_seed is None else random.Random(f"{shuffle_seed}/{group.group_id}")
        _score(group, rules, shuffle)
    return group


async def all_of(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all coroutines; the first that fails ends the others and raises as itself."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _rollout(
    pipeline: Pipeline, problem: Problem, rules: GroupRules, together: GroupVerifier | None
) -> JudgedRollout:
    try:
        for left in reversed(range(_REGENERATIONS + 1)):
            try:
                return await pipeline.run(
                    problem,
                    rules.sampling,
                    judge_overlong=rules.overlong_baseline == "include",
                    verify=None if together is None else together.verify,
                )
            except VerifierError as error:
                if not left:
                    raise
                logger.warning("problem %s: no verdict (%s): a new rollout takes its place", problem.id, error)
    finally:
        if together is not None:
            together.leave()
    raise AssertionError("unreachable: the last try returns or raises")


def _score(group: JudgedGroup, rules: GroupRules, shuffle: random.Random | None) -> None:
    # A rollout that was left out carries a score only because the wire wants one; its advantage is zero.
    scores = [FAIL if rollout.verdict is None else reward(rollout.verdict) for rollout in group.rollouts]
    group.scores = [score for score in scores if score in (PASS, FAIL)]
    if len(group.scores) != len(group.rollouts):
        raise AssertionError("a judged rollout has no score")
    if shuffle is not None:
        shuffle.shuffle(group.scores)
    if rules.dynamic_sampling:
        overlong = [rollout.overlong for rollout in group.rollouts]
        group.dropped = drop_reason(group.scores, overlong, rules.overlong_baseline)
