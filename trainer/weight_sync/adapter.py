"""A LoRA adapter into running vLLM servers: megabytes, in peft's format, loaded over the version before.

The way is that of `disk`, with vLLM's runtime loading in the place of the weight transfer:
pause -> load in place -> clear the prefix cache -> version -> resume. Every version has a folder of its own, and the
cache is cleared nevertheless: running requests keep blocks that the old adapter filled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch

from environments.common.served_adapter import SERVED_ADAPTER
from environments.common.server_list import WatchedServers
from trainer.adapter_config import AdapterConfig
from trainer.model.adapter import WEIGHTS, write_adapter
from trainer.model.policy import Policy
from trainer.parallel import Parallel
from trainer.weight_sync.disk import DiskPublisher
from trainer.weight_sync.update_phases import ServerUpdate
from trainer.weight_sync.vllm_routes import PauseMode


class AdapterPublisher(DiskPublisher):
    """Writes a policy's adapter into a folder and has every server load it; see DiskPublisher.

    Args:
        adapter: the adapter's options.
        base: the model folder that it belongs to, which the servers were started with.
    """

    ADAPTER: ClassVar[str | None] = SERVED_ADAPTER

    def __init__(
        self,
        servers: Sequence[str] | WatchedServers,
        folder: Path,
        adapter: AdapterConfig,
        base: Path,
        *,
        parallel: Parallel | None = None,
        dtype: str = "float32",
        pause_mode: PauseMode = "keep",
        deadline_s: float = 120.0,
    ) -> None:
        super().__init__(servers, folder, parallel=parallel, dtype=dtype, pause_mode=pause_mode, deadline_s=deadline_s)
        self.adapter, self.base = adapter, base

    def _tensors(self, weights: Mapping[str, torch.Tensor] | torch.nn.Module) -> dict[str, torch.Tensor]:
        assert isinstance(weights, Policy)
        return weights.adapter_state(self.dtype)

    def _save(self, tensors: dict[str, torch.Tensor], folder: Path) -> None:
        write_adapter(folder, tensors, self.adapter, self.base)

    def _files(self, folder: Path) -> list[Path]:
        return [folder / WEIGHTS]

    def _send(self, update: ServerUpdate, written: Path, version: str, prompt: Sequence[int] | None) -> None:
        self._reading[update.server.url] = written
        update.load_adapter(SERVED_ADAPTER, written)
        self._reading.pop(update.server.url)
        update.finish(version, prompt, opened=False)
