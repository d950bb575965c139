"""Whose weights the servers have: this run's, an earlier run's, or ones that nobody will ever replace."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from environments.common.errors import LivecodeError

logger = logging.getLogger(__name__)

_NEVER_SENT_S = 60.0
"""How long servers may be too far behind the trainer while no group can begin: a publication comes before a batch."""
_TRAINING = 1
"""Batches that a trainer has taken and not published yet: the one of the step that it computes, however long."""
_SAY_AGAIN_S = 60.0


class InfrastructureError(LivecodeError, RuntimeError):
    """Group after group is lost on our side, or nobody sends weights: continuing would only burn tokens."""


class ServedWeights:
    """Judges the version that the servers name by the batches that the trainer has taken.

    A trainer names its weights by the batches that it has trained on, and publishes them before it takes the next one.
    So before the first group a higher number is that of an earlier run, and one that stays behind is never sent.
    """

    def __init__(self, servers: Sequence[str], max_staleness: int) -> None:
        self._servers = ",".join(servers)
        listed = not all(name.startswith("http") for name in servers)
        self._option = "weights.servers_from" if listed else "weights.servers"
        self._max_staleness = max_staleness
        self._come = True
        self._seen = False
        self._behind_since: float | None = None
        self._said: float | None = None

    def agreed(self, trainer: Mapping[str, Any]) -> None:
        """Takes what the trainer stated of itself."""
        if trainer.get("sends_weights") is False:
            self._come = False
            logger.warning(
                "the trainer sends no weights (its %s is empty): every rollout comes from the weights that %s has now",
                self._option,
                self._servers,
            )

    def version(self, named: int | None, taken: int, *, idle: bool) -> int | None:
        """The version to go by; None while the servers' weights cannot be this run's.

        Args:
            named: what the servers call their weights; None: none can be reached.
            taken: batches that the trainer has taken.
            idle: no group is under way, and none may begin.

        Raises:
            InfrastructureError: the trainer continues, and its weights never arrive.
        """
        if not self._come:
            return taken
        if named is None:
            return None
        if not self._seen and named > taken:
            self._say_foreign(named, taken)
            return None
        self._seen = True
        if not idle or taken - named <= max(self._max_staleness, _TRAINING):
            self._behind_since = None
        elif self._behind_since is None:
            self._behind_since = time.monotonic()
        elif time.monotonic() - self._behind_since > _NEVER_SENT_S:
            raise InfrastructureError(
                f"the trainer has taken {taken} batches, and {self._servers} still has the weights of step {named}: "
                f"nobody sends it new ones. Start the trainer with --{self._option} {self._servers}"
            )
        return named

    def _say_foreign(self, named: int, taken: int) -> None:
        if self._said is None or time.monotonic() - self._said >= _SAY_AGAIN_S:
            self._said = time.monotonic()
            logger.info(
                "waiting for the trainer's weights: the servers have those of step %d, and the trainer is at step %d, "
                "so they are an earlier run's",
                named,
                taken,
            )
