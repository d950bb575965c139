"""Some rollouts of each step as a table in the trackers that have tables: what the model writes, beside its metrics."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from environments.common.errors import ConfigError
from trainer.data.scored_groups import ScoredGroup
from trainer.tracker_interface import ShowsRollouts, Tracker

if TYPE_CHECKING:
    from trainer.config import TrainerConfig


class RolloutTable:
    """Shows some rollouts of each step's groups; without a tracker that shows tables it does nothing."""

    def __init__(self, trackers: Sequence[Tracker], config: TrainerConfig) -> None:
        """Reads the model's tokenizer. ConfigError: the model has none."""
        self._trackers = [one for one in trackers if isinstance(one, ShowsRollouts)] if config.tracked_rollouts else []
        self._count, self._seed = config.tracked_rollouts, config.seed
        self._tokenizer = _tokenizer(config) if self._trackers else None

    def log(self, step: int, groups: Sequence[ScoredGroup]) -> None:
        """Shows rollouts of these groups, drawn by the seed and the step: a step that comes again draws the same ones.

        step: the version of the weights that the groups made.
        """
        if not self._trackers or not groups:
            return
        places = [(group, index) for group in groups for index in range(len(group.rollouts))]
        drawn = random.Random(f"{self._seed}/{step}").sample(places, min(self._count, len(places)))
        rows = [self._row(step, group, index) for group, index in drawn]
        for tracker in self._trackers:
            tracker.rollouts(step, rows)

    def _row(self, step: int, group: ScoredGroup, index: int) -> dict[str, Any]:
        rollout = group.rollouts[index]
        assert self._tokenizer is not None
        return {
            "step": step,
            "problem": group.problem_id,
            "group": group.group_id,
            "rollout": index,
            "score": rollout.score,
            "overlong": rollout.overlong,
            "tokens": len(rollout.completion),
            "prompt": self._tokenizer.decode(group.prompt),
            "completion": self._tokenizer.decode(rollout.completion),
        }


def _tokenizer(config: TrainerConfig) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(config.model)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"tracked_rollouts {config.tracked_rollouts}: the model {config.model} has no tokenizer that could be read "
            f"({reason}); add its files, or set tracked_rollouts to 0"
        ) from None
