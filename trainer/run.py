"""What a training run holds: policy, optimizer, the API's batches, weight sync, records, checkpoints.

The loop that calls its phases is `train` in trainer/main.py.
"""

from __future__ import annotations

import json
import logging
import random
import resource
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any

import numpy as np
import torch

from environments.common.agreement import terms
from environments.common.errors import ConfigError
from environments.common.hub import is_hub_name, model_folder
from environments.common.run_folder import append_line
from trainer.checkpoints import Checkpoints
from trainer.config import TrainerConfig
from trainer.console import StepLines, Waiting
from trainer.data.api_client import ApiRefused, AtroposClient, StopWaiting, broadcast_groups
from trainer.data.scored_groups import BatchError, Reading, ScoredGroup
from trainer.metrics import Metrics
from trainer.model.export import check_export, save_adapter, save_hf
from trainer.model.loading import stored_shapes
from trainer.objective.alignment import measure
from trainer.parallel import all_reduce_sums, broadcast, distributed, together
from trainer.planning import disk_use
from trainer.planning.fit import check_memory
from trainer.process.signals import StopRequest
from trainer.replay_store import StepRecorder
from trainer.rollout_table import RolloutTable
from trainer.start import RecordError, RunStart, taken
from trainer.step import Batch, describe, prepare, set_old_logprobs, set_reference_logprobs, take_steps
from trainer.token_records import TokenRecords
from trainer.tracking import Tracker, tracking
from trainer.training_state import TrainingState
from trainer.weight_sync.publisher import make_publisher
from trainer.weight_sync.session import ServerSession, ServersRecovered

log = logging.getLogger(__name__)


NO_SERVERS = (
    "weights.servers is empty: no vLLM server gets the trained weights, so every batch is sampled with those that the "
    "servers started with. Give the servers' addresses, such as --weights.servers http://127.0.0.1:8001, unless "
    "that is meant"
)


