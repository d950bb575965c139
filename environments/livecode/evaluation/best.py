"""best.json and checkpoints/best: the checkpoint with the best score on held-out problems."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from environments.common.files import write_text


def score_row(checkpoint: str, record: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """What scores.jsonl and best.json say of a checkpoint.

    Args:
        record: of `HeldOutSets.score`.
        stage: training: scored while the run went on; screen, full: by `atropos select`.
    """
    problems = "\n".join(sorted(record["per_problem"]))
    return {
        "checkpoint": checkpoint,
        "step": int(checkpoint.removeprefix("step-")),
        "stage": stage,
        "set": record["set"],
        "context": (record.get("settings") or {}).get("context"),
        "n": record["n"],
        "seed": record["seed"],
        "profile": record["profile"],
        "problems_sha256": hashlib.sha256(problems.encode()).hexdigest(),
        "pass_at_1": record["pass_at_1"],
        "ci95": record["ci95"],
        "profiles": {name: [graded["pass_at_1"], *graded["ci95"]] for name, graded in record["profiles"].items()},
    }


def choose(run: Path, choice: Mapping[str, Any]) -> None:
    """Writes RUN/best.json and has RUN/checkpoints/best name the checkpoint, which retention then spares.

    Raises:
        CheckpointError: it is missing or incomplete.
    """
    from trainer.checkpoint_folder import point_best  # the trainer's names, no torch

    write_text(run / "best.json", json.dumps(choice, indent=1) + "\n")
    point_best(run / "checkpoints", choice["checkpoint"])
