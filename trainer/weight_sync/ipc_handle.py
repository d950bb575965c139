"""The handle by which another process on the same GPU reads a tensor's memory (CUDA IPC)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Handle = dict[str, tuple[Any, ...]]
"""By a GPU's UUID, what `torch.multiprocessing.reductions.rebuild_cuda_tensor` takes: the form of vLLM's ipc engine."""


def cuda_handle(buffer: Tensor) -> Handle:
    """Of a tensor on a GPU. It has to outlive the other process's use, and is not changed meanwhile."""
    from torch.multiprocessing.reductions import reduce_tensor

    _, arguments = reduce_tensor(buffer)
    return {str(torch.cuda.get_device_properties(buffer.device).uuid): arguments}
