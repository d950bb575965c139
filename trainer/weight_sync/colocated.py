"""The `colocated` publisher: one vLLM server on the trainer's own GPU, which sleeps while the trainer computes.

    pause      /sleep?mode=keep: generation stops, its memory is the trainer's
    publish    /wake_up?tags=weights -> start -> update -> finish -> clear the prefix cache -> version
    wake       the probe is sent -> /wake_up?tags=kv_cache -> /resume -> the probe's answer

What vLLM 0.32 does, and what follows from it:

- `mode=keep`. Requests under way stay in vLLM with the tokens that they have. Their cache is dropped when vLLM falls
  asleep and computed again, with the new weights, after it is awake; each token carries its version. `abort` would lose
  no rollout either, since the environment sends it again, but draws it again from the beginning: of long and short
  answers the long ones are aborted, so the batch would be biased to short ones. `wait` keeps the GPU idle for the
  longest answer. With staleness 0 nothing is under way when a batch is complete, and the three are the same.
- A request that comes while vLLM sleeps is queued. So is an evaluation's: it is computed by the weights that vLLM names
  when it wakes, and the name is given before.
- The scheduler resumes by itself as soon as all memory is back. So the cache's memory comes last, after the new weights
  are whole and named: with level 2 the old ones are gone, and a token sampled earlier would come from nothing.
- A server that a dead trainer left asleep is woken by the first call of the next one, but not wholly: its weights come
  back and the scheduler stays paused until a publication.

On a CPU vLLM's worker keeps its memory through /sleep and the scheduler does the same as on a GPU, so the calls and
their order are those of a GPU; weights go through a folder there, since CUDA IPC needs CUDA.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from safetensors.torch import save_file

from environments.common.files import ordinary_mode
from trainer.model.policy import Policy
from trainer.model.weight_files import SINGLE
from trainer.parallel import Parallel
from trainer.weight_sync.disk import checkpoint_tensors
from trainer.weight_sync.ipc import IpcTransfer
from trainer.weight_sync.server_options import check_options
from trainer.weight_sync.update_phases import ServerUpdate
from trainer.weight_sync.vllm_routes import Probe, PublishStats, WeightServer, WeightSyncError, check_all
from trainer.weight_sync.weight_stream import ServedCopy, WeightStream

logger = logging.getLogger(__name__)

Stage = Literal["awake", "asleep", "weights"]
"""What the server has in memory: all, nothing, or its weights alone."""


class Transfer(Protocol):
    """How the weights get into an update that is open."""

    backend: str
    init_info: dict[str, Any]

    def send(self, weights: Policy, update: ServerUpdate) -> int:
        """Every tensor; bytes. Raises WeightSyncError."""
        ...

    def close(self) -> None:
        """The update is finished."""
        ...


class FolderTransfer:
    """Through a folder, by the project's own engine `disk`: what a machine without CUDA has in the place of IPC."""

    backend = "disk"
    init_info: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self.folder, self.dtype = folder.resolve(), dtype

    def send(self, weights: Policy, update: ServerUpdate) -> int:
        """Writes the folder and has the server read it."""
        tensors = checkpoint_tensors(weights, self.dtype)
        written = self.folder / f"colocated-{time.time_ns()}"
        written.mkdir(parents=True)
        save_file(tensors, str(written / SINGLE))
        ordinary_mode(written / SINGLE)
        update.phase("update", "/update_weights", {"update_info": {"folder": str(written)}})
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())

    def close(self) -> None:
        """Removes what was written, by this update and by those that broke off."""
        for written in self.folder.glob("colocated-*"):
            shutil.rmtree(written, ignore_errors=True)


def transfer_for(device: torch.device, folder: Path, dtype: torch.dtype) -> Transfer:
    """CUDA IPC on a GPU, a folder on a CPU."""
    return IpcTransfer(dtype) if device.type == "cuda" else FolderTransfer(folder, dtype)


