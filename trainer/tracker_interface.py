"""What a tracker is; trainer/tracking.py has the table of those that can be named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from environments.common.errors import LivecodeError

if TYPE_CHECKING:
    from trainer.config import TrainerConfig

PROJECT = "atropos-livecode"


class TrackerError(LivecodeError, RuntimeError):
    """A tracker's service cannot be reached."""


class Tracker(Protocol):
    """Takes the rows of a run. Only rank 0 has one; what it raises ends the run."""

    def start(self, config: TrainerConfig, resume_id: str) -> None:
        """Opens the run of this id, a new one or the one that an earlier start of the trainer began.

        Raises:
            ConfigError: what the user has to change. TrackerError: what may work later.
        """
        ...

    def log(self, step: int, row: Mapping[str, Any]) -> None:
        """Adds the row of a step: numbers by metric name, None where nobody observed it. A step may come again."""
        ...

    def finish(self, failed: bool) -> None:
        """Closes the run; failed: an exception ends it."""
        ...


@runtime_checkable
class ShowsRollouts(Protocol):
    """A tracker that can also show a table of rollouts."""

    def rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Shows the rows, which have the same columns: numbers, truth values and texts. A step may come again."""
        ...
