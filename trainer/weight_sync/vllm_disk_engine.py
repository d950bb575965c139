"""The engine behind vLLM's weight routes when the backend is `disk`; it lives in vLLM's worker processes."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from trainer.model.weight_files import checkpoint_files
from trainer.weight_sync.weight_delta import Change, check_fit, laid_over, read_deltas

logger = logging.getLogger("vllm.atropos.disk_weights")

HEAD = "lm_head.weight"
UNCHANGED = "the served weights are unchanged"
"""In the message of every refusal that came before a weight was touched; the publisher looks for it."""


class WeightFolderError(ValueError):
    """The folder does not hold this model's weights."""


@dataclass
class DiskInitInfo(WeightTransferInitInfo):
    """Nothing to agree on: the folder comes with each update."""


@dataclass
class DiskUpdateInfo(WeightTransferUpdateInfo):
    """Where the new weights lie: `folder` as the worker sees it."""

    folder: str


class DiskWeightTransferEngine(WeightTransferEngine[DiskInitInfo, DiskUpdateInfo]):
    """Loads a whole checkpoint (Hugging Face names) from a folder into the running model.

    Everything happens in `update_weights`: the folder is checked against the model first, so that a wrong folder
    is refused while the old weights are still whole.
    """

    init_info_cls = DiskInitInfo
    update_info_cls = DiskUpdateInfo

    def init_transfer_engine(self, init_info: DiskInitInfo) -> None:
        """Nothing to set up."""

    def start_weight_update(self) -> None:
        """Nothing to prepare: see the class."""

    def finish_weight_update(self) -> None:
        """Nothing left to do: see the class."""

    def shutdown(self) -> None:
        """Nothing to release."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Check the folder, load it, process it as vLLM did at start; returns when the device is done.

        Raises WeightFolderError when tensors are missing, unknown or of another shape.
        """
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":  # the base class asks for an accelerator unconditionally
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: DiskUpdateInfo) -> None:
        """Load the folder into the model (the base class's hook; called by `update_weights`)."""
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

        started = time.perf_counter()
        files, deltas = self._checked(Path(update_info.folder))
        expected = {name for name, _ in self.model.named_parameters()}
        initialize_layerwise_reload(self.model)
        loaded = self.model.load_weights(laid_over(files, deltas))
        finalize_layerwise_reload(self.model, self.model_config)
        refresh_packed_weights(self.model)
        missing = expected - set(loaded or ()) - self._tied()
        if missing:
            raise RuntimeError(
                f"half loaded, restart the server: {len(missing)} weights missing, {sorted(missing)[:4]}"
            )
        logger.info("weights loaded from %s in %.2f s", update_info.folder, time.perf_counter() - started)

    def _tied(self) -> set[str]:
        """Names that no published folder needs: a head that is the embedding, by the configuration or by its values.

        Where a checkpoint stores a head although its configuration ties it, vLLM takes the configuration back to
        untied, loads the head, and ties it after all if it equals the embedding; the configuration does not say which.
        """
        config = self.model_config
        if getattr(config.hf_text_config, "tie_word_embeddings", False):
            return {HEAD}
        own = {name for name, _ in self.model.named_parameters()}  # a shared one is listed once
        return {HEAD} if getattr(config, "word_embeddings_untied_by_checkpoint", False) and HEAD not in own else set()

    def _checked(self, folder: Path) -> tuple[list[Path], list[dict[str, Change]]]:
        """A checkpoint's files and what is laid over them, when they fit the served model; else WeightFolderError."""
        if any(".base_layer." in name for name, _ in self.model.named_parameters()):
            raise WeightFolderError(
                "this server was started with --enable-lora, which keeps its weights under other names: whole weights "
                "cannot be loaded. Start it without max_lora_rank and --enable-lora, or train an adapter "
                f"(adapter.rank) ({UNCHANGED})"
            )
        try:
            chain, deltas = read_deltas(folder)
            files = checkpoint_files(chain.base)
            new = _shapes(files)
            check_fit(deltas, new)
        except (ValueError, SafetensorError) as error:
            raise WeightFolderError(f"{folder} holds a broken file: {error} ({UNCHANGED})") from error
        if not files:
            raise WeightFolderError(f"no safetensors in {folder}: is it shared with this machine? ({UNCHANGED})")
        base = _shapes(checkpoint_files(Path(self.model_config.model)))
        if not base:  # a model that was not started from a local folder: names are checked after loading only
            return files, deltas
        for name in self._tied():
            new.pop(name, None)
            base.pop(name, None)
        differ = sorted(name for name in new.keys() | base.keys() if new.get(name) != base.get(name))
        if differ:
            first = differ[0]
            raise WeightFolderError(
                f"{folder} does not fit the served model: {len(differ)} tensors differ, first {first}: "
                f"shape {new.get(first)} here, {base.get(first)} there ({UNCHANGED})"
            )
        return files, deltas


def refresh_packed_weights(model: torch.nn.Module) -> None:
    """Pack again what CPU kernels keep a packed copy of and the reload did not process.

    A tied output head is such a module: it shares the embedding's tensor, so the reload finds nothing to load for
    it and its packed copy would keep the old weights. Modules whose weight was moved into the packed copy (empty
    here) were processed by the reload.
    """
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    for module in model.modules():
        weight = getattr(module, "weight", None)
        if hasattr(module, "cpu_linear") and weight is not None and weight.numel():
            dispatch_cpu_unquantized_gemm(module, remove_weight=False)


def _shapes(files: list[Path]) -> dict[str, list[int]]:
    shapes: dict[str, list[int]] = {}
    for path in files:
        with safe_open(str(path), framework="pt") as file:  # refuses a file that was cut short
            shapes.update({name: file.get_slice(name).get_shape() for name in file.keys()})  # noqa: SIM118
    return shapes
