"""New weights into running vLLM servers, through vLLM's own routes; proven by log-probabilities, not by a status.

    publisher = make_publisher(config.weights, run_dir / "weights", parallel, initial=config.model)
    stats = publisher.publish(policy, version=step)

Three ways: `disk` writes a folder that both sides see (an adapter alone where one trains), `nccl` sends from GPU to
GPU, `colocated` gives them to a server on the same GPU while it sleeps.
Routes are in vllm_routes.py, an update's phases in update_phases.py, the proof in logprob_check.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from trainer.adapter_config import AdapterConfig
from trainer.config import WeightsConfig
from trainer.model.policy import Policy
from trainer.parallel import Parallel
from trainer.weight_sync.adapter import AdapterPublisher
from trainer.weight_sync.colocated import ColocatedPublisher, transfer_for
from trainer.weight_sync.delta import DeltaPublisher
from trainer.weight_sync.disk import DiskPublisher, checkpoint_tensors
from trainer.weight_sync.logprob_check import probe, verify_sync
from trainer.weight_sync.members import named
from trainer.weight_sync.nccl import NcclPublisher
from trainer.weight_sync.nccl_group import NcclUnavailable
from trainer.weight_sync.vllm_routes import DTYPES, PauseMode, Probe, PublishStats, WeightSyncError

__all__ = [
    "AdapterPublisher",
    "ColocatedPublisher",
    "DeltaPublisher",
    "DiskPublisher",
    "NcclPublisher",
    "NcclUnavailable",
    "PauseMode",
    "Probe",
    "PublishStats",
    "WeightPublisher",
    "WeightSyncError",
    "checkpoint_tensors",
    "make_publisher",
    "probe",
    "verify_sync",
]


class WeightPublisher(Protocol):
    """Brings the policy's weights into the servers that sample from it."""

    def check(self, *, resumed: bool = False, wait_s: float = 0.0) -> None:
        """On rank 0: ask every server for its health; raises WeightSyncError for one that does not answer.

        resumed: such a run does without those that are gone. wait_s: else they are waited for so long.
        """
        ...

    def publish(self, weights: Policy, version: int, prompt: Sequence[int] | None = None) -> PublishStats | None:
        """Send the weights (Hugging Face names) as `version`; raises WeightSyncError. A collective.

        prompt: every server samples after it with the new weights. Ranks other than rank 0 get None.
        """
        ...

    def pause(self) -> None:
        """On rank 0: stop generation until the next publication."""
        ...

    def behind(self) -> list[str]:
        """On rank 0: servers that answer and are without the last publication, or stand still after it."""
        ...

    def catch_up(self, weights: Policy) -> list[str]:
        """Bring them the last publication, which are the policy's weights; those that have it now. A collective."""
        ...


def make_publisher(
    config: WeightsConfig,
    folder: Path,
    parallel: Parallel,
    *,
    initial: Path | None = None,
    adapter: AdapterConfig | None = None,
) -> WeightPublisher:
    """The publisher of `weights.backend`, on every rank.

    folder: where `disk` writes. initial: the model folder that the servers started with. adapter: with a rank, its
    adapter is sent alone. Raises NcclUnavailable when this machine cannot use `nccl`, ConfigError where
    `weights.servers_from` cannot be read.
    """
    if config.backend == "colocated":
        dtype = DTYPES[config.dtype]
        return ColocatedPublisher(
            config.servers[0],
            transfer_for(parallel.device, folder, dtype),
            parallel,
            dtype=dtype,
            sleep_level=config.sleep_level,
            deadline_s=config.deadline_s,
        )
    servers = named(config, parallel)
    options: dict[str, Any] = {
        "parallel": parallel,
        "dtype": config.dtype,
        "pause_mode": config.pause_mode,
        "deadline_s": config.deadline_s,
    }
    if config.backend == "nccl":
        return NcclPublisher(servers, address=config.nccl_address, **options)
    if adapter is not None and adapter.rank and initial is not None:
        return AdapterPublisher(servers, folder, adapter, initial, **options)
    if config.full_every > 1:
        return DeltaPublisher(servers, folder, full_every=config.full_every, initial=initial, **options)
    return DiskPublisher(servers, folder, initial=initial, **options)