class Run:
    """The state between steps. `step` is the number of batches trained, which is the version of the weights.

    A context manager: leaving it saves nothing by itself, waits for a checkpoint that is being written, closes every
    connection and leaves the process group.
    """

    def __init__(self, config: TrainerConfig) -> None:
        self.config = config
        self.step = 0
        self._aligned = False
        self._saved: int | None = None
        self._acknowledged: int | None = None
        self._resources = ExitStack()

    def __enter__(self) -> Run:
        with ExitStack() as opened:
            self._open(opened)
            self._resources = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._resources.close()

    def _open(self, opened: ExitStack) -> None:
        config = self.config
        random.seed(config.seed)
        np.random.seed(config.seed)
        torch.manual_seed(config.seed)
        self.stop = opened.enter_context(StopRequest(config.checkpoint.stop_deadline_s))
        self.parallel = opened.enter_context(distributed(config.api.batch_deadline_s + 600))
        self.metrics = Metrics()
        self.served: ServerSession | None = None
        self.client: AtroposClient | None = None
        # What needs no weights comes before the model is read, which takes minutes: folder, servers, API, memory.
        found: RunStart | None = None
        self.trackers: list[Tracker] = []
        with together(self.parallel):
            if self.parallel.is_main:
                found = opened.enter_context(taken(config))
                self.trackers = opened.enter_context(tracking(config))
        self.beginning = broadcast(found, self.parallel)
        with together(self.parallel):
            if self.parallel.is_main and is_hub_name(config.model):
                model_folder(config.model)
        with together(self.parallel):
            config = self.config = config.model_copy(update={"model": model_folder(config.model)})
            shapes = stored_shapes(config.model)
            if config.checkpoint.export:
                check_export(config.run_dir / "export", config.model)
            check_memory(config, self.parallel.world_size, self.parallel.device)
        if self.parallel.is_main:
            log.info("%s", disk_use.line(disk_use.disk_use(config, shapes), config.run_dir))
            if not config.weights.servers:
                log.warning("%s", NO_SERVERS)
        if config.weights.servers:
            with together(self.parallel):
                publisher = make_publisher(
                    config.weights,
                    config.run_dir / "weights",
                    self.parallel,
                    initial=config.model,
                    adapter=config.adapter,
                )
            self.served = ServerSession(publisher, config, self.parallel, self.stop)
        with together(self.parallel):
            if self.parallel.is_main:
                self._reach_out(opened)
        self.state = TrainingState(config, config.model, self.parallel)
        self.policy, self.optimizer, self.reference = self.state.policy, self.state.optimizer, self.state.reference
        self.checkpoints = Checkpoints(
            config.run_dir / "checkpoints", self.parallel, keep_last=config.checkpoint.keep_last
        )
        opened.callback(self.checkpoints.close)
        self.recorder = StepRecorder(config.run_dir, config.keep_batches, self.policy, self.optimizer, self.parallel)
        self.tokens = TokenRecords(config.run_dir, config.record_tokens, self.parallel.rank)
        with together(self.parallel):
            self.rollout_table = RolloutTable(self.trackers, config)
        self._restore()
        with together(self.parallel):
            if self.client is not None:
                self._register(self.client)
        self._progress, self._waiting = StepLines(config.steps), Waiting(log.info)
        self._step_started = time.monotonic()

    def _restore(self) -> None:
        """The state of the checkpoint that the run begins with, if there is one."""
        begin = self.beginning
        if begin.checkpoint is None:
            return
        stage = self.config.init_from
        if begin.resumed:
            self.state.resume(self.checkpoints, str(begin.checkpoint))
            self.step = self._saved = begin.step
            log.info("resumed after step %d", self.step)
        else:
            self.state.begin_with(self.checkpoints, str(begin.checkpoint), stage.optimizer)
            log.info("began with %s, optimizer: %s", begin.checkpoint, stage.optimizer)

    def _reach_out(self, opened: ExitStack) -> None:
        """On rank 0: the vLLM servers answer, and the Atropos API has no side that differs from this one."""
        config = self.config
        if self.served is not None:
            # A step that was trained proves the addresses: from then on a server may be away for a time.
            resumed = (config.run_dir / "metrics.jsonl").exists()
            self.served.publisher.check(resumed=resumed, wait_s=config.weights.wait_s)
        self.client = opened.enter_context(AtroposClient(config.api.url))
        self.client.agree(
            terms(
                model=config.model,
                context=config.batch.context,
                group_size=config.batch.group_size,
                overlong_baseline=config.objective.overlong_baseline,
                steps=config.steps,
                sends_weights=bool(config.weights.servers),
            )
        )
        self._roll_back(self.client, self.beginning.step)

    def _roll_back(self, client: AtroposClient, step: int) -> None:
        """On rank 0: the API server hands out again what was trained on after this step."""
        try:
            again = client.rollback(step)
        except ApiRefused as error:
            raise ConfigError(
                f"{error}. run_dir {self.config.run_dir} begins after step {step}: give the run_dir of the run whose "
                "groups this server keeps, or start `atropos run-api` with another --journal"
            ) from None
        if again:
            log.info("%d batches since step %d were not in a checkpoint and come again", again, step)

    def _register(self, client: AtroposClient) -> None:
        """On rank 0: from here on the API server hands out batches from this step on."""
        config = self.config
        client.reading = Reading(
            self.config.batch.temperature,
            self.config.batch.context,
            self.policy.model.config.vocab_size,
            recompute=self.config.objective.old_logprobs == "recompute",
        )
        client.leave_out = self.config.batch.untrainable == "leave_out"
        client.register(
            batch_size=config.batch.rollouts,
            # Atropos drops a whole group when one sequence reaches this length: -1 switches that off.
            max_token_len=-1,
            starting_step=self.step,
            num_steps=config.steps,
            checkpoint_dir=str(config.run_dir / "checkpoints"),
            save_checkpoint_interval=config.checkpoint.every or -1,
            wandb_group=config.run_dir.name,
            wandb_project="atropos-livecode",
        )

    # -- the phases of a step, in order --------------------------------------------------------------------

    def batches(self) -> Iterator[list[ScoredGroup]]:
        """Each step's groups, until the last step is done or a rank was asked to stop."""
        while self.step < self.config.steps:
            if all_reduce_sums({"stop": int(self.stop.requested)}, self.parallel)["stop"]:
                return
            try:
                groups = self.next_groups()
            except StopWaiting:
                return
            yield groups

    def _go_on_waiting(self, seconds: float) -> None:
        if self.stop.requested:
            raise StopWaiting(f"stopped after {seconds:.0f} s of waiting for a batch")
        if self.client is not None:
            self._waiting.look("a batch", self.client.why_no_batch)
        if self.served is not None:
            self.served.look()

    def next_groups(self) -> list[ScoredGroup]:
        """The next batch of the API, on every rank.

        Raises:
            BatchError: no batch within the deadline, or a group that cannot be trained on.
        """
        self._waiting.begin()
        with self._timed("seconds_wait"):
            deadline = time.monotonic() + self.config.api.batch_deadline_s
            while True:
                try:
                    groups = self._lease(deadline - time.monotonic())
                    break
                except ServersRecovered:
                    assert self.served is not None
                    self.served.catch_up(self.policy)
        with together(self.parallel):
            if self.parallel.is_main and self.served is not None and self.config.weights.pause_while_training:
                self.served.pause()
        return groups

    def _lease(self, seconds: float) -> list[ScoredGroup]:
        pulled: list[ScoredGroup] | BatchError | None = None
        if self.client is not None:
            try:
                pulled = self.client.lease(self.step, seconds, self._go_on_waiting)
            except BatchError as error:
                pulled = error
        return broadcast_groups(pulled, self.parallel.control)

    def prepare(self, groups: list[ScoredGroup]) -> Batch:
        """Advantages, drops, packing and old log-probabilities; Misaligned when they are not the sampler's."""
        batch = prepare(groups, self.config, self.parallel)
        if not self._aligned and batch.parts:
            with self._timed("seconds_alignment"):
                self._check_alignment(batch)
        if self.reference is not None:
            with self._timed("seconds_reference"):
                set_reference_logprobs(batch, self.reference)
        with self._timed("seconds_old_logprobs"):
            set_old_logprobs(batch, self.policy, self.config, self.parallel)
        self.recorder.prepared(groups, batch)
        return batch

    def _check_alignment(self, batch: Batch) -> None:
        first = batch.parts[0].micro_batches[0]
        found = measure(first, batch.groups[:: len(batch.parts)], self.step, self.policy, self.parallel)
        if found is not None:
            found.check()
            log.info("trainer and sampler agree: %.4f nats a token over %d tokens", found.distance, found.tokens)
            self._aligned = True

    def optimize(self, batch: Batch) -> None:
        """One optimizer step for each part of the batch that has a gradient; the others are skipped and counted."""
        with self._timed("seconds_train"):
            taken = take_steps(
                batch,
                self.policy,
                self.optimizer,
                self.config,
                self.parallel,
                self.metrics,
                self.reference,
                self.tokens,
            )
        if not taken:
            log.warning("step %d: nothing in the batch has a gradient, skipped", self.step)

    def publish(self, version: int) -> None:
        """Puts the policy's weights into every vLLM server under `version`; WeightSyncError when one fails."""
        with self._timed("seconds_sync"):
            if self.served is not None:
                self.served.publish(self.policy, version, self.metrics)

    def record(self, batch: Batch) -> None:
        """Writes the step's row to metrics.jsonl; `step` in it is the version of the new weights."""
        left_out = dict.fromkeys(self.client.left_out if self.client else (), "untrainable")
        if self.parallel.is_main:
            describe(batch, self.step - 1, self.metrics)
            self.metrics.add("groups_left_out", len(left_out))
        self.metrics.add("seconds_step", time.monotonic() - self._step_started)
        self.metrics.add("peak_memory_gib", _peak_memory_gib())
        self._step_started = time.monotonic()
        row: dict[str, Any] = {"step": self.step, "time": time.time(), "tokens_trained": batch.tokens}
        row |= self.metrics.reduce(self.parallel.control)
        self.recorder.write(self.step, self.config, row, left_out)
        with together(self.parallel):
            self.tokens.write(self.step)
        if self.parallel.is_main:
            # Which groups made these weights: written before a checkpoint has them, so that an audit finds each once.
            dropped = {**batch.dropped, **left_out}
            taken = {"step": self.step - 1, "groups": [g.group_id for g in batch.groups], "dropped": dropped}
            for name, line in (("trained", taken), ("metrics", row)):
                path = self.config.run_dir / f"{name}.jsonl"
                try:
                    append_line(path, json.dumps(line))
                except OSError as error:
                    raise RecordError(
                        f"{path}: cannot be written ({error.strerror}): free space on that disk; then {self._way_on()} "
                        "resumes"
                    ) from None
            for tracker in self.trackers:
                tracker.log(self.step, row)
            self.rollout_table.log(self.step, batch.groups)
            log.info("%s", self._progress.line(row))

    def save_if_due(self) -> None:
        """Begins a checkpoint every so many steps; the batches of one that is durable are acknowledged."""
        every = self.config.checkpoint.every
        if every and self.step % every == 0:
            self._save()
        self._acknowledge()

    def finish(self) -> None:
        """After the last step or a request to stop: a durable checkpoint; after the last, Hugging Face's form too."""
        if self._saved != self.step:
            self._save()
        self.checkpoints.wait()
        self._acknowledge()
        if self.step < self.config.steps:
            log.warning("saved after step %d of %d; %s resumes", self.step, self.config.steps, self._way_on())
        elif self.config.checkpoint.export and self.policy.adapter is not None:
            save_adapter(self.policy, self.config.run_dir / "export")
        elif self.config.checkpoint.export:
            save_hf(self.policy, self.config.run_dir / "export", self.config.model)

    def _way_on(self) -> str:
        """What the user starts to resume from the last checkpoint."""
        return "the same command" if self.config.checkpoint.resume == "auto" else "--checkpoint.resume auto"

    def _save(self) -> None:
        with self._timed("seconds_checkpoint"):
            # The lease is this step's: a resumed trainer rolls the API server back to it.
            lease = {"lease": {"step": self.step}}
            self.checkpoints.save(self.policy, self.optimizer, self.step, lease, self.reference)
        self._saved = self.step

    def _acknowledge(self) -> None:
        durable = self.checkpoints.durable
        if self.client is not None and durable is not None and durable != self._acknowledged:
            self.client.acknowledge(durable)  # not earlier: what is acknowledged cannot be served again
            self._acknowledged = durable

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.metrics.add(name, time.monotonic() - start)


def _peak_memory_gib() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
