"""A Hugging Face folder into a sharded model: built without memory, then each rank reads its own rows.

No rank ever holds a whole copy, and the type is converted on the way, row by row of the shard.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping

from environments.common.errors import ConfigError
from trainer.model import attention
from trainer.model.weight_files import INDEX, SINGLE, checkpoint_files

_ROWS = 8192
LORA = ".lora_"
"""In the names of an adapter's own weights."""


class UnsupportedModel(ConfigError):
    """The folder holds no model that this trainer computes exactly."""


def tied_names(model: PreTrainedModel) -> set[str]:
    """Names of parameters that are another one's, such as a tied output head."""
    tied: dict[str, str] = model.all_tied_weights_keys
    return {name for name, main in tied.items() if model.get_parameter(name) is model.get_parameter(main)}


def build(path: Path) -> PreTrainedModel:
    """The model of a folder on the meta device, checked tensor by tensor against its files; fp32.

    Raises UnsupportedModel for a folder without a model, missing or unknown tensors, and other shapes.
    """
    files = weight_files(path)
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention.NAME)
        found = _shapes(files)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UnsupportedModel(f"model {path}: cannot be loaded: {error}") from error
    if get_model_conversion_mapping(model, add_legacy=False):
        raise UnsupportedModel(
            f"model {path}: {type(model).__name__} stores its weights under other names than it computes with; "
            "use a dense Llama, Qwen or alike"
        )
    aliases = tied_names(model)
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items() if name not in aliases}
    problems = {
        "missing_keys": wanted.keys() - found.keys(),
        "mismatched_keys": {name for name in wanted.keys() & found.keys() if wanted[name] != found[name]},
        "unexpected_keys": found.keys() - wanted.keys() - aliases,
    }
    for problem, names in problems.items():
        if names:
            raise UnsupportedModel(
                f"model {path}: {problem} {sorted(names)[:3]}: the folder is incomplete or its config.json belongs to "
                "another model"
            )
    _check_stored_aliases(model, path, files, found)
    return cast(PreTrainedModel, model)


def _check_stored_aliases(
    model: PreTrainedModel, path: Path, files: list[Path], found: dict[str, tuple[int, ...]]
) -> None:
    """A tied head that the files hold as well has to be the embedding: transformers and vLLM use the stored one."""
    for name in tied_names(model) & found.keys():
        main = model.all_tied_weights_keys[name]
        if found[name] != found[main] or not _equal(files, name, main):
            raise UnsupportedModel(
                f"model {path}: config.json ties {name} to {main}, and the files hold a {name} that differs, which "
                "transformers and vLLM compute with: set tie_word_embeddings to false in its config.json"
            )


def _equal(files: list[Path], one: str, other: str) -> bool:
    """Whether two tensors of a folder are the same, compared some rows at a time."""
    with ExitStack() as opened:
        slices: dict[str, Any] = {}
        for file in files:
            tensors = opened.enter_context(safe_open(str(file), framework="pt"))
            slices |= {name: tensors.get_slice(name) for name in {one, other} & set(tensors.keys())}
        rows = slices[one].get_shape()[0]
        return all(
            torch.equal(slices[one][row : row + _ROWS].float(), slices[other][row : row + _ROWS].float())
            for row in range(0, rows, _ROWS)
        )


def weight_files(path: Path) -> list[Path]:
    """The files that a model folder's weights are in, as transformers finds them; nothing is read of them.

    model.safetensors where there is one, else what model.safetensors.index.json names: other files, such as shards of
    an older save or the same weights in another layout, are not the model's. Raises UnsupportedModel.
    """
    if not (path / "config.json").is_file():
        raise UnsupportedModel(f"model {path}: no config.json there; give the folder of a Hugging Face model")
    try:
        files = checkpoint_files(path)
    except ValueError as error:
        raise UnsupportedModel(f"model {path}: {error}") from None
    if not files:
        others = ", ".join(file.name for file in sorted(path.glob("*.safetensors"))[:3])
        raise UnsupportedModel(
            f"model {path}: neither {SINGLE} nor {INDEX} there"
            + (f", beside {others}; give the whole folder" if others else "; convert the weights to safetensors")
        )
    return files


def stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of each tensor in a model folder's files; no tensor is read. Raises UnsupportedModel."""
    try:
        return _shapes(weight_files(path))
    except (OSError, SafetensorError) as error:
        raise UnsupportedModel(f"model {path}: cannot be loaded: {error}") from None


@torch.no_grad()
def fill(model: PreTrainedModel, path: Path, device: torch.device) -> None:
    """Gives the sharded model of `build` its memory on `device`, and this rank's part of the folder's weights."""
    model.to_empty(device=device)
    aliases, state = tied_names(model), model.state_dict()
    waiting = {stored_name(name): value for name, value in state.items() if name not in aliases and LORA not in name}
    for file in weight_files(path):
        with safe_open(str(file), framework="pt") as tensors:
            for name in tensors.keys() & waiting.keys():
                copy_own_rows(waiting[name], tensors.get_slice(name))
    _restore_computed_buffers(model, set(waiting))


def stored_name(name: str) -> str:
    """A frozen weight's name in a checkpoint: peft moves the weights that it adapts into `base_layer`."""
    return name.replace(".base_layer.", ".")


def copy_own_rows(target: Tensor, source: object) -> None:
    """Fills a weight, or this rank's rows of a sharded one, from the whole one, which may be a file's slice."""
    if not isinstance(target, DTensor):
        target.copy_(source[:])  # type: ignore[index]
        return
    shape, offset = compute_local_shape_and_global_offset(target.shape, target.device_mesh, target.placements)
    if shape[0]:
        target.to_local().copy_(source[offset[0] : offset[0] + shape[0]])  # type: ignore[index]


def _restore_computed_buffers(model: PreTrainedModel, stored: set[str]) -> None:
    """What no file holds, such as rotary frequencies, is computed by transformers' own initialisation."""
    computed = {name: buffer for name, buffer in model.named_buffers() if name not in stored}
    for buffer in computed.values():
        buffer.fill_(torch.nan)
    for owner in sorted({name.rpartition(".")[0] for name in computed}):
        model._init_weights(model.get_submodule(owner))
    for name in computed:
        if model.get_buffer(name).isnan().any():
            raise UnsupportedModel(f"{type(model).__name__}: buffer {name} is in no file and cannot be computed")


def _shapes(files: list[Path]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        with safe_open(str(file), framework="pt") as tensors:
            shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    return shapes
