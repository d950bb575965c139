"""The staleness bound: kept by admission it takes nothing from slow problems, kept by dropping it does."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from environments.livecode.staleness import may_begin

GROUPS_PER_BATCH, SLOTS, SLOW_SHARE = 8, 24, 0.25
FAST, SLOW, TRAIN = 1.0, 9.0, 2.0  # seconds of one group, and of a training step


@dataclass
class Run:
    """A simulated run: groups of two kinds finish in any order, a trainer takes the oldest finished ones."""

    admission: bool
    max_staleness: int
    steps: int = 400
    seed: int = 0
    begun: Counter[str] = field(default_factory=Counter)
    trained: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    stalest: int = 0

    def simulate(self) -> Run:
        rng = random.Random(self.seed)
        now, version, number, trained_until = 0.0, 0, 0, 0.0
        running: list[tuple[float, int, int, str]] = []  # end, number, version at which it began, kind
        queue: list[tuple[int, str]] = []
        while version < self.steps:
            taken = version * GROUPS_PER_BATCH
            while len(running) < SLOTS and (
                not self.admission
                or may_begin(
                    oldest=min((began for _, _, began, _ in running), default=version),
                    ahead=taken + len(queue) + len(running),
                    groups_per_batch=GROUPS_PER_BATCH,
                    max_staleness=self.max_staleness,
                    total_steps=self.steps,
                )
            ):
                kind = "slow" if rng.random() < SLOW_SHARE else "fast"
                self.begun[kind] += 1
                number += 1
                length = (SLOW if kind == "slow" else FAST) * rng.uniform(0.7, 1.3)
                heapq.heappush(running, (now + length, number, version, kind))
            if not self.admission:
                for began, kind in [group for group in queue if version - group[0] > self.max_staleness]:
                    queue.remove((began, kind))
                    self.dropped[kind] += 1
            if len(queue) >= GROUPS_PER_BATCH and trained_until <= now:
                batch, queue = queue[:GROUPS_PER_BATCH], queue[GROUPS_PER_BATCH:]
                self.stalest = max(self.stalest, *(version - began for began, _ in batch))
                self.trained.update(kind for _, kind in batch)
                version += 1
                trained_until = now + TRAIN
                continue
            ends = [running[0][0]] if running else []
            now = min([*ends, *([trained_until] if trained_until > now else [])])
            while running and running[0][0] <= now:
                _, _, began, kind = heapq.heappop(running)
                queue.append((began, kind))
        return self

    @property
    def slow_share(self) -> float:
        """Of the trained groups, relative to their share of the problems."""
        return self.trained["slow"] / self.trained.total() / SLOW_SHARE


@pytest.mark.parametrize("max_staleness", [0, 1, 2, 4])
def test_by_admission_slow_problems_keep_their_share_and_nothing_is_too_old(max_staleness: int) -> None:
    run = Run(admission=True, max_staleness=max_staleness).simulate()
    assert run.slow_share >= 0.95
    assert run.stalest <= max_staleness
    assert not run.dropped


@pytest.mark.parametrize("max_staleness", [1, 2])
def test_a_rule_that_drops_starves_them(max_staleness: int) -> None:
    # what admission is for: without it the same run loses slow groups
    run = Run(admission=False, max_staleness=max_staleness).simulate()
    assert run.dropped["slow"] > 0
    assert run.slow_share < 0.8


@pytest.mark.parametrize("max_staleness", [0, 1, 3])
def test_the_bound_is_used_up_to_its_end(max_staleness: int) -> None:
    # a bound of s lets s further batches be generated while one is trained: not fewer, or generation waits
    admitted = 0
    while may_begin(oldest=5, ahead=5 * 8 + admitted, groups_per_batch=8, max_staleness=max_staleness, total_steps=99):
        admitted += 1
    assert admitted == (max_staleness + 1) * 8


def test_no_group_begins_that_no_step_would_train_on() -> None:
    assert not may_begin(oldest=9, ahead=80, groups_per_batch=8, max_staleness=5, total_steps=10)
