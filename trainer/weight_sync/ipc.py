"""The policy's weights to a vLLM on the same GPU by CUDA IPC: vLLM's own `ipc` engine reads the trainer's memory.

Tensors are packed into one buffer on the device, which is exported once. Each fill of it is one /update_weights call
with names, shapes and sizes; vLLM's worker copies out of the buffer before it answers, so it is filled again after the
answer. Nothing passes through the host but names and the handle.

vLLM takes the handle over HTTP only pickled, and only where it was started with VLLM_ALLOW_INSECURE_SERIALIZATION=1:
`atropos serve-model --weight_transfer ipc` sets it and listens on this machine alone.

Not run on a GPU: the tests export a buffer of a CPU, everything else is real.
"""

from __future__ import annotations

import base64
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from trainer.model.policy import Policy
from trainer.weight_sync.ipc_handle import Handle, cuda_handle
from trainer.weight_sync.update_phases import ServerUpdate
from trainer.weight_sync.weight_stream import TensorSpec, WeightStream, update_info

BUFFER_BYTES = 256 * 2**20
"""Of the buffer, unless one tensor is larger: an embedding is 0.3 GB (0.6B) to 1.5 GB (14B)."""


class IpcTransfer:
    """Sends a policy's weights through one buffer on the device.

    Args:
        export: the buffer's handle.
        buffer_bytes: its size; larger where one tensor is.
    """

    backend = "ipc"
    init_info: dict[str, Any] = {"packed": True}  # noqa: RUF012

    def __init__(
        self, dtype: torch.dtype, *, export: Callable[[Tensor], Handle] = cuda_handle, buffer_bytes: int = BUFFER_BYTES
    ) -> None:
        self.dtype, self._export, self._buffer_bytes = dtype, export, buffer_bytes

    def send(self, weights: Policy, update: ServerUpdate) -> int:
        """Every tensor into the server's open update; bytes. Raises WeightSyncError."""
        stream = WeightStream(weights.model, self.dtype)
        size = max([self._buffer_bytes, *(spec.numel * self.dtype.itemsize for spec in stream.specs)])
        buffer = torch.empty(size, dtype=torch.uint8, device=weights.device)
        handle = base64.b64encode(pickle.dumps(self._export(buffer))).decode("ascii")
        for specs in _fills(stream, buffer):
            sizes = [spec.numel * self.dtype.itemsize for spec in specs]
            info = {**update_info(specs, self.dtype), "tensor_sizes": sizes, "ipc_handles_pickled": handle}
            update.phase("update", "/update_weights", {"update_info": info})
        return stream.bytes

    def close(self) -> None:
        """To be called when the update is finished, and vLLM has let go of the buffer."""
        if torch.cuda.is_available():
            torch.cuda.ipc_collect()


def _fills(stream: WeightStream, buffer: Tensor) -> Iterator[list[TensorSpec]]:
    """Packs tensors one behind the other; gives what is in the buffer, and fills it again when asked for more."""
    packed: list[TensorSpec] = []
    used = 0
    for spec, (_, whole) in zip(stream.specs, stream, strict=True):
        flat = whole.view(-1).view(torch.uint8)
        if used + flat.numel() > buffer.numel():
            _settle(buffer)
            yield packed
            packed, used = [], 0
        buffer[used : used + flat.numel()].copy_(flat)
        packed.append(spec)
        used += flat.numel()
    if packed:
        _settle(buffer)
        yield packed


def _settle(buffer: Tensor) -> None:
    """The other process sees the buffer's memory, not this one's stream."""
    if buffer.device.type == "cuda":
        torch.cuda.synchronize(buffer.device)
