"""A trained LoRA adapter as vLLM serves it: the name that trainer and environment ask for, and ranks."""

from __future__ import annotations

SERVED_ADAPTER = "policy-adapter"
"""The adapter's model name in a server's routes. `atropos serve-model --max_lora_rank N` begins with a zero adapter of
this name, so that no request ever means the base model; the trainer loads each version over it."""

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The largest ranks that vLLM accepts."""


def served_rank(rank: int) -> int:
    """The smallest of RANKS that an adapter of this rank fits in."""
    return next(largest for largest in RANKS if largest >= rank)
