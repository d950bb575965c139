"""Feeding a trainer: when a group begins, what becomes of it, and what a death or a stop leaves of it.

One object for one run; `LivecodeEnv` has the problems, the rollouts and the API.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from environments.common import worker_threads
from environments.common.settings import ConfigError
from environments.livecode.atropos_compat import GroupRefused, readdressed
from environments.livecode.evaluation.training import DeliveryGate, TrainingEvaluations
from environments.livecode.generation.served_weights import ServedWeights
from environments.livecode.pipeline import JudgedGroup
from environments.livecode.records.group_records import append_jsonl
from environments.livecode.records.step_metrics import StepMetrics, flatten
from environments.livecode.recovery.progress import OpenGroup, Progress, ProgressError
from environments.livecode.recovery.progress_file import KeptGroup
from environments.livecode.staleness import may_begin

if TYPE_CHECKING:
    from environments.livecode.environment import LivecodeEnv

logger = logging.getLogger(__name__)

_POLL_S = 0.5
_PATIENCE_S = 60.0  # how long admission stays closed before a line says why


class Serving:
    """The loop of `atropos run-env livecode serve`, from the first group to the last.

    Args:
        env: opened, with its problems, registered at the API.
        progress: of this run's folder.
        trainer: what the trainer stated of itself.
        evaluations: of the weights that are served; None: none.
        longer: asked when all steps are done; whether there are more by now.
    """

    def __init__(
        self,
        env: LivecodeEnv,
        progress: Progress,
        trainer: Mapping[str, Any],
        evaluations: TrainingEvaluations | None,
        longer: Callable[[], Coroutine[Any, Any, bool]],
    ) -> None:
        self.env, self.config, self.progress = env, env.config, progress
        self.client, self.pipeline, self.records = env.equipment.client, env.equipment.pipeline, env.equipment.records
        self.served = 0  # the weight version (batches trained) that the servers have now
        # Of this shard, where there are several:
        self.sent = 0  # groups that the API has, those of an earlier process of this run included
        self.api_groups = 0  # groups that the API ever got, whoever sent them
        self.in_flight: dict[asyncio.Task[None], OpenGroup] = {}
        self.gate = DeliveryGate(lambda: max(self.sent, self.api_groups))
        self.weights = ServedWeights(env.run_config.servers_named, self.config.max_staleness)
        self.weights.agreed(trainer)
        self._evaluations, self._longer = evaluations, longer
        self._changed = env.equipment.changed
        self._meter = StepMetrics(self.config.max_concurrent_rollouts)
        self._keeping: set[asyncio.Task[bytes | None]] = set()
        self._asked = -_POLL_S
        self._version_seen = False
        self._unserved_said: float | None = None
        self._closed_since: float | None = None
        # Without a name, after a trainer gave one, are the weights of a server that was started again.
        self.client.published = self.client.published or progress.named

    # -- The loop ---------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Feeds the trainer until it has taken its steps."""
        step = await self._count()
        if self._evaluations is not None:
            self.gate.most = self._evaluations.limit(step)
        await self._resume()
        await self._refresh()  # with what the outbox held: by a count of our own the last group might never begin
        while not self._version_seen:  # no group is to begin under a version that nobody serves
            await asyncio.sleep(_POLL_S)
            await self._refresh()
        self.sent = self.api_groups
        logger.info(
            "feeding %d steps of %d groups, %d of them in all",
            self.config.total_steps, self.env.groups_per_batch, self.env.places(self.config.total_steps),
        )  # fmt: skip
        if self.served >= self.config.total_steps:
            logger.warning("all %d steps are done: start the trainer with a higher --steps first", self.served)
        try:
            while self.evaluates() or self.served < self.config.total_steps or await self._longer():
                while self.may_begin():
                    self.begin(self.progress.begin(self.served))
                    await asyncio.sleep(0)  # thousands of rollouts that begin in one turn would stop the loop
                await self.progress.written()
                await self._wait()
                await self._refresh()
        finally:
            if self._evaluations is not None:
                await self._evaluations.close()
            await self._abandon()
            self._log_metrics()
        logger.info("done: %d groups sent, dropped: %s", self.sent, dict(self.env.dropped) or "none")

    def evaluates(self) -> bool:
        """Whether the served weights are being evaluated; begins what is due."""
        if self._evaluations is None:
            return False
        busy = self._evaluations.turn(self.served)
        self.gate.most = self._evaluations.limit(self.served)
        return busy

    def may_begin(self) -> bool:
        """Whether one more group can begin; see `staleness.may_begin`.

        A group that is dropped frees its place. Generation slots must be free for the whole group; groups that
        wait for verdicts hold none.
        """
        config = self.config
        if self.pipeline.taken + config.group_size > config.max_concurrent_rollouts:
            return False
        return may_begin(
            oldest=min((begun.version for begun in self.in_flight.values()), default=self.served),
            ahead=max(self.sent, self.api_groups) + len(self.in_flight),
            groups_per_batch=self.env.groups_per_batch,
            max_staleness=config.max_staleness,
            total_steps=config.total_steps,
            shard=config.part,
        )

    async def _wait(self) -> None:
        """Until a slot is free, a group is done, or it is time to ask for the version again."""
        try:
            async with asyncio.timeout(_POLL_S):
                await self._changed.wait()
        except TimeoutError:
            pass
        self._changed.clear()
        for task in [task for task in self.in_flight if task.done()]:
            del self.in_flight[task]
            task.result()  # a failure of one group that is not its own ends the run, with its reason

    # -- One group --------------------------------------------------------------------------------------------

    def begin(self, begun: OpenGroup) -> None:
        """Has a group made; it is in flight until the API has it or it is dropped."""
        self.pipeline.announce(self.config.group_size)
        task = asyncio.create_task(self._feed(begun))
        self.in_flight[task] = begun
        task.add_done_callback(lambda _: self._changed.set())

    async def _feed(self, begun: OpenGroup) -> None:
        """One group from problem to API."""
        group = await self.env.make_group(begun.problem, begun.group_id, begun.version)
        keeping = asyncio.create_task(self._keep(group))
        self._keeping.add(keeping)
        keeping.add_done_callback(self._keeping.discard)
        body = await asyncio.shield(keeping)  # what is made is kept, also by a run that is being stopped
        del keeping
        if body is None:
            return
        if self.gate.closed():
            body = b""  # 25 MB each: read again when its turn comes
        await self._send_kept(begun.group_id, body)
        if self.config.use_wandb:
            self.env.completion_lengths += [len(rollout.sample.ids) for rollout in group.rollouts]
            await self.env.add_rollouts_for_wandb(self.env.scored_data(group), begun.problem)

    async def _keep(self, group: JudgedGroup) -> bytes | None:
        """Ends a group: on the disk with its record and, unless it is dropped, with the body that is returned."""
        body = None
        if group.dropped is None:
            # In one piece: in two, the first of all groups that end together would be in memory, 25 MB each.
            body = await worker_threads.groups(self._encoded, group)
        self.progress.end(group, self.records.line(group, sent=body is not None), body)
        self._meter.add(group)
        self.records.sample(group)
        await self.progress.written()
        return body

    def _encoded(self, group: JudgedGroup) -> bytes:
        return self.env.encoded(self.env.scored_data(group))

    async def _send_kept(self, group_id: str, body: bytes) -> None:
        """Sends a kept group once the gate lets it through; body empty: as it was kept."""
        async with self.gate.passing():
            await self.env.deliver(body or await self.progress.body(group_id))
            self.sent += 1
        self.progress.delivered(group_id)

    # -- What a death or a stop leaves ------------------------------------------------------------------------

    async def _resume(self) -> None:
        """Takes up what an earlier process of this run left in its folder.

        Raises:
            ConfigError: the API server is not the run's.
            ProgressError: a kept group that cannot be read or that the API refuses.
        """
        lost = await self._cut_off(list(self.progress.open.values()), "lost_inflight")
        delivered = self.progress.sent - len(self.progress.kept)
        if delivered > 0 and not self.api_groups:
            raise ConfigError(
                f"env.run_dir = {self.config.own_dir}: its run has sent {delivered} groups, and the API server at "
                f"{self.config.rollout_server_url} never had one. Start that run's server (--journal FILE), or give "
                "another folder."
            )
        for kept in self.progress.kept:
            if self.gate.closed():
                self._hold(kept)
                continue
            async with self.gate.passing():
                await self._send_again(kept.id)
                self.api_groups += 1
        if self.progress.sent or lost:
            logger.info(
                "resumed: %d groups were sent before, %d of them again now; %d were lost unfinished, their problems "
                "begin again", self.progress.sent, len(self.progress.kept), lost,
            )  # fmt: skip

    async def _send_again(self, group_id: str) -> None:
        """Sends a group that an earlier process kept, as one of this process."""
        body = await self.progress.body(group_id)
        try:
            body = await worker_threads.groups(readdressed, body, self.env.env_id)
            await self.env.deliver(body)
        except GroupRefused as error:
            raise ProgressError(
                f"{self.progress.path}: group {group_id}: {error}. To continue without it: "  # noqa: S608
                f"sqlite3 {self.progress.path} \"DELETE FROM outbox WHERE id = '{group_id}'\""
            ) from None
        self.progress.delivered(group_id)

    def _hold(self, kept: KeptGroup) -> None:
        """A kept group whose turn comes after an evaluation: in flight until then."""

        async def send() -> None:
            async with self.gate.passing():
                await self._send_again(kept.id)
                self.sent += 1

        task = asyncio.create_task(send())
        self.in_flight[task] = OpenGroup(kept.id, self.progress.problems[kept.problem], kept.version)
        task.add_done_callback(lambda _: self._changed.set())

    async def _cut_off(self, groups: Sequence[OpenGroup], reason: str) -> int:
        """Ends groups that began and have no rollouts that anybody could use; how many."""
        for begun in groups:
            prompt = self.env.equipment.prompts(begun.problem)
            group = JudgedGroup(begun.problem, prompt, begun.version, begun.group_id, dropped=reason)
            self.env.dropped[reason] += 1
            self.progress.cut_off(begun.group_id, self.records.line(group, sent=False))
        await self.progress.written()
        return len(groups)

    async def _abandon(self) -> None:
        """Groups that nobody will train on any more: counted, never silent."""
        for task in self.in_flight:
            task.cancel()
        await asyncio.gather(*self.in_flight, return_exceptions=True)
        await asyncio.gather(*self._keeping, return_exceptions=True)
        self.in_flight.clear()
        await self._cut_off(list(self.progress.open.values()), "stopped")

    # -- The servers and the API ------------------------------------------------------------------------------

    async def _refresh(self) -> None:
        """The served weight version and the API's count of groups, asked at most every half second."""
        now = time.monotonic()
        if now - self._asked < _POLL_S:
            return
        self._asked = now
        version, step = await asyncio.gather(self.client.weight_version(), self._count())
        if self._evaluations is not None and self._evaluations.busy:
            await self.env.hold(f"the weights of step {self.served} are being evaluated")
        version = self.weights.version(version, step, idle=not self.in_flight and not self.may_begin())
        self._version_seen = self._version_seen or version is not None
        if version is not None:
            self._unserved_said = None
        elif self.client.troubles and (self._unserved_said is None or now - self._unserved_said >= _PATIENCE_S):
            self._unserved_said = now
            logger.warning("waiting for a server that has the trainer's weights: %s", self.client.troubles)
        if self.client.published and not self.progress.named:
            self.progress.name()
        if version is not None and version != self.served:
            metrics = self._log_metrics()
            self.served = self.env.curr_step = version
            self.env.on_new_weights()
            self._closed_since = None
            if self.config.use_wandb:
                dropped = {f"train/dropped_{name}": n for name, n in self.env.dropped.items()}
                await self.env.wandb_log(dropped | flatten(metrics, "train/"))
        self._say_when_closed(now)

    async def _count(self) -> int:
        """The batches that the trainer has taken; sets `api_groups`."""
        status = await self.env.call_api("GET", "/status")
        # The step counter of the API counts formed batches; the rest of what it got still queues.
        queued = status["shards"][self.config.part.index] if self.config.shard else status["queue_size"]
        self.api_groups = self.env.places(status["current_step"]) + queued
        return int(status["current_step"])

    def _log_metrics(self) -> dict[str, Any]:
        """One row of environment_metrics.jsonl: what happened while the served version was served."""
        row = self._meter.row(
            step=self.served,
            slot_seconds=self.pipeline.slot_seconds(),
            counters={
                "in_flight": len(self.in_flight),
                "resubmitted_abort": self.client.counters.resubmitted_abort,
                "resubmitted_failure": self.client.counters.resubmitted_failure,
            },
        )
        if self.config.shard:
            row["shard"] = self.config.shard
        append_jsonl(self.config.own_dir / "environment_metrics.jsonl", row)
        return row

    def _say_when_closed(self, now: float) -> None:
        if self.in_flight or self.may_begin() or (self._evaluations is not None and self._evaluations.busy):
            self._closed_since = None
        elif self._closed_since is None:
            self._closed_since = now
        elif now - self._closed_since > _PATIENCE_S:
            self._closed_since = now
            logger.info(
                "no group may begin: %d sent, version %d is served, max_staleness %d: waiting for the trainer",
                max(self.sent, self.api_groups), self.served, self.config.max_staleness,
            )  # fmt: skip
