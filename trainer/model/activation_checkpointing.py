"""Activation checkpointing: what of a block's forward is kept for its backward, and what is computed again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from trainer.config import Recompute

_PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default}
_ATTENTION = ("_scaled_dot_product", "_varlen_attn", "_flash_attention")


def recompute(block: nn.Module, mode: Recompute) -> None:
    """Has a block keep its input only (full), or also its attention and every other matrix product (selective)."""
    if mode == "none":
        return
    context: dict[str, Any] = (
        {"context_fn": lambda: create_selective_checkpoint_contexts(_keep_half())} if mode == "selective" else {}
    )
    # On the forward itself: weights keep their names, and FSDP's hooks stay outside of the recomputation.
    block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False, **context)


def _keep_half() -> Callable[..., CheckpointPolicy]:
    seen = {True: 0, False: 0}

    def policy(context: Any, operator: Any, *_: Any, **__: Any) -> CheckpointPolicy:
        if any(name in str(operator) for name in _ATTENTION):
            return CheckpointPolicy.MUST_SAVE
        if operator in _PRODUCTS:
            # The forward and its repetition are counted apart, so that both choose the same products.
            seen[context.is_recompute] += 1
            if seen[context.is_recompute] % 2:
                return CheckpointPolicy.MUST_SAVE
        return CheckpointPolicy.PREFER_RECOMPUTE

    return policy
