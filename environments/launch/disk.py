"""What a run writes to the disk, predicted before it starts."""

from __future__ import annotations

import json
import shutil
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path

from environments.common.errors import ConfigError
from trainer.adapter_config import AdapterConfig
from trainer.config import TrainerConfig

_GIB = 2**30
_CHECKPOINT_BYTES = 12  # of a parameter: fp32 weights and AdamW's two moments
_EXPORT_BYTES = 4
_SERVED_BYTES = {"float32": 4, "bfloat16": 2}
_RECORDS_GIB = 0.5  # journal, rollouts, logs: an allowance, they grow with the run


@dataclass(frozen=True)
class RunDiskUse:
    """Bytes at the moment when a run has most on the disk.

    checkpoints: those kept, the best one beside them, and one that is being written.
    """

    checkpoint: int
    checkpoints: int
    export: int
    exchange: int

    @property
    def total(self) -> int:
        """All of it, with an allowance for records."""
        return self.checkpoint * self.checkpoints + self.export + self.exchange + int(_RECORDS_GIB * _GIB)


def parameters(model: Path, adapter: AdapterConfig | None = None) -> int:
    """How many numbers the safetensors files of a model's folder hold; 0 where there are none that can be read.

    adapter: how many such an adapter of the model has, instead.
    """
    shapes: dict[str, list[int]] = {}
    for path in sorted(model.glob("*.safetensors")):
        try:
            with path.open("rb") as file:
                header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        except (OSError, ValueError, struct.error):
            return 0
        shapes |= {name: tensor["shape"] for name, tensor in header.items() if name != "__metadata__"}
    return sum(map(prod, shapes.values())) if adapter is None else adapter.parameters(shapes)


def disk_use(config: TrainerConfig) -> RunDiskUse:
    """What the trainer's options lead to. At most two exchanged copies of the weights lie there at the same time."""
    count = parameters(config.model, config.adapter if config.adapter.rank else None)
    return RunDiskUse(
        checkpoint=count * _CHECKPOINT_BYTES,
        checkpoints=config.checkpoint.keep_last + 1,
        export=count * _EXPORT_BYTES if config.checkpoint.export else 0,
        exchange=2 * count * _SERVED_BYTES[config.weights.dtype] if config.weights.backend == "disk" else 0,
    )


def check_disk(config: TrainerConfig) -> str:
    """One line of what the run will have on the disk at the most; ConfigError where it is not free.

    What is in the folder already counts as free, as far as the run replaces it.
    """
    use, folder = disk_use(config), config.run_dir
    there = sum(path.stat().st_size for part in ("checkpoints", "weights", "export") for path in _files(folder / part))
    free = shutil.disk_usage(folder).free
    line = (
        f"disk: at most {use.total / _GIB:.1f} GiB ({use.checkpoints} checkpoints of {use.checkpoint / _GIB:.1f}, one "
        f"of them being written; weights for vLLM {use.exchange / _GIB:.1f}; export {use.export / _GIB:.1f}; records "
        f"{_RECORDS_GIB}), {free / _GIB:.1f} GiB free"
    )
    if use.total - there > free:
        raise ConfigError(
            f"run_dir {folder}: {line}. Free some space, give a folder on another disk, or lower checkpoint.keep_last"
        )
    return line


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
