"""What each step adds to the run's JSON-lines files."""

from __future__ import annotations

import json
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from environments.common.run_folder import append_line
from trainer.start import RecordError


def write_rows(run_dir: Path, way_on: str, **rows: Mapping[str, Any]) -> None:
    """One more line of each file NAME.jsonl, in this order. RecordError says what resumes the run: `way_on`."""
    for name, row in rows.items():
        path = run_dir / f"{name}.jsonl"
        try:
            append_line(path, json.dumps(row))
        except OSError as error:
            raise RecordError(
                f"{path}: cannot be written ({error.strerror}): free space on that disk; then {way_on} resumes"
            ) from None


def peak_memory_gib() -> float:
    """Highest memory in use so far, in GiB: the GPU's by tensors, or this process's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
