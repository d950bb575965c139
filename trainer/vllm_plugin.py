"""The `disk` weight transfer engine for vLLM: new weights come as safetensors in a folder that both sides see.

vLLM calls `register` in each of its processes (entry point group vllm.general_plugins); nothing heavy is imported
before an engine is made. vLLM ships no backend that works without a GPU; its factory and its routes are open.
"""

from __future__ import annotations


def register() -> None:
    """Make the backend `disk` known to vLLM; does nothing in a vLLM without weight transfer."""
    try:
        from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    except ImportError:
        return
    if "disk" not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine("disk", "trainer.vllm_disk_engine", "DiskWeightTransferEngine")
