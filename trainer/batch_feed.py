"""A run's side of the Atropos API: each step's groups on every rank, and what a checkpoint lets the server forget."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack

from environments.common.agreement import terms
from environments.common.errors import ConfigError
from trainer.config import TrainerConfig
from trainer.console import Waiting
from trainer.data.api_client import ApiRefused, AtroposClient, broadcast_groups, still_waiting
from trainer.data.scored_groups import BatchError, Reading, ScoredGroup
from trainer.parallel import Parallel

log = logging.getLogger(__name__)

STILL_S = 60.0
"""While rank 0 waits for a batch, the others hear of it so often: their own wait has a deadline too."""


class BatchFeed:
    """Leases batches; `lease` is a collective, everything else is rank 0's and does nothing on the others."""

    def __init__(self, config: TrainerConfig, parallel: Parallel) -> None:
        self.config, self.parallel = config, parallel
        self._client: AtroposClient | None = None
        self._acknowledged: int | None = None
        self._waiting = Waiting(log.info)
        self._heard = self._held_before = 0.0

    @property
    def left_out(self) -> dict[str, str]:
        """Ids of the groups left out of the batch leased last, each with its reason; none on other ranks."""
        return self._client.left_out if self._client is not None else {}

    def reach(self, opened: ExitStack, step: int) -> None:
        """The API has no side that differs from this one, and hands out again what was trained on after `step`.

        Raises:
            ConfigError: it keeps the groups of another run.
            BatchError: it is not there, or refuses.
        """
        if not self.parallel.is_main:
            return
        config = self.config
        self._client = opened.enter_context(AtroposClient(config.api.url))
        self._client.agree(
            terms(
                model=config.model,
                context=config.batch.context,
                group_size=config.batch.group_size,
                overlong_baseline=config.objective.overlong_baseline,
                steps=config.steps,
                sends_weights=config.weights.sends,
            )
        )
        self._roll_back(self._client, step)

    def _roll_back(self, client: AtroposClient, step: int) -> None:
        try:
            again = client.rollback(step)
        except ApiRefused as error:
            raise ConfigError(
                f"{error}. run_dir {self.config.run_dir} begins after step {step}: give the run_dir of the run whose "
                "groups this server keeps, or start `atropos run-api` with another --journal"
            ) from None
        if again:
            log.info("%d batches since step %d were not in a checkpoint and come again", again, step)

    def register(self, step: int, vocabulary: int) -> None:
        """From here on the API server hands out batches from `step` on. vocabulary: ids below it are tokens."""
        if self._client is None:
            return
        config, client = self.config, self._client
        client.reading = Reading(
            config.batch.temperature,
            config.batch.context,
            vocabulary,
            recompute=config.objective.old_logprobs == "recompute",
        )
        client.leave_out = config.batch.untrainable == "leave_out"
        client.register(
            batch_size=config.batch.rollouts,
            # Atropos drops a whole group when one sequence reaches this length: -1 switches that off.
            max_token_len=-1,
            starting_step=step,
            num_steps=config.steps,
            checkpoint_dir=str(config.run_dir / "checkpoints"),
            save_checkpoint_interval=config.checkpoint.every or -1,
            wandb_group=config.run_dir.name,
            wandb_project="atropos-livecode",
        )

    def begin_wait(self) -> float:
        """A new wait for a batch; when it has been too long (time.monotonic()), unless groups are kept back."""
        self._waiting.begin()
        self._held_before = self._client.held_s if self._client is not None else 0.0
        return time.monotonic() + self.config.api.batch_deadline_s

    def lease(self, step: int, until: float, on_wait: Callable[[float], None]) -> list[ScoredGroup]:
        """The batch of `step`, on every rank. on_wait: as of AtroposClient.lease, called on rank 0.

        Raises:
            BatchError: none until then, a group that cannot be trained on, or what `on_wait` raised.
        """
        pulled: list[ScoredGroup] | BatchError | None = None
        self._heard = time.monotonic()

        def waits(seconds: float) -> None:
            on_wait(seconds)
            if self.parallel.world_size > 1 and time.monotonic() - self._heard >= STILL_S:
                self._heard = time.monotonic()
                still_waiting(self.parallel.control)

        if self._client is not None:
            try:
                left_s = until + self._client.held_s - self._held_before - time.monotonic()
                pulled = self._client.lease(step, left_s, waits)
            except BatchError as error:
                pulled = error
        return broadcast_groups(pulled, self.parallel.control)

    def say_why_it_waits(self) -> None:
        """Now and then, in the log: what the batch still lacks."""
        if self._client is not None:
            self._waiting.look("a batch", self._client.why_no_batch)

    def acknowledge(self, durable: int | None) -> None:
        """The checkpoint after step `durable` is on disk: its batches may go. Not earlier, they cannot come again."""
        if self._client is not None and durable is not None and durable != self._acknowledged:
            self._client.acknowledge(durable)
            self._acknowledged = durable
