"""vLLM's `nccl` weight transfer on a machine without a GPU: the communicator is replaced by one over gloo.

Replaced: `PyNcclCommunicator` (the same interface, gloo's broadcast), the CUDA streams of the packed transfer, and two
calls that ask for an accelerator. Real: vLLM's engine, its rendezvous, ranks, packing, unpacking and loading, its
routes. What is not shown here: NCCL itself, and the order of work on CUDA streams.

`plugin_path` writes the entry point by which a real vLLM server loads this module (PYTHONPATH and VLLM_PLUGINS).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import BroadcastOptions, PrefixStore, ProcessGroupGloo

PLUGIN = "gloo_nccl"
STALE = "GLOO_NCCL_STALE"
"""Environment variable of a server: while a file of this name is there, what CPU kernels keep a packed copy of stays
stale in an update, as it does in vLLM 0.32 on a CPU by itself (its tied output head)."""


class GlooCommunicator:
    """What the engines use of PyNcclCommunicator."""

    deadline = timedelta(seconds=120)

    def __init__(self, group: Any, device: Any) -> None:
        self.group = group
        self.rank, self.world_size = group.rank, group.world_size
        self.device = torch.device("cpu")
        self.available, self.disabled = True, False
        self._gloo: Any = ProcessGroupGloo(PrefixStore("gloo", group.store), self.rank, self.world_size, self.deadline)

    def broadcast(self, tensor: Tensor, src: int, stream: Any = None) -> None:
        options = BroadcastOptions()
        options.rootRank = src
        self._gloo.broadcast([tensor], options).wait()

    def destroy(self) -> None:
        self.available, self.disabled = False, True
        self._gloo = None


class _Stream:
    def synchronize(self) -> None:
        pass


def install(put: Callable[[Any, str, Any], None] = setattr) -> None:
    """Replaces vLLM's communicator in this process. put: how an attribute is set, as pytest's monkeypatch does it."""
    from vllm.distributed.device_communicators import pynccl
    from vllm.distributed.weight_transfer import packed_tensor

    put(pynccl, "PyNcclCommunicator", GlooCommunicator)
    put(packed_tensor, "_get_streams", lambda device, count: tuple(_Stream() for _ in range(count)))
    put(torch.accelerator, "current_device_index", lambda: 0)
    put(torch.accelerator, "synchronize", lambda *_: None)


def register() -> None:
    """The entry point: called by vLLM in each of its processes."""
    install()
    from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

    from trainer.weight_sync.vllm_disk_engine import refresh_packed_weights

    finish = NCCLWeightTransferEngine.finish_weight_update

    def finish_and_refresh(self: Any) -> None:
        finish(self)
        if not Path(os.environ[STALE]).exists():
            refresh_packed_weights(self.model)

    NCCLWeightTransferEngine.finish_weight_update = finish_and_refresh  # type: ignore[method-assign]


def plugin_path(folder: Path) -> str:
    """A PYTHONPATH whose first folder announces the plugin `gloo_nccl`."""
    described = folder / "gloo_nccl-0.dist-info"
    described.mkdir(parents=True)
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: gloo-nccl\nVersion: 0\n")
    (described / "entry_points.txt").write_text(
        f"[vllm.general_plugins]\n{PLUGIN} = tests.support.gloo_nccl:register\n"
    )
    root = str(Path(__file__).resolve().parents[2])
    return os.pathsep.join([str(folder), root, *filter(None, [os.environ.get("PYTHONPATH")])])
