"""What problems and answers are drawn: by distributions, or as a run's records have them."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from environments.common.record_lines import RecordError, decode
from environments.common.settings import ConfigError
from environments.livecode.records.schema import GroupRecord
from environments.tools.plan.config import WorkloadConfig
from environments.tools.plan.rates import Answer


@dataclass(frozen=True)
class Drawn:
    """A problem's prompt and the answers to it."""

    prompt: int
    answers: list[Answer]


class Workload(Protocol):
    """Where groups come from: the same one for the same number, whatever else is simulated."""

    test_s: float

    def group(self, number: int, answers: int, most: int) -> Drawn:
        """Group number so and so, its answers cut at `most` tokens."""
        ...


class Distributions:
    """Log-normal lengths, a beta distribution of problems' pass rates; both partly the problem's, partly the answer's.

    A cut answer has no program.
    """

    def __init__(self, config: WorkloadConfig, seed: int) -> None:
        self._config, self._seed = config, seed
        self.test_s = config.test_s

    def group(self, number: int, answers: int, most: int) -> Drawn:
        config, draw = self._config, random.Random(f"{self._seed}/{number}")
        rate = _beta(draw, config.pass_rate, config.pass_concentration)
        middle = math.log(config.length_mean) - config.length_sigma**2 / 2
        middle += draw.gauss(0, config.length_sigma * math.sqrt(config.length_shared))
        own = config.length_sigma * math.sqrt(1 - config.length_shared)
        found = []
        for _ in range(answers):
            length = max(1, round(math.exp(middle + draw.gauss(0, own))))
            passed, program = draw.random() < rate, draw.random() >= config.no_program
            if length >= most:
                found.append(Answer(most, True, False, None))
            elif passed:
                found.append(Answer(length, False, True, float(config.tests)))
            else:
                tests = min(config.tests_failed, float(config.tests)) if program else None
                found.append(Answer(length, False, False, tests))
        return Drawn(config.prompt_tokens, found)


def _beta(draw: random.Random, mean: float, concentration: float) -> float:
    if mean in (0.0, 1.0):
        return mean
    return draw.betavariate(mean * concentration, (1 - mean) * concentration)


class Records:
    """The groups of a run's environment.jsonl, drawn with replacement: lengths and verdicts as they were.

    A group of another size takes answers of the recorded one, again where it has too few. What a verdict takes is
    computed from tests, as the recorded seconds hold the run's own queue.
    """

    def __init__(self, path: Path, config: WorkloadConfig, seed: int) -> None:
        self._config, self._seed = config, seed
        self.test_s = config.test_s
        self._rows = _rows(path)

    def group(self, number: int, answers: int, most: int) -> Drawn:
        draw = random.Random(f"{self._seed}/{number}")
        row = draw.choice(self._rows)
        places = list(range(len(row.lengths)))
        draw.shuffle(places)
        found = []
        for place in (places[turn % len(places)] for turn in range(answers)):
            verdict, length = row.verdicts[place], min(row.lengths[place], most)
            passed, overlong = verdict == "accepted", row.overlong[place]
            tests: float | None = float(self._config.tests) if passed else self._config.tests_failed
            if verdict in ("no_code", "overlong"):
                tests = None
            found.append(Answer(length, overlong, passed, tests))
        return Drawn(row.prompt_tokens or 0, found)


def _rows(path: Path) -> list[GroupRecord]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"workload.records = {path}: cannot be read ({error.strerror})") from None
    try:
        rows = [row for row in (decode(line, GroupRecord) for line in lines) if _finished(row)]
    except RecordError as error:
        raise ConfigError(f"workload.records = {path}: no lines of a run's environment.jsonl ({error})") from None
    if not rows:
        raise ConfigError(f"workload.records = {path}: no finished group is in it; give a run's environment.jsonl")
    return rows


def _finished(row: GroupRecord) -> bool:
    return 0 < len(row.lengths) == len(row.verdicts) == len(row.overlong) and row.prompt_tokens is not None


def workload(config: WorkloadConfig, seed: int) -> Workload:
    """By what the options say."""
    if config.records is not None:
        return Records(config.records, config, seed)
    return Distributions(config, seed)
