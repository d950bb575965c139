"""Floating-point operations of a training step, counted from the lengths in it, and what a GPU does in a second.

The convention, which every MFU depends on: a multiply and an add are two operations; attention is causal, so only the
(query, key) pairs that attend to each other count; a shared prompt counts once, as it is computed; the head
counts for trained tokens only; norms, softmax and the optimizer count nothing. The backward pass is twice the forward.
MFU leaves out what is computed twice; with it the same quotient is called HFU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from trainer.model.layout import AttentionLayout, Span


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU."""

    memory_gib: float
    """What torch.cuda reports as total memory, in GiB."""
    bf16_flops: float
    """Peak of dense bf16 products with fp32 sums, in operations a second (NVIDIA's data sheets, without sparsity)."""


GPUS: dict[str, Gpu] = {
    "a100": Gpu(79.1, 312e12),
    "h100": Gpu(79.1, 989e12),
    "h200": Gpu(139.8, 989e12),
    "b200": Gpu(178.3, 2250e12),
}
"""SXM modules by name: A100 80 GB, H100 80 GB, H200 141 GB, B200 180 GB."""


def head_dim(config: PretrainedConfig) -> int:
    """Width of one attention head; where the configuration has none it is hidden / heads."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def block_weights(config: PretrainedConfig) -> int:
    """Entries of one block's matrices: query, key, value and output projections, gate, up and down."""
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    attention = config.hidden_size * head_dim(config) * (2 * heads + 2 * groups)
    return int(attention + 3 * config.hidden_size * config.intermediate_size)


def attended_pairs(layout: AttentionLayout) -> int:
    """(query, key) pairs of a pack: each position with itself and what is before it in its sequence."""
    return sum(_pairs(span) for span in layout.spans)


def _pairs(span: Span) -> int:
    own = sum(length * span.whole_prompt + length * (length + 1) // 2 for length in span.completions)
    return span.prompt * span.shared + span.prompt * (span.prompt + 1) // 2 + own


def flops(
    config: PretrainedConfig, tokens: int, pairs: int, trained: int, *, backward: bool, recompute: bool = False
) -> float:
    """Operations for packed positions, (query, key) pairs and trained tokens; see `step_flops`."""
    width = config.num_attention_heads * head_dim(config)
    blocks = config.num_hidden_layers * (2.0 * block_weights(config) * tokens + 4.0 * width * pairs)
    head = 2.0 * config.hidden_size * config.vocab_size * trained
    total = blocks + head
    if backward:
        total += 2 * (blocks + head)
        if recompute:
            # The repetition ends where the last kept tensor is there: the down projection's result is not needed.
            unneeded = config.num_hidden_layers * 2.0 * config.hidden_size * config.intermediate_size * tokens
            total += blocks - unneeded + head
    return float(total)


def step_flops(
    config: PretrainedConfig, layout: AttentionLayout, trained: int, *, backward: bool, recompute: bool
) -> float:
    """Operations of one forward over a pack (and of its backward) on one rank.

    trained: tokens that have a log-probability. recompute: count the second forward of
    `activation_checkpointing: full` and of the logits too (HFU instead of MFU); it needs backward.
    """
    return flops(config, layout.total, attended_pairs(layout), trained, backward=backward, recompute=recompute)
