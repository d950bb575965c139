"""The zero adapter that a server of adapters begins with: it computes what the model does, under the adapter's name."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tempfile
from pathlib import Path
from typing import Any

from environments.common.settings import ConfigError
from trainer.model.weight_files import checkpoint_files

_TARGETS = ("q_proj", "o_proj", "down_proj")


def start_adapter(model: Path) -> Path:
    """A folder in peft's format with a rank-1 adapter of zeros on one layer of the model. Raises ConfigError.

    It lies in the temporary folder under a name that its content decides, so that starts share it.
    """
    name, (outputs, inputs) = _one_layer(model)
    tensors = {f"base_model.model.{name}.lora_{part}.weight": shape for part, shape in
               (("A", (1, inputs)), ("B", (outputs, 1)))}  # fmt: skip
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 1, "lora_alpha": 1, "bias": "none"}
    config["target_modules"] = [name.rpartition(".")[2]]
    files = {"adapter_config.json": json.dumps(config).encode(), "adapter_model.safetensors": _zeros(tensors)}
    digest = hashlib.sha256(b"".join(files.values())).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"atropos-livecode-{os.getuid()}" / f"start-adapter-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        beside = folder / f".{file}.{os.getpid()}"
        beside.write_bytes(content)
        beside.replace(folder / file)
    return folder


def _one_layer(model: Path) -> tuple[str, tuple[int, int]]:
    """A linear layer that adapters of this model may have, and its (outputs, inputs)."""
    try:
        for path in checkpoint_files(model):
            for name, entry in sorted(_header(path).items()):
                layer = name.removesuffix(".weight")
                if layer != name and layer.endswith(_TARGETS) and len(entry["shape"]) == 2:
                    return layer, (entry["shape"][0], entry["shape"][1])
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise ConfigError(f"model = {model}: its weights cannot be read ({error}); copy the model again") from None
    raise ConfigError(
        f"max_lora_rank with model = {model}: none of its layers is called {', '.join(_TARGETS)}, so it takes no "
        "adapter; leave max_lora_rank out"
    )


def _header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        found: dict[str, Any] = json.loads(file.read(length))
    return found


def _zeros(shapes: dict[str, tuple[int, int]]) -> bytes:
    """A safetensors file of fp32 zeros."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (rows, columns) in shapes.items():
        begin, end = end, end + 4 * rows * columns
        header[name] = {"dtype": "F32", "shape": [rows, columns], "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + bytes(end)
