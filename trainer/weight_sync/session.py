"""The trainer's servers through a run: new weights, their comparison with the policy, servers that go and come back."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from functools import partial

from trainer.config import TrainerConfig
from trainer.console import Waiting
from trainer.data.scored_groups import BatchError
from trainer.device_state import DeviceState
from trainer.metrics import Metrics
from trainer.model.policy import Policy
from trainer.parallel import Parallel, broadcast
from trainer.process.signals import StopRequest
from trainer.weight_sync.logprob_check import check_probes, probe_prompt
from trainer.weight_sync.publisher import WeightPublisher
from trainer.weight_sync.vllm_routes import Probe, PublishStats, WeightSyncError

log = logging.getLogger(__name__)

AWAY_S = 600.0
"""How long the only server, or all of them, may be gone before the trainer ends: vLLM takes minutes to start again."""
CATCH_UP_S = 10.0
"""How often servers are looked at, while a batch is waited for, that may have come back without the weights."""
_FIRST = 2
"""Publications that are compared whatever the interval says: the start's, and the first of an update."""


class ServersRecovered(BatchError):
    """Raised by `on_wait` of a lease, and so on every rank: all leave the wait and bring the weights to servers that
    came back."""


class ServerSession:
    """What a run does with its publisher; `publish` and `catch_up` are collectives.

    stop: a trainer that is asked to end does not wait for servers.
    """

    def __init__(
        self, publisher: WeightPublisher, config: TrainerConfig, parallel: Parallel, stop: StopRequest
    ) -> None:
        self.publisher = publisher
        self.config = config
        self.parallel = parallel
        self.stop = stop
        self._unproven = _FIRST
        self._looked = time.monotonic()

    def publish(self, policy: Policy, version: int, metrics: Metrics) -> None:
        """Puts the policy's weights into every vLLM server under `version`, and compares if that is due.

        Servers that are all gone are waited for, since what was trained since the last checkpoint would be lost with
        the trainer.

        Raises:
            WeightSyncError: a server did not get them, or computes with others.
        """
        options = self.config.weights
        due = bool(options.verify_every) and (self._unproven > 0 or version % options.verify_every == 0)
        prompt = probe_prompt(policy.model.config.vocab_size, self.config.batch.context) if due else None
        stats = self.patiently(policy, version, prompt)
        missing = broadcast(None if stats is None else len(stats.missing), self.parallel)
        if stats is not None:
            if stats.changed_share is not None:
                metrics.add("served_weights_changed", stats.changed_share)
            metrics.add("seconds_pause", stats.seconds.get("paused", 0.0))
            metrics.add("servers_missing", len(stats.missing))
        if prompt is None:
            self._unproven = max(self._unproven, int(bool(missing)))  # those that were left out are compared next
            return
        self._unproven = max(self._unproven - 1, int(bool(missing)))
        self.compare(prompt, None if stats is None else stats.probes, policy, version, metrics)

    def compare(
        self, prompt: list[int], probes: Mapping[str, Probe] | None, policy: Policy, version: int, metrics: Metrics
    ) -> None:
        """What servers sampled after `prompt` with the policy's own; WeightSyncError where they differ."""
        found = check_probes(prompt, probes, policy, self.config.weights.dtype, version)
        if found is not None:
            metrics.add("sync_difference", found.mean)
            metrics.add("sync_difference_max", found.largest)
            log.info("servers and trainer differ by %.2g nats a token at step %d", found.mean, version)

    def patiently(self, policy: Policy, version: int, prompt: list[int] | None = None) -> PublishStats | None:
        """The publisher's `publish`, again and again while every server is gone, for AWAY_S at most."""
        started = time.monotonic()
        waiting, tries = Waiting(log.warning), 0
        while True:
            try:
                return self.publisher.publish(policy, version, prompt)
            except WeightSyncError as error:  # the same on every rank
                if not error.gone or error.stuck:
                    raise
                late = self.stop.requested or time.monotonic() - started > AWAY_S
                if broadcast(late, self.parallel):
                    raise
                tries += 1
                if self.parallel.is_main and tries == 1:
                    log.warning("%s; waiting for a server to come back, at most %g s", error, AWAY_S)
                elif self.parallel.is_main:
                    waiting.look(f"a vLLM server that takes the weights of step {version}", partial(str, error))
            time.sleep(1.0)

    def attach(self, state: DeviceState) -> None:
        """What may leave the device; only a session in turns has it leave."""

    def hand_over(self, policy: Policy) -> None:
        """Before a batch is waited for: the device is the servers', where they share the trainer's."""

    def take_back(self, policy: Policy, metrics: Metrics) -> None:
        """When a batch is complete, and before the end: the device is the trainer's again."""

    def pause(self) -> None:
        """On rank 0: stops generation until the next publication; what is gone generates nothing anyway."""
        try:
            self.publisher.pause()
        except WeightSyncError as error:
            if not error.gone:
                raise
            log.warning("%s; a server that is gone generates nothing", error)

    def look(self) -> None:
        """On rank 0, now and then while it waits: ServersAreBack where servers came back without the weights."""
        if time.monotonic() - self._looked >= CATCH_UP_S:
            behind = self.publisher.behind()
            self._looked = time.monotonic()
            if behind:
                raise ServersRecovered(", ".join(behind))

    def catch_up(self, policy: Policy) -> None:
        """Brings them the policy's weights, which are the last publication's: no optimizer step comes in between."""
        reached = self.publisher.catch_up(policy)
        if broadcast(reached, self.parallel):  # what is compared next is the same on every rank
            self._unproven = max(self._unproven, 1)
        self._looked = time.monotonic()
