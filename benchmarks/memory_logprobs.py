"""Peak memory of log-probabilities: by chunks, as the trainer computes them, against whole logits at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from trainer.model.logprobs import token_logprobs
from trainer.planning.live_bytes import LiveBytes


def plain(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """Log-probabilities and entropy by whole fp32 logits: the loss of both."""
    table = torch.log_softmax((hidden @ weight.T).float(), dim=-1)
    with torch.no_grad():
        torch.linalg.vecdot(table.exp(), table)
    return table.gather(1, target[:, None]).sum()


def peak_of(loss: Callable[[], Tensor], given: list[Tensor]) -> float:
    """Most bytes alive in a forward and backward, without what was given."""
    with LiveBytes() as live:
        live.count(given)
        base = live.now
        loss().backward()
        return live.peak - base


def logprobs(tokens: int, vocabulary: int, width: int, chunk: int, *, real: bool) -> dict[str, Any]:
    """Peaks of both ways and the largest difference of their gradients, relative to the largest gradient."""
    with torch.device("cpu" if real else "meta"):
        torch.manual_seed(0)
        hidden = nn.Parameter(torch.randn(tokens, width))
        weight = nn.Parameter(torch.randn(vocabulary, width) / width**0.5)
        target, warm = torch.zeros(tokens, dtype=torch.int64), torch.ones(tokens)
    given = [hidden, weight, target, warm]
    result: dict[str, Any] = {"tokens": tokens, "vocabulary": vocabulary, "width": width, "chunk": chunk, "real": real}
    ways = {
        "chunked": lambda: token_logprobs(hidden, weight, target, warm, chunk)[0].sum(),
        "plain": lambda: plain(hidden, weight, target),
    }
    gradients: dict[str, list[Tensor]] = {}
    for name, loss in ways.items():
        result[f"{name}_gib"] = round(peak_of(loss, given) / 2**30, 3)
        gradients[name] = [one.grad for one in (hidden, weight) if one.grad is not None]
        hidden.grad = weight.grad = None
    if real:
        pairs = zip(gradients["chunked"], gradients["plain"], strict=True)
        result["gradient_difference"] = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    return result
