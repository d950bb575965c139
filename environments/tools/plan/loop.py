"""The loop of a run, event by event, by the rules that the processes keep.

Admission is the environment's own function (`environments.livecode.staleness.may_begin`) with what the environment
knows at that moment: it asks for weights and counts every half second, as the trainer asks for a batch. Slots are freed
by tokens, not by verdicts; flat groups are dropped by `environments.common.rewards.drop_reason` and free their place; a
batch is the oldest groups that arrived; a publication pauses all servers and empties their caches; while an evaluation
runs, groups beyond its version's batches wait for delivery.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from environments.common.rewards import FAIL, PASS, drop_reason
from environments.livecode.staleness import may_begin
from environments.tools.plan.clock import Clock, Level, Pool
from environments.tools.plan.rates import Answer, Rates
from environments.tools.plan.recipe import Recipe
from environments.tools.plan.servers import Servers
from environments.tools.plan.workload import Drawn, Workload

POLL_S = 0.5
"""Of the environment for weights and counts, and of the trainer for a batch."""
_WAITING = 4
"""Evaluation samples that wait for a slot, as a multiple of all slots."""
_EVALUATION = 1 << 40
"""Numbers of evaluation's problems begin here."""


@dataclass(eq=False)
class Group:
    """A group under way."""

    number: int
    drawn: Drawn
    version: int
    oldest: int
    left: int
    programs: list[Answer] = field(default_factory=list)
    ungenerated: int = 0
    arrived: float = 0.0

    @property
    def tokens(self) -> int:
        return sum(self.drawn.prompt + answer.length for answer in self.drawn.answers)


@dataclass(frozen=True)
class Step:
    """One training step: when it ended, and the seconds of its phases."""

    ended: float
    wait: float
    evaluation: float
    """Of the wait: while an evaluation held groups back."""
    old: float
    train: float
    sync: float
    checkpoint: float
    tokens: int
    staleness: tuple[int, ...]


class Trained(NamedTuple):
    """A batch that was trained on, before its weights are published."""

    wait: float
    old: float
    train: float
    tokens: int
    staleness: tuple[int, ...]


