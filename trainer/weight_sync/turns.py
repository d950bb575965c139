"""One GPU in turns: vLLM sleeps while the trainer computes, and the trainer's state is off the device while it samples.

    before a batch is waited for   the state goes off the device, vLLM wakes        (`hand_over`)
    a batch is complete            vLLM sleeps, the state comes back, then the probe's comparison   (`take_back`)
    the step, its publication, record and checkpoint   on the device, beside vLLM's weights

A server's log-probabilities are compared when the trainer has the device again: wrong weights are found before a step
is taken on what they sampled, and the policy's weights need no room beside vLLM's cache.
"""

from __future__ import annotations

import logging
import time

from trainer.device_state import DeviceState
from trainer.metrics import Metrics
from trainer.model.policy import Policy
from trainer.weight_sync import session
from trainer.weight_sync.colocated import ColocatedPublisher
from trainer.weight_sync.session import ServerSession
from trainer.weight_sync.vllm_routes import Probe, PublishStats, WeightSyncError

log = logging.getLogger(__name__)


class TurnSession(ServerSession):
    """A run's session with the one server on its GPU; see the module."""

    publisher: ColocatedPublisher
    _state: DeviceState | None = None
    _asked: tuple[list[int], int] | None = None
    _probe: Probe | None = None
    _seconds = 0.0
    _paused = 0.0

    def attach(self, state: DeviceState) -> None:
        """What leaves the device while the server generates."""
        self._state = state

    def patiently(self, policy: Policy, version: int, prompt: list[int] | None = None) -> PublishStats | None:
        """The publisher's `publish`, again while the server is gone; it gets the device meanwhile, to start again."""
        assert self._state is not None
        started, warned = time.monotonic(), False
        while True:
            try:
                self.publisher.pause()
                self._state.on()
                stats = self.publisher.publish(policy, version, prompt)
                self._asked = None if prompt is None else (prompt, version)
                return stats
            except WeightSyncError as error:
                if not error.gone:
                    raise
                self._state.off()
                if self.stop.requested or time.monotonic() - started > session.AWAY_S:
                    raise
                if not warned:
                    log.warning("%s; the device is free for it to start again, at most %g s", error, session.AWAY_S)
                warned = True
            time.sleep(1.0)

    def hand_over(self, policy: Policy) -> None:
        """The device is the server's: it generates from now on. WeightSyncError where it does not wake."""
        assert self._state is not None
        started = time.monotonic()
        try:
            if self.publisher.stage == "asleep":  # no step since: a run that is stopped while it waits
                self.publisher.catch_up(policy)
            self._state.off()
            self._probe, self._paused = self.publisher.wake()
        except WeightSyncError as error:
            if not error.gone:
                raise
            log.warning("%s; the weights are sent when it is back", error)
            self._state.off()
        self._seconds = time.monotonic() - started

    def take_back(self, policy: Policy, metrics: Metrics) -> None:
        """The device is the trainer's. WeightSyncError: the server does not sleep, or sampled with other weights."""
        assert self._state is not None
        started = time.monotonic()
        self.pause()
        self._state.on()
        metrics.add("seconds_turns", self._seconds + time.monotonic() - started)
        metrics.add("seconds_pause", self._paused)
        asked, probe = self._asked, self._probe
        self._asked = self._probe = None
        if asked is not None and probe is not None:
            self.compare(asked[0], {self.publisher.server.url: probe}, policy, asked[1], metrics)

    def catch_up(self, policy: Policy) -> None:
        """The server was started again: it gets the last publication, and generates."""
        assert self._state is not None
        self.pause()
        self._state.on()
        try:
            self.publisher.catch_up(policy)
            self._unproven = max(self._unproven, 1)
        except WeightSyncError as error:
            if not error.gone:
                raise
            log.warning("%s; the weights are sent when it is back", error)
            self._state.off()
        else:
            self.hand_over(policy)
        self._looked = time.monotonic()
