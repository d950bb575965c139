"""The `disk` weight transfer engine for vLLM: new weights come as safetensors in a folder that both sides see.

vLLM calls `register` in each of its processes (entry point group vllm.general_plugins); nothing heavy is imported
before an engine is made. vLLM ships no backend that works without a GPU; its factory and its routes are open.
"""

from __future__ import annotations

import os
from typing import Any

WAIT_ASLEEP = "ATROPOS_LIVECODE_WAIT_ASLEEP"
"""Environment variable: at `1` vLLM's processes sleep while they wait for each other."""
SERVES_ADAPTER = "ATROPOS_LIVECODE_SERVES_ADAPTER"
"""Environment variable: at `1` an adapter is read when it is loaded, and not again by the requests that name it."""
_LONGEST_NAP_MS = 50


def register() -> None:
    """Make the backend `disk` known to vLLM; does nothing in a vLLM without weight transfer."""
    if os.environ.get(WAIT_ASLEEP) == "1":
        _wait_asleep()
    if os.environ.get(SERVES_ADAPTER) == "1":
        _load_adapters_once()
    try:
        from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    except ImportError:
        return
    if "disk" not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(
            "disk", "trainer.weight_sync.vllm_disk_engine", "DiskWeightTransferEngine"
        )


def _wait_asleep() -> None:
    """vLLM's scheduler spins while its worker computes, which on two cores takes a third of them; here it sleeps.

    A nap is short, so that a wake-up call that is lost costs no more than that.
    """
    from vllm.distributed.device_communicators.shm_broadcast import SpinCondition

    if getattr(SpinCondition, "waits_asleep", False):
        return
    wait = SpinCondition.wait

    def wait_asleep(self: Any, timeout_ms: float | None = None) -> Any:
        self.busy_loop_s = 0
        return wait(self, _LONGEST_NAP_MS if timeout_ms is None else min(timeout_ms, _LONGEST_NAP_MS))

    SpinCondition.wait = wait_asleep
    SpinCondition.waits_asleep = True


def _load_adapters_once() -> None:
    """vLLM 0.32 keeps `load_inplace` in what its requests carry of an adapter, with the path that was new when each one
    came. So every change of what is computed together reads the adapter from disk again, and a request from before an
    update brings the old one back for all, or ends the engine where its folder is gone. Here requests take what is
    loaded; only /v1/load_lora_adapter, which does not come by this way, loads in place."""
    from msgspec.structs import replace
    from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager

    manager: Any = LRUCacheWorkerLoRAManager
    if getattr(manager, "loads_once", False):
        return
    apply = manager._apply_adapters

    def apply_loaded(self: Any, requests: set[Any]) -> None:
        apply(self, {replace(request, load_inplace=False) for request in requests if request})

    manager._apply_adapters = apply_loaded
    manager.loads_once = True
