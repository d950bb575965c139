"""Which problem comes next: in shuffled epochs, or the ones that can be learned from more often."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from environments.common.settings import ConfigError
from environments.common.shards import WHOLE, Shard
from environments.livecode.problems.load import load_problems
from environments.livecode.problems.problem import Problem, ProblemError
from environments.livecode.problems.warmup import build

Rule = Literal["uniform", "learnable"]

FLOOR = 0.05  # weight that a problem keeps when it is always or never solved
_START = 0.5  # pass rate of what nobody has measured: the most promising one
_STEP = 0.5  # how far one group moves the running pass rate


class Sampler(Protocol):
    """An endless order of problems that learns from their pass rates."""

    def next(self) -> Problem:
        """The next problem."""
        ...

    def update(self, problem: Problem, pass_rate: float) -> None:
        """Takes note of the share of a group's rollouts that passed (0 to 1)."""
        ...

    def state(self) -> dict[str, Any]:
        """What a restart needs to resume, as plain JSON types."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from `state`."""
        ...


class UniformSampler:
    """Every problem once an epoch, reshuffled each epoch.

    shard: takes its places of that order alone, which is the same for every number of shards.
    """

    def __init__(self, problems: Sequence[Problem], seed: int, shard: Shard = WHOLE) -> None:
        self._problems = list(problems)
        self._seed, self._shard = seed, shard
        self._taken = 0
        self._epoch = -1
        self._order: list[int] = []

    def next(self) -> Problem:
        place = self._shard.index + self._taken * self._shard.count
        epoch, position = divmod(place, len(self._problems))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, list(range(len(self._problems)))
            random.Random(f"{self._seed}/{epoch}").shuffle(self._order)
        self._taken += 1
        return self._problems[self._order[position]]

    def update(self, problem: Problem, pass_rate: float) -> None:
        """Pass rates do not matter here."""

    def state(self) -> dict[str, Any]:
        return {"taken": self._taken}

    def restore(self, state: dict[str, Any]) -> None:
        self._taken = int(state["taken"])


class LearnableSampler:
    """Draws a class of problems with weight p (1 - p) + 0.05, p its running pass rate, then one of its problems.

    A class is a warm-up template, or a single problem where there is none. A flat group gives no signal, so
    what is always or never solved is drawn at the floor's weight only. p begins with the problems' `pass_rate` where
    it was measured (`atropos data filter`), with 0.5 elsewhere.
    Within a class each problem comes once before any comes again.

    Args:
        floor_epochs: every problem is drawn at least once in this many epochs (an epoch: as many draws as problems);
            0 leaves it to the weights. Dues are spread at first, so that they do not come all at once.
        shard: draws from its own problems alone, as many of each class as any other, and learns from them alone.
    """

    def __init__(self, problems: Sequence[Problem], seed: int, floor_epochs: int = 0, shard: Shard = WHOLE) -> None:
        if shard.count > 1:
            problems = _dealt(problems, shard)
        self._classes = _by_class(problems)
        self._rates = {name: _measured(members) for name, members in self._classes.items()}
        self._left: dict[str, list[int]] = {name: [] for name in self._classes}
        self._random = random.Random(seed if shard.count == 1 else f"{seed}/{shard}")
        self._drawn = 0
        count, self._by_id = len(problems), {problem.id: problem for problem in problems}
        self._span = floor_epochs * count
        spread = (floor_epochs - 1) * count
        # the draw at which each problem is due, the earliest first
        self._due = OrderedDict((problem.id, count + n * spread // count) for n, problem in enumerate(problems))

    def next(self) -> Problem:
        """The problem that is due, or one drawn by weight."""
        self._drawn += 1
        name, due = next(iter(self._due.items()))
        problem = self._by_id[name] if self._span and due <= self._drawn else self._draw()
        self._due[problem.id] = self._drawn + self._span
        self._due.move_to_end(problem.id)
        return problem

    def _draw(self) -> Problem:
        names = list(self._classes)
        weights = [rate * (1 - rate) + FLOOR for rate in self._rates.values()]
        name = self._random.choices(names, weights)[0]
        left = self._left[name]
        if not left:
            left.extend(range(len(self._classes[name])))
            self._random.shuffle(left)
        return self._classes[name][left.pop()]

    def update(self, problem: Problem, pass_rate: float) -> None:
        name = _class(problem)
        self._rates[name] += _STEP * (pass_rate - self._rates[name])

    def state(self) -> dict[str, Any]:
        version, internal, gauss = self._random.getstate()
        return {
            "rates": dict(self._rates),
            "left": {name: list(left) for name, left in self._left.items() if left},
            "random": [version, list(internal), gauss],
            "drawn": self._drawn,
            "due": list(self._due.items()),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self._rates.update({name: rate for name, rate in state["rates"].items() if name in self._rates})
        for name, left in self._left.items():
            left[:] = [index for index in state["left"].get(name, []) if index < len(self._classes[name])]
        version, internal, gauss = state["random"]
        self._random.setstate((version, tuple(internal), gauss))
        self._drawn = int(state["drawn"])
        self._due = OrderedDict((name, due) for name, due in state["due"] if name in self._by_id)


def load_set(name: str, seed: int) -> list[Problem]:
    """The problems of a JSONL file, or of a warm-up set (warmup:train, :new_instances, :unseen_templates).

    Raises:
        ProblemError: an unknown set, or a file with a problem that cannot be used.
    """
    kind, _, part = name.partition(":")
    if kind != "warmup":
        return load_problems(name)
    known = ("train", "new_instances", "unseen_templates")
    if part not in known:
        raise ProblemError(
            f"problems = {name!r}: no such warm-up set. Known: {', '.join(f'warmup:{n}' for n in known)}."
        )
    return list(getattr(build(seed), part))


def check_sets(names: Iterable[str]) -> None:
    """ProblemError for a set that is not there: raised before a server is waited for, which may take minutes."""
    for name in names:
        if name.partition(":")[0] != "warmup" and not Path(name).exists():
            load_problems(name)


def build_sampler(
    rule: Rule, problems: Sequence[Problem], seed: int, floor_epochs: int = 0, shard: Shard = WHOLE
) -> Sampler:
    """The sampler that `env.problem_sampling` names, of one shard; ConfigError where a shard would have no problem."""
    if len(problems) < shard.count:
        raise ConfigError(
            f"env.shard {shard}: {len(problems)} problems for {shard.count} environments; start at most one for each"
        )
    if rule == "uniform":
        return UniformSampler(problems, seed, shard)
    return LearnableSampler(problems, seed, floor_epochs, shard)


def _measured(problems: Sequence[Problem]) -> float:
    rates = [problem.pass_rate for problem in problems if problem.pass_rate is not None]
    return sum(rates) / len(rates) if rates else _START


def _by_class(problems: Iterable[Problem]) -> dict[str, list[Problem]]:
    classes: dict[str, list[Problem]] = {}
    for problem in problems:
        classes.setdefault(_class(problem), []).append(problem)
    return classes


def _dealt(problems: Iterable[Problem], shard: Shard) -> list[Problem]:
    """The shard's problems, each class dealt out over all shards."""
    in_classes = [problem for members in _by_class(problems).values() for problem in members]
    return in_classes[shard.index :: shard.count]


def _class(problem: Problem) -> str:
    return problem.template or problem.id
