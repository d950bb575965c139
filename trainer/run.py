"""What a training run holds: policy, optimizer, the API's batches, weight sync, records, checkpoints.

The loop that calls its phases is `train` in trainer/main.py.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any

import msgspec
import numpy as np
import torch

from environments.common.errors import ConfigError
from environments.common.hub import is_hub_name, model_folder
from environments.common.trained_records import TrainedStep
from trainer.batch_feed import BatchFeed
from trainer.checkpoints import Checkpoints
from trainer.config import TrainerConfig
from trainer.console import StepLines
from trainer.data.api_client import StopWaiting
from trainer.data.scored_groups import ScoredGroup
from trainer.device_state import device_state
from trainer.metrics import Metrics
from trainer.model.export import check_export, save_adapter, save_hf
from trainer.model.loading import stored_shapes
from trainer.model.packing import pack
from trainer.objective.alignment import enough, measure
from trainer.parallel import all_reduce_sums, broadcast, distributed, together
from trainer.planning import disk_use
from trainer.planning.fit import check_memory
from trainer.process.signals import StopRequest
from trainer.replay_store import StepRecorder
from trainer.rollout_table import RolloutTable
from trainer.start import RunStart, taken
from trainer.step import Batch, describe, prepare, set_old_logprobs, set_reference_logprobs, take_steps
from trainer.step_rows import peak_memory_gib, write_rows
from trainer.token_records import TokenRecords
from trainer.tracking import Tracker, tracking
from trainer.training_state import TrainingState
from trainer.weight_sync.publisher import make_publisher
from trainer.weight_sync.session import ServerSession, ServersRecovered
from trainer.weight_sync.turns import TurnSession

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
        # What needs no weights comes before the model is read, which takes minutes: folder, servers, API, memory.
        self.beginning = self._take_folder(opened)
        self._check_model()
        self.served = self._session()
        self.feed = BatchFeed(self.config, self.parallel)
        with together(self.parallel):
            if self.parallel.is_main and self.served is not None:
                # A step that was trained proves the addresses: from then on a server may be away for a time.
                # Of servers that come and go, any may be on its way at the start too.
                resumed = (config.run_dir / "metrics.jsonl").exists() or config.weights.servers_from is not None
                self.served.publisher.check(resumed=resumed, wait_s=config.weights.wait_s)
            self.feed.reach(opened, self.beginning.step)
        if isinstance(self.served, TurnSession):
            if self.parallel.world_size > 1:
                raise ConfigError(
                    f"weights.backend colocated with {self.parallel.world_size} ranks: trainer and vLLM share one GPU; "
                    "start one rank, or set weights.backend: nccl"
                )
            self.served.pause()  # the model takes its place on the device
        self._load(opened)
        with together(self.parallel):
            self.feed.register(self.step, self.policy.model.config.vocab_size)
        self._progress = StepLines(config.steps)
        self._step_started = time.monotonic()

    def _take_folder(self, opened: ExitStack) -> RunStart:
        """Rank 0 takes the run's folder and opens the trackers; every rank knows where the run begins."""
        found: RunStart | None = None
        self.trackers: list[Tracker] = []
        with together(self.parallel):
            if self.parallel.is_main:
                found = opened.enter_context(taken(self.config))
                self.trackers = opened.enter_context(tracking(self.config))
        return broadcast(found, self.parallel)

    def _check_model(self) -> None:
        """Fetches a model of the hub; refuses what cannot be exported or does not fit into the device."""
        with together(self.parallel):
            if self.parallel.is_main and is_hub_name(self.config.model):
                model_folder(self.config.model)
        with together(self.parallel):
            config = self.config = self.config.model_copy(update={"model": model_folder(self.config.model)})
            shapes = stored_shapes(config.model)
            if config.checkpoint.export:
                check_export(config.run_dir / "export", config.model)
            check_memory(config, self.parallel.world_size, self.parallel.device)
        if self.parallel.is_main:
            log.info("%s", disk_use.line(disk_use.disk_use(config, shapes), config.run_dir))
            if not config.weights.sends:
                log.warning("%s", NO_SERVERS)

    def _session(self) -> ServerSession | None:
        config = self.config
        if not config.weights.sends:
            return None
        with together(self.parallel):
            publisher = make_publisher(
                config.weights,
                config.run_dir / "weights",
                self.parallel,
                initial=config.model,
                adapter=config.adapter,
            )
        kind = TurnSession if config.weights.backend == "colocated" else ServerSession
        return kind(publisher, config, self.parallel, self.stop)

    def _load(self, opened: ExitStack) -> None:
        """Reads the model, and the checkpoint that the run begins with."""
        config = self.config
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
        if self.served is not None:
            self.served.attach(device_state(self.state))

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
        self.feed.say_why_it_waits()
        if self.served is not None:
            self.served.look()

    def next_groups(self) -> list[ScoredGroup]:
        """The next batch of the API, on every rank.

        Raises:
            BatchError: no batch within the deadline, or a group that cannot be trained on.
        """
        if self.served is not None:
            self.served.hand_over(self.policy)
        with self._timed("seconds_wait"):
            until = self.feed.begin_wait()
            while True:
                try:
                    groups = self.feed.lease(self.step, until, self._go_on_waiting)
                    break
                except ServersRecovered:
                    assert self.served is not None
                    self.served.catch_up(self.policy)
        if self.served is not None:
            self.served.take_back(self.policy, self.metrics)
        with together(self.parallel):
            if self.parallel.is_main and self.served is not None and self.config.weights.pause_while_training:
                self.served.pause()
        return groups

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
        groups, parallel = enough(batch.groups, self.step), self.parallel
        silent = [[0.0] * len(group.rollouts) for group in groups]
        most, device = self.config.batch.max_tokens, parallel.device
        packed = pack(groups, silent, most, rank=parallel.rank, world_size=parallel.world_size, device=device)
        found = measure(packed[0], groups, self.step, self.policy, parallel)
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
        left_out = dict.fromkeys(self.feed.left_out, "untrainable")
        if self.parallel.is_main:
            describe(batch, self.step - 1, self.metrics)
            self.metrics.add("groups_left_out", len(left_out))
        self.metrics.add("seconds_step", time.monotonic() - self._step_started)
        self.metrics.add("peak_memory_gib", peak_memory_gib())
        self._step_started = time.monotonic()
        row: dict[str, Any] = {"step": self.step, "time": time.time(), "tokens_trained": batch.tokens}
        row |= self.metrics.reduce(self.parallel.control)
        self.recorder.write(self.step, self.config, row, left_out)
        with together(self.parallel):
            self.tokens.write(self.step)
        if self.parallel.is_main:
            # Which groups made these weights: written before a checkpoint has them, so that an audit finds each once.
            dropped = {**batch.dropped, **left_out}
            taken = TrainedStep(self.step - 1, [group.group_id for group in batch.groups], dropped)
            write_rows(self.config.run_dir, self._way_on(), trained=msgspec.to_builtins(taken), metrics=row)
            for tracker in self.trackers:
                tracker.log(self.step, row)
            self.rollout_table.log(self.step, batch.groups)
            log.info("%s", self._progress.line(row))

    def save_if_due(self) -> None:
        """Begins a checkpoint every `checkpoint.every` steps; the batches of one that is durable are acknowledged."""
        every = self.config.checkpoint.every
        if every and self.step % every == 0:
            self._save()
        self.feed.acknowledge(self.checkpoints.durable)

    def finish(self) -> None:
        """After the last step or a request to stop: a durable checkpoint; after the last, Hugging Face's form too."""
        if self.served is not None:
            self.served.take_back(self.policy, self.metrics)
        if self._saved != self.step:
            self._save()
        self.checkpoints.wait()
        self.feed.acknowledge(self.checkpoints.durable)
        if self.step < self.config.steps:
            log.warning("saved after step %d of %d; %s resumes", self.step, self.config.steps, self._way_on())
        elif self.config.checkpoint.export and self.policy.adapter is not None:
            save_adapter(self.policy, self.config.run_dir / "export")
        elif self.config.checkpoint.export:
            save_hf(self.policy, self.config.run_dir / "export", self.config.model)
        if self.served is not None:
            self.served.hand_over(self.policy)

    def _way_on(self) -> str:
        """What the user starts to resume from the last checkpoint."""
        return "the same command" if self.config.checkpoint.resume == "auto" else "--checkpoint.resume auto"

    def _save(self) -> None:
        with self._timed("seconds_checkpoint"):
            # The lease is this step's: a resumed trainer rolls the API server back to it.
            lease = {"lease": {"step": self.step}}
            self.checkpoints.save(self.policy, self.optimizer, self.step, lease, self.reference)
        self._saved = self.step

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.metrics.add(name, time.monotonic() - start)
