"""A LoRA adapter on a policy (arXiv 2106.09685): peft's layers, file format and names.

peft replaces each target in the model's blocks by a layer that adds (alpha / rank) B A x to it. Only A and B train: A
begins random, B at zero, so that the policy begins as the model. The base is frozen, kept in the type that is computed
with, and in no checkpoint: it is the model folder, whose fingerprint a checkpoint names.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from environments.common.files import ordinary_mode
from trainer.adapter_config import AdapterConfig
from trainer.model.loading import LORA, UnsupportedModel, copy_own_rows

if TYPE_CHECKING:
    from peft import LoraConfig

NAME = "default"
"""peft's name of the adapter within the model; it is left out of files."""
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
_PREFIX = "base_model.model."


def lora_config(config: AdapterConfig, base: Path) -> LoraConfig:
    """peft's options for these, naming the base model's folder."""
    from peft import LoraConfig

    alpha = config.scaling * config.rank
    return LoraConfig(
        r=config.rank,
        lora_alpha=int(alpha) if alpha == int(alpha) else alpha,  # type: ignore[arg-type]  # any number works
        target_modules=list(config.targets),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        base_model_name_or_path=str(base),
        inference_mode=True,
    )


def add_adapter(
    model: PreTrainedModel,
    blocks: Sequence[nn.Module],
    config: AdapterConfig,
    base: Path,
    dtype: torch.dtype,
    adapter_dtype: torch.dtype = torch.float32,
) -> None:
    """Puts the adapter into a model on the meta device and freezes everything else, which is then of `dtype`.

    Raises UnsupportedModel for a target that is no linear layer of the model's blocks.
    """
    from peft import inject_adapter_in_model

    inside = {
        name.rpartition(".")[2]
        for block in blocks
        for name, part in block.named_modules()
        if isinstance(part, nn.Linear)
    }
    unknown = [name for name in config.targets if name not in inside]
    if unknown:
        raise UnsupportedModel(
            f"adapter.targets {unknown[0]!r}: no linear layer in the blocks of {type(model).__name__} has that name; "
            f"choose from {', '.join(sorted(inside))}"
        )
    for weight in model.parameters():
        weight.requires_grad_(False)
        weight.data = weight.data.to(dtype)
    options = lora_config(config, base)
    options.inference_mode = False
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*meta.*")
        inject_adapter_in_model(options, model, NAME)
    for name, weight in model.named_parameters():
        if LORA in name:
            weight.data = weight.data.to(adapter_dtype)


@contextmanager
def switched_off(model: nn.Module) -> Iterator[None]:
    """Within it the model computes as its base."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [part for part in model.modules() if isinstance(part, BaseTunerLayer)]
    for layer in layers:
        layer._disable_adapters = True  # peft's own switch takes requires_grad from weights that FSDP holds
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


@torch.no_grad()
def initialise(model: PreTrainedModel, seed: int) -> None:
    """peft's start, the same on any number of ranks: A uniform within 1 / sqrt(inputs), B zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if LORA not in name:
            continue
        whole = torch.zeros(weight.shape)
        if ".lora_A." in name:
            nn.init.kaiming_uniform_(whole, a=math.sqrt(5), generator=generator)
        copy_own_rows(weight, whole)


def adapter_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of a model's whole weights the adapter's, under peft's names in a file."""
    return {
        _PREFIX + name.replace(f".{NAME}.", "."): value.contiguous() for name, value in state.items() if LORA in name
    }


def merged(state: Mapping[str, Tensor], scaling: float) -> dict[str, Tensor]:
    """A model's whole weights with the adapter's product added to its targets, under the model's own names."""
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if LORA in name:
            continue
        layer, adapted, _ = name.partition(".base_layer.weight")
        if adapted:
            down, up = (state[f"{layer}{LORA}{part}.{NAME}.weight"] for part in "AB")
            value = (value.float() + scaling * (up.float() @ down.float())).to(value.dtype)
        found[name.replace(".base_layer.", ".")] = value
    return found


def write_adapter(folder: Path, weights: Mapping[str, Tensor], config: AdapterConfig, base: Path) -> None:
    """adapter_model.safetensors and adapter_config.json, as peft writes them, into an existing folder."""
    save_file(dict(weights), folder / WEIGHTS, metadata={"format": "pt"})
    ordinary_mode(folder / WEIGHTS)
    lora_config(config, base).save_pretrained(str(folder))
