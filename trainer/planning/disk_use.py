"""What a run writes to the disk, before it writes it: the bound that checkpoints, weights and export keep to."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from trainer.config import TrainerConfig

GIB = 2**30
_BYTES = {"float32": 4, "bfloat16": 2}
HEAD = "lm_head.weight"
_TOKEN = 5 + 9
"""Bytes of a token in a stored batch before compression: its id and its log-probability, as msgpack writes them."""
_FINGERPRINT = 160
_STEP = 64 * 2**10
"""Configuration, metrics and names beside the tokens of a stored batch."""
WEIGHT_VERSIONS = 2
"""In the exchange folder of backend `disk`: the last one, and the one being written."""


@dataclass(frozen=True)
class DiskUse:
    """Largest sizes in bytes, and the number of each."""

    checkpoint: int
    checkpoints: int
    weights: int
    export: int
    batch: int = 0
    batches: int = 0
    versions: int = WEIGHT_VERSIONS

    @property
    def total(self) -> int:
        """Largest use at any time."""
        return (
            self.checkpoint * self.checkpoints + self.weights * self.versions + self.export + self.batch * self.batches
        )


def disk_use(config: TrainerConfig, shapes: Mapping[str, tuple[int, ...]]) -> DiskUse:
    """What the run needs at most; records and logs, some KB for a step, are not in it.

    shapes: of the tensors in the model's files. A tied head that they hold as well counts, though it is left out.

    Checkpoints: `keep_last`, the best one where another is chosen, and the one being written. The export is written
    beside the one that it replaces.
    """
    parameters = sum(prod(shape) for shape in shapes.values())
    # DCP writes a tensor under each of its names, and a tied head is one.
    tied = 0 if HEAD in shapes else max((prod(shape) for name, shape in shapes.items() if "embed" in name), default=0)
    saves = config.steps // config.checkpoint.every if config.checkpoint.every else 0
    # An adapter is saved, sent and exported alone.
    trained = config.adapter.parameters(shapes) if config.adapter.rank else parameters
    kept = config.optimizer.moments
    if config.adapter.rank:
        moments = trained * (8 if kept == "fp32" else 4 if kept == "bf16" else 2 + -(-8 // config.adapter.rank))
    else:
        moments = sum(_moments(shape, kept) for shape in shapes.values())
    # A running mean is saved once, without the tied head's second name.
    mean = parameters * 4 if config.objective.reference == "ema" else 0
    sends = config.weights.sends and config.weights.backend == "disk"
    return DiskUse(
        checkpoint=trained * 4 + moments + (0 if config.adapter.rank else tied * 4) + mean,
        checkpoints=min(config.checkpoint.keep_last + 2, saves + 1),  # one more at the end, or when it is stopped
        weights=trained * _BYTES[config.weights.dtype] if sends else 0,
        export=trained * 4 * 2 if config.checkpoint.export else 0,
        batch=_batch(config, len(shapes) * (3 if config.adapter.rank else 1)) if config.keep_batches else 0,
        batches=min(config.keep_batches + 1, config.steps) if config.keep_batches else 0,
        # Deltas, which together are smaller than a whole version, beside the two.
        versions=WEIGHT_VERSIONS + (config.weights.full_every > 1),
    )


def _moments(shape: tuple[int, ...], kept: str) -> int:
    """Bytes of AdamW's moments of a weight (trainer.moment_formats): of 8 bits, a row has a scale for 256 entries."""
    if kept == "int8" and len(shape) > 1:
        return 2 * (prod(shape) + 4 * shape[0] * -(-prod(shape[1:]) // 256))
    return prod(shape) * (4 if kept == "bf16" else 8)


def _batch(config: TrainerConfig, tensors: int) -> int:
    """A stored batch at its longest, as if nothing were saved by compression."""
    phases = 1 + 2 * config.objective.optimizer_steps_per_batch
    return config.batch.rollouts * (config.batch.context * _TOKEN + 200) + phases * tensors * _FINGERPRINT + _STEP


def line(use: DiskUse, folder: Path) -> str:
    """The prediction beside what is free, with a warning where that is less than what is to come."""
    free = shutil.disk_usage(folder).free
    parts = [
        f"{use.checkpoints} checkpoints of {_size(use.checkpoint)} each, the best and one being written included",
        f"{use.versions} weight versions of {_size(use.weights)}" if use.weights else "",
        f"export {_size(use.export)} (half of it while it is replaced)" if use.export else "",
        f"{use.batches} stored batches of {_size(use.batch)} before compression" if use.batches else "",
    ]
    short = f"; that may not be enough: lower checkpoint.keep_last, or free {_size(use.total - free)}"
    return (
        f"{folder} takes at most {_size(use.total)} of the disk: {', '.join(filter(None, parts))}; "
        f"{_size(free)} are free{short if free < use.total else ''}"
    )


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB / 10 else f"{count / 2**20:.1f} MiB"