class Loop:
    """A simulated run. `steps` are those that are done."""

    def __init__(self, recipe: Recipe, rates: Rates, workload: Workload, evaluation_problems: int) -> None:
        self.recipe, self.rates, self.workload = recipe, rates, workload
        self.clock = clock = Clock()
        self.servers = Servers(clock, [rates.speed] * rates.servers)
        self.verifier = Pool(clock, recipe.verifier_places, starts_per_s=rates.starts_per_s, burst=rates.burst)
        self.environment, self.api = Pool(clock, 1), Pool(clock, 1)
        self.slots, self.slots_wanted = Level(clock), Level(clock)
        self.flying, self.queued, self.held = Level(clock), Level(clock), Level(clock)
        self.steps: list[Step] = []
        self.ended: Counter[str] = Counter()
        self.finished_tokens = self.overlong = self.answers = 0
        self.served = self.seen = self.sent = 0
        self._evaluated = evaluation_problems * recipe.evaluation_samples if recipe.evaluation_every else 0
        self._wanting: deque[Callable[[], None]] = deque()
        self._oldest: Counter[int] = Counter()
        self._number = 0
        self._arrived: deque[Group] = deque()
        self._gate: deque[Group] = deque()
        self._under_way = 0
        self._evaluating, self._unevaluated = False, 0
        self._evaluated_versions: set[int] = set()
        self._evaluation_began, self._evaluation_s = 0.0, 0.0
        self._waiting_since: float | None = None

    def run(self, steps: int) -> bool:
        """Until this many steps are done; False where the run stops before, because nothing can begin any more."""
        self.clock.at(0.0, self._look)
        self.clock.at(0.0, self._wait_for_batch)
        return self.clock.run(lambda: len(self.steps) >= steps)

    # -- the environment -----------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Begins what may begin."""
        self._evaluate_if_due()
        recipe = self.recipe
        while (
            self.slots.value + self.slots_wanted.value + recipe.group_size <= recipe.max_concurrent
            and may_begin(
                oldest=min(self._oldest, default=self.seen),
                ahead=self.sent + int(self.flying.value),
                groups_per_batch=recipe.groups_per_batch,
                max_staleness=recipe.max_staleness,
                total_steps=recipe.steps,
            )
        ):  # fmt: skip
            self._begin()

    def _begin(self) -> None:
        drawn = self.workload.group(self._number, self.recipe.group_size, self.recipe.answer)
        size = len(drawn.answers)
        group = Group(self._number, drawn, self.seen, self.served, size, ungenerated=size)
        self._number += 1
        self._oldest[group.version] += 1
        self.flying.add(1)
        for answer in drawn.answers:
            self._generate(group.number, drawn.prompt, answer, partial(self._generated, group, answer))

    def _generate(self, prefix: int, prompt: int, answer: Answer, done: Callable[[], None]) -> None:
        """Takes a slot when there is one, and gives it back when the tokens are there."""

        def start() -> None:
            self.slots.add(1)
            self.servers.submit(prompt, answer.length, prefix, ended)

        def ended() -> None:
            self.slots.add(-1)
            if self._wanting:
                self.slots_wanted.add(-1)
                self._wanting.popleft()()
            seconds = self.rates.environment_rollout_s + answer.length * self.rates.environment_token_s
            self.environment.submit(seconds, done)
            self._look()

        if self.slots.value < self.recipe.max_concurrent:
            start()
        else:
            self.slots_wanted.add(1)
            self._wanting.append(start)

    def _generated(self, group: Group, answer: Answer) -> None:
        self.answers += 1
        self.finished_tokens += answer.length
        self.overlong += answer.overlong
        group.ungenerated -= 1
        judged = answer.tests is not None and not (answer.overlong and self.recipe.overlong_baseline != "include")
        if self.recipe.one_call_for_a_group:
            group.programs += [answer] if judged else []
            if group.ungenerated == 0:
                self._judge_together(group)
            return
        if judged:
            self.verifier.submit(self.rates.verify(answer, self.workload.test_s), self._judged, group, 1)
        else:
            self._judged(group, 1)

    def _judge_together(self, group: Group) -> None:
        if not group.programs:
            self._judged(group, group.left)
            return
        seconds = sum(self.rates.verify(answer, self.workload.test_s) for answer in group.programs)
        seconds -= (len(group.programs) - 1) * self.rates.verify_call_s
        self.verifier.submit(seconds, self._judged, group, group.left)

    def _judged(self, group: Group, answers: int) -> None:
        group.left -= answers
        if group.left:
            return
        dropped = None
        if self.recipe.dynamic_sampling:
            scores = [PASS if answer.passed else FAIL for answer in group.drawn.answers]
            overlong = [answer.overlong for answer in group.drawn.answers]
            dropped = drop_reason(scores, overlong, self.recipe.overlong_baseline)
        self.ended[dropped or "sent"] += 1
        if dropped is not None:
            self._land(group)
        else:
            self._gate.append(group)
            self.held.add(1)
            self._deliver()

    def _land(self, group: Group) -> None:
        self._oldest[group.version] -= 1
        if not self._oldest[group.version]:
            del self._oldest[group.version]
        self.flying.add(-1)
        self._look()

    # -- an evaluation -------------------------------------------------------------------------------------------

    def _due(self, version: int) -> bool:
        every = self.recipe.evaluation_every
        return bool(self._evaluated) and (version % every == 0 or version == self.recipe.steps)

    def _most(self) -> float:
        """Groups that the API may have: no version that is to be evaluated may be replaced before it is."""
        if not self._evaluated:
            return math.inf
        first = self.seen + (0 if self._evaluating or self._due_now() else 1)
        due = next(step for step in range(first, first + self.recipe.evaluation_every + 1) if self._due(step))
        return due * self.recipe.groups_per_batch

    def _due_now(self) -> bool:
        return self._due(self.seen) and self.seen not in self._evaluated_versions

    def _evaluate_if_due(self) -> None:
        if self._evaluating or not self._due_now():
            return
        self._evaluating, self._evaluation_began = True, self.clock.now
        self._unevaluated = self._evaluated
        samples = self._samples()
        for _ in range(min(self._evaluated, _WAITING * self.recipe.max_concurrent)):
            self._sample(samples)

    def _samples(self) -> Iterator[tuple[int, int, Answer]]:
        """(problem's number, tokens of its prompt, answer) of each sample."""
        each = self.recipe.evaluation_samples
        for number in range(_EVALUATION, _EVALUATION + self._evaluated // each):
            drawn = self.workload.group(number, each, self.recipe.evaluation_answer)
            for answer in drawn.answers:
                yield number, drawn.prompt, answer

    def _sample(self, samples: Iterator[tuple[int, int, Answer]]) -> None:
        found = next(samples, None)
        if found is not None:
            number, prompt, answer = found
            self._generate(number, prompt, answer, partial(self._sampled, answer, samples))

    def _sampled(self, answer: Answer, samples: Iterator[tuple[int, int, Answer]]) -> None:
        if answer.tests is None:
            self._sample_judged(samples)
        else:
            self.verifier.submit(self.rates.verify(answer, self.workload.test_s), self._sample_judged, samples)

    def _sample_judged(self, samples: Iterator[tuple[int, int, Answer]]) -> None:
        self._unevaluated -= 1
        if self._unevaluated:
            self._sample(samples)
        else:
            self._evaluation_done()

    def _evaluation_done(self) -> None:
        self._evaluating = False
        self._evaluated_versions.add(self.seen)
        if self._waiting_since is not None:
            self._evaluation_s += self.clock.now - max(self._evaluation_began, self._waiting_since)
        self._deliver()
        self._look()

    # -- the API server ------------------------------------------------------------------------------------------

    def _deliver(self) -> None:
        while self._gate and self.sent + self._under_way < self._most():
            group = self._gate.popleft()
            self.held.add(-1)
            self._under_way += 1
            self.api.submit(group.tokens * self.rates.api_post_token_s, self._delivered, group)

    def _delivered(self, group: Group) -> None:
        self._under_way -= 1
        self.sent += 1
        group.arrived = self.clock.now
        self._arrived.append(group)
        self.queued.add(1)
        self._land(group)
        self._take_batch()

    # -- the trainer ---------------------------------------------------------------------------------------------

    def _wait_for_batch(self) -> None:
        self._waiting_since = self.clock.now
        self._take_batch()

    def _take_batch(self) -> None:
        if self._waiting_since is None or len(self._arrived) < self.recipe.groups_per_batch:
            return
        batch = [self._arrived.popleft() for _ in range(self.recipe.groups_per_batch)]
        self.queued.add(-len(batch))
        began, self._waiting_since = self._waiting_since, None
        asked = began + POLL_S * math.ceil((self.clock.now - began) / POLL_S - 1e-9)
        seconds = sum(group.tokens for group in batch) * self.rates.api_lease_token_s
        self.clock.at(asked, self.api.submit, seconds, self._train, batch, began)

    def _train(self, batch: list[Group], began: float) -> None:
        wait = self.clock.now - began
        if self.recipe.pause_while_training:
            self.servers.pause()
        lengths = [
            (group.drawn.prompt, [answer.length for answer in group.drawn.answers if not answer.overlong])
            for group in batch
        ]
        old, train = self.rates.train(lengths)
        version = len(self.steps)
        # The version of the oldest token: a group that began late may have been sampled by newer weights.
        staleness = tuple(version - group.oldest for group in batch)
        tokens = sum(prompt + sum(kept) for prompt, kept in lengths)
        self.clock.after(old + train, self._publish, Trained(wait, old, train, tokens, staleness))

    def _publish(self, batch: Trained) -> None:
        began = self.clock.now
        self.clock.after(self.rates.publish_s, self._pause, batch, began)

    def _pause(self, batch: Trained, began: float) -> None:
        self.servers.pause()
        self.clock.after(self.rates.pause_s, self._resume, batch, began)

    def _resume(self, batch: Trained, began: float) -> None:
        self.served += 1
        self.servers.resume(cleared=True)
        now = self.clock.now
        self.clock.at(POLL_S * math.ceil(now / POLL_S), self._hear, self.served)
        every = self.recipe.checkpoint_every
        saved = self.rates.checkpoint_s if every and self.served % every == 0 else 0.0
        held, self._evaluation_s = self._evaluation_s, 0.0
        step = Step(
            ended=now + saved, wait=batch.wait, evaluation=min(held, batch.wait), old=batch.old, train=batch.train,
            sync=now - began, checkpoint=saved, tokens=batch.tokens, staleness=batch.staleness,
        )  # fmt: skip
        self.clock.after(saved, self._recorded, step)

    def _recorded(self, step: Step) -> None:
        self.steps.append(step)
        self._wait_for_batch()

    def _hear(self, version: int) -> None:
        """The environment learns of new weights."""
        self.seen = version
        self._look()
        self._deliver()
