"""YaRN: a model's rope scaled to a longer context, as vLLM and transformers take it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from environments.common.settings import ConfigError

YARN_ORIGINAL = {"qwen3": 32768}
"""Positions a model type was trained on where its max_position_embeddings counts the answer on top (Qwen3: 40,960)."""


def yarn_overrides(model: Path, factor: float, context: int) -> dict[str, Any]:
    """What replaces the model's rotary embedding by YaRN's (Peng et al. 2023), for vLLM and for transformers alike.

    Args:
        factor: context over the original positions. Qwen3: 32,768 positions, so 2.5 for 81,920.
        context: tokens that are to be served.

    Raises:
        ConfigError: a model that has no such embedding, or a factor that does not reach the context.
    """
    described = json.loads((model / "config.json").read_text(encoding="utf-8"))
    rope = described.get("rope_parameters") or described.get("rope_scaling") or {}
    theta = rope.get("rope_theta", described.get("rope_theta"))
    if theta is None:
        raise ConfigError(f"yarn_factor {factor:g}: {model} has no rotary embedding; leave it empty")
    original = rope.get("original_max_position_embeddings") or YARN_ORIGINAL.get(described.get("model_type", ""))
    original = original or described["max_position_embeddings"]
    reach = int(original * factor)
    if context > reach:
        raise ConfigError(
            f"max_model_len {context}: yarn_factor {factor:g} reaches {reach} tokens ({original} positions times it); "
            f"set yarn_factor {math.ceil(10 * context / original) / 10:g} or lower max_model_len"
        )
    # The override replaces the whole entry, and alone it does not raise the limit.
    return {
        "max_position_embeddings": reach,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": theta,
            "factor": factor,
            "original_max_position_embeddings": original,
        },
    }
