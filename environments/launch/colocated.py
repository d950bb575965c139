"""What `atropos train` sets where trainer and vLLM share one GPU in turns: `trainer.weights.backend: colocated`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from environments.common.settings import ConfigError

if TYPE_CHECKING:
    from environments.launch.config import LaunchConfig

SERVER_SHARE = 0.85
"""vLLM's gpu_memory_utilization unless it is given; the rest is what the trainer's process keeps meanwhile."""
MOST_STALENESS = 1
RESTARTS = 30
"""Of a vLLM that died asleep: it cannot start again before the trainer gives the device back, maybe minutes later."""


def is_colocated(config: LaunchConfig) -> bool:
    """Whether the two take turns."""
    return _section(config.trainer, "weights").get("backend") == "colocated"


def check_turns(config: LaunchConfig) -> None:
    """ConfigError for what one GPU in turns cannot have: field, value and fix."""
    if not is_colocated(config):
        return
    staleness = _section(config.environment, "env").get("max_staleness", MOST_STALENESS)
    if staleness not in (0, MOST_STALENESS):
        raise ConfigError(
            f"environment.env.max_staleness {staleness} with trainer.weights.backend colocated: while a step is "
            "computed nothing is generated, so groups of further steps would only grow old; set it to 0 or 1"
        )
    if config.ranks != 1:
        raise ConfigError(
            f"ranks {config.ranks} with trainer.weights.backend colocated: trainer and vLLM share one GPU; set ranks: "
            "1, or trainer.weights.backend: nccl"
        )
    if config.server_gpus != config.trainer_gpus:
        raise ConfigError(
            f"server_gpus {config.server_gpus}, trainer_gpus {config.trainer_gpus} with trainer.weights.backend "
            "colocated: both are on one GPU; give the same one twice, or leave both out"
        )
    if config.server.get("tensor_parallel_size", 1) != 1:
        raise ConfigError(
            f"server.tensor_parallel_size {config.server['tensor_parallel_size']} with trainer.weights.backend "
            "colocated: vLLM has one GPU; leave it out"
        )


def turns_defaults(config: LaunchConfig, on_cpu: bool) -> dict[str, dict[str, Any]]:
    """Options of trainer and server that follow from the turns; empty where there are none."""
    if not is_colocated(config):
        return {"trainer": {}, "server": {}}
    share = config.server.get("gpu_memory_utilization", SERVER_SHARE)
    return {
        "trainer": {"weights": {"server_share": share, "pause_while_training": False}},
        "server": {
            "weight_transfer": "disk" if on_cpu else "ipc",
            "sleep_mode": True,
            "gpu_memory_utilization": share,
        },
    }


def _section(options: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = options.get(name)
    return found if isinstance(found, Mapping) else {}