class ColocatedPublisher:
    """Puts the server to sleep, gives it the weights and wakes it. One process trains, one server samples.

    Args:
        server: its address.
        transfer: how the weights get there.
        sleep_level: 1: vLLM keeps its weights in host memory while it sleeps; 2: it drops them.
        deadline_s: longest time of one call, in seconds.
    """

    def __init__(
        self,
        server: str,
        transfer: Transfer,
        parallel: Parallel,
        *,
        dtype: torch.dtype,
        sleep_level: int = 1,
        deadline_s: float = 120.0,
    ) -> None:
        self.server = WeightServer(server, deadline_s)
        self.transfer, self.parallel = transfer, parallel
        self.dtype, self.sleep_level = dtype, sleep_level
        self.stage: Stage | None = None  # None: another process may have left it in any
        self._half_loaded: set[str] = set()
        self._update = ServerUpdate(self.server, self._half_loaded)
        self._initialised = False
        self._copy = ServedCopy()
        self._compared: tuple[int, float | None] | None = None
        self._published: str | None = None
        self._prompt: Sequence[int] | None = None

    def check(self, *, resumed: bool = False, wait_s: float = 0.0) -> None:
        """Ask the server for its health and what it was started with; raises WeightSyncError (phase "health")."""
        check_all([self.server], resumed=resumed, wait_s=wait_s)
        check_options(self.server, "colocated", self.transfer.backend, sleeps=self.transfer.backend == "ipc")

    def pause(self) -> None:
        """Puts the server to sleep; one that sleeps already is left with its weights in memory. WeightSyncError."""
        if self.stage in ("asleep", "weights"):
            return
        self._update = ServerUpdate(self.server, self._half_loaded)
        try:
            if self.stage is None and self._wake_weights() == "weights":
                logger.info("%s was asleep, left so by a trainer that ended; it gets the weights next", self.server.url)
                self.stage = "weights"
                return
            self._update.sleep(self.sleep_level)
            self.stage = "asleep"
        except WeightSyncError as error:
            raise self._given_up(error) from error

    def publish(self, weights: Policy, version: int, prompt: Sequence[int] | None = None) -> PublishStats | None:
        """Gives the sleeping server the policy's weights as `version`; it stays paused until `wake`.

        prompt: what the server is probed with when it wakes. The policy's weights have to be on the device. Raises
        WeightSyncError.
        """
        started = time.perf_counter()
        if self._compared is None or self._compared[0] != version:  # a publication that broke off is repeated
            changed = self._copy.changed_share(WeightStream(weights.model, self.dtype), self.parallel)
            self._compared = version, changed
        compared = time.perf_counter() - started
        self.pause()
        try:
            size = self._give(weights, str(version))
        except WeightSyncError as error:
            raise self._given_up(error) from error
        self._published = str(version)
        self._prompt = prompt
        seconds = {"compare": compared, **self._update.seconds, "total": time.perf_counter() - started}
        return PublishStats(version, seconds, self._compared[1], size)

    def wake(self) -> tuple[Probe | None, float]:
        """Lets the server generate; its answer to the prompt of `publish`, and how long generation stood still, in
        seconds. The device has to have room for its cache. Raises WeightSyncError."""
        if self.stage == "awake":
            return None, 0.0
        prompt, self._prompt = self._prompt, None
        try:
            self._update.resume(prompt, self._wake_cache)
        except WeightSyncError as error:
            raise self._given_up(error) from error
        return self._update.probe, self._update.seconds.get("paused", 0.0)

    def behind(self) -> list[str]:
        """The server, where it answers and serves something else than the last publication or stands still."""
        return [self.server.url] if self._published is not None and self.server.is_behind(self._published) else []

    def catch_up(self, weights: Policy) -> list[str]:
        """Gives the server the last publication again, which are the policy's weights; `wake` next.

        It was started again, or has slept since without a step in between. Raises WeightSyncError: what may be half
        loaded is not to be woken.
        """
        if self._published is None:
            return []
        self.publish(weights, int(self._published))
        logger.info("%s has the weights of step %s", self.server.url, self._published)
        return [self.server.url]

    # -- the calls -------------------------------------------------------------------------------------------

    def _give(self, weights: Policy, version: str) -> int:
        update = self._update
        if self.stage == "asleep" and self._wake_weights() == "awake":
            # It was started again in the meantime, with everything in memory.
            self._initialised = False
            update.sleep(self.sleep_level)
            if self._wake_weights() == "awake":
                raise WeightSyncError(self.server.url, "wake", "it is awake right after it was put to sleep")
        self.stage = "weights"
        if not self._initialised or self.server.was_started_again():
            update.phase("init", "/init_weight_transfer_engine", {"init_info": self.transfer.init_info})
            self._initialised = True
        update.start()
        size = self.transfer.send(weights, update)
        update.name(version)
        self.transfer.close()
        return size

    def _wake_weights(self) -> Stage:
        """Has the server's weights in memory; "awake" where all of it is, and always was."""
        return "weights" if self._woken("weights") == "sleeping" else "awake"

    def _wake_cache(self) -> None:
        if self._woken("kv_cache") != "awake":
            raise WeightSyncError(self.server.url, "wake", "it says that it still sleeps after its cache was woken")
        self.stage = "awake"

    def _woken(self, tags: str) -> str:
        return str(self._update.phase("wake", f"/wake_up?tags={tags}").get("status"))

    def _given_up(self, error: WeightSyncError) -> WeightSyncError:
        """The error as it is to be raised. A server that is gone comes back awake, with the weights of its start."""
        if error.gone:
            self.stage, self._initialised = None, False
            self._half_loaded.clear()
            return error
        asleep = "; it stays asleep: the next start of the trainer wakes it and sends the weights"
        reason = error.reason + (asleep if self.stage != "awake" and self.server.url in self._half_loaded else "")
        return WeightSyncError(error.server, error.phase, reason, late=error.late)
