"""A policy as a Hugging Face folder that transformers and vLLM load: weights, configuration, tokenizer."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file

from environments.common.errors import ConfigError
from environments.common.files import ordinary_mode
from trainer.model.adapter import CONFIG, write_adapter
from trainer.model.policy import Policy
from trainer.parallel import barrier

TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template*",
    "*.model",
    "*.tiktoken",
)
"""What is copied from the tokenizer's source, byte for byte."""

GENERATION = "generation_config.json"
"""So is this: its end-of-text tokens belong to the model, and its other options are the user's."""


class ExportError(ConfigError, RuntimeError):
    """The folder cannot be written where or how it was asked for."""


def check_export(final: Path, source: Path) -> list[Path]:
    """The files that an export copies from the first model. Raises ExportError where it cannot be written there.

    A run asks before it begins, so that it does not find out after its last step.
    """
    patterns = (*TOKENIZER_FILES, GENERATION)
    files = sorted({file for pattern in patterns for file in source.glob(pattern) if file.is_file()})
    if not any(file.name != GENERATION for file in files):
        raise ExportError(f"tokenizer_source {source}: no tokenizer files there; give the folder of the first model")
    if final.resolve() == source.resolve():
        raise ExportError(f"folder {final} is the model that the run began with; give another one")
    _check_free(final)
    return files


def _check_free(final: Path) -> None:
    known = any((final / name).is_file() for name in ("config.json", CONFIG))
    if final.exists() and not known and (not final.is_dir() or any(final.iterdir())):
        raise ExportError(f"folder {final} exists and is no model; give another one")


def save_hf(
    policy: Policy,
    folder: str | Path,
    tokenizer_source: str | Path,
    dtype: torch.dtype | None = None,
    deadline_s: float = 600.0,
) -> Path:
    """Writes the policy to `folder`, replacing what is there, and returns it. A collective; rank 0 writes.

    An adapter is merged into its model.

    tokenizer_source: folder whose tokenizer files and generation_config.json are copied (the run's first model).
    dtype: of the weights; None keeps fp32. The folder appears complete or not at all. Raises ExportError without a
    tokenizer, and for a folder that holds something else than an export.
    """
    final, source = Path(folder), Path(tokenizer_source)
    files = check_export(final, source)
    weights = policy.state_dict_full(dtype)
    if policy.parallel.is_main:
        partial = _emptied(final)
        _write_weights(weights, partial)
        config = copy.deepcopy(policy.model.config)
        config.architectures = [type(policy.model).__name__.removeprefix("FSDP")]
        config.dtype = dtype or torch.float32
        # Not save_pretrained, which refuses what it reads: models carry sampling options that contradict each other.
        config.to_json_file(partial / "config.json", use_diff=True)
        for file in files:
            shutil.copyfile(file, partial / file.name)
        _put(partial, final)
    barrier(policy.parallel, deadline_s, f"export to {final}")
    return final


def save_adapter(
    policy: Policy, folder: str | Path, dtype: torch.dtype | None = None, deadline_s: float = 600.0
) -> Path:
    """Writes the adapter alone to `folder` in peft's format, replacing what is there. A collective; rank 0 writes.

    dtype: of the weights; None keeps fp32. Raises ExportError without an adapter, and for a folder that holds something
    else than an export.
    """
    final = Path(folder)
    if policy.adapter is None:
        raise ExportError(
            f"folder {final}: there is no adapter in this run, all weights were trained; export the model"
        )
    _check_free(final)
    weights = policy.adapter_state(dtype)
    if policy.parallel.is_main:
        partial = _emptied(final)
        write_adapter(partial, weights, policy.adapter, policy.path)
        _put(partial, final)
    barrier(policy.parallel, deadline_s, f"export to {final}")
    return final


def _emptied(final: Path) -> Path:
    """The folder beside the final one that it is written in."""
    partial = final.with_name(f".{final.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    return partial


def _put(partial: Path, final: Path) -> None:
    if final.exists():
        shutil.rmtree(final)
    partial.rename(final)


def _write_weights(weights: dict[str, torch.Tensor], folder: Path) -> None:
    plan = split_torch_state_dict_into_shards(weights, filename_pattern="model{suffix}.safetensors")
    for name, keys in plan.filename_to_tensors.items():
        save_file({key: weights[key].contiguous() for key in keys}, folder / name, metadata={"format": "pt"})
        ordinary_mode(folder / name)
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
