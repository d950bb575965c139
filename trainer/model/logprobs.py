"""Log-probability and entropy of tokens from hidden states, a chunk of logits at a time.

At 32k tokens and 151,936 entries, fp32 logits and their gradient are 37 GiB; a chunk of 1,024 is 0.6. Logits are
computed again in backward, where d logp_t / d logits_t = (onehot - softmax) / temperature. Each pass over a chunk costs
memory traffic as large as its logits, so there are as few as torch's kernels allow; `python -m benchmarks.bytes_moved`
counts them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def token_logprobs(
    hidden: Tensor, weight: Tensor, target: Tensor, temperature: Tensor, chunk: int, *, entropy: bool = True
) -> tuple[Tensor, Tensor]:
    """fp32 [K] log p(target) with gradient for hidden and, unless frozen, weight; fp32 [K] entropy in nats without.

    hidden [K, D], weight [V, D], target int64 [K], temperature fp32 [K] > 0; p = softmax(hidden W^T / temperature).
    entropy False leaves it out ([0] instead), which is more than half of a forward's passes over the logits.
    """
    logprob, found = _TokenLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden, weight, target, temperature, chunk, entropy
    )
    return logprob, found


def _scaled_logits(hidden: Tensor, weight: Tensor, temperature: Tensor) -> Tensor:
    """fp32 [k, V]."""
    logits = hidden @ weight.T
    if logits.dtype == torch.float32:
        return logits.div_(temperature[:, None])
    return logits / temperature[:, None]  # to fp32 on the way, in one pass


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, temperature: Tensor, chunk: int, entropy: bool
    ) -> tuple[Tensor, Tensor]:
        logprob = torch.empty(len(target), dtype=torch.float32, device=hidden.device)
        found = torch.empty_like(logprob if entropy else logprob[:0])
        for start in range(0, len(target), chunk):
            part = slice(start, start + chunk)
            table = torch.log_softmax(_scaled_logits(hidden[part], weight, temperature[part]), dim=-1)
            logprob[part] = table.gather(1, target[part, None])[:, 0]
            if entropy:
                found[part] = table.exp().mul_(table).sum(dim=-1).neg_()
        ctx.save_for_backward(hidden, weight, target, temperature, logprob)
        ctx.chunk = chunk
        ctx.mark_non_differentiable(found)
        return logprob, found

    @staticmethod
    def backward(ctx: Any, grad_logprob: Tensor, _: Tensor) -> tuple[Tensor, Tensor | None, None, None, None, None]:
        hidden, weight, target, temperature, logprob = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        # Sums over many chunks are kept in fp32, whatever the weights are in. A frozen head has none.
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for start in range(0, len(target), ctx.chunk):
            part = slice(start, start + ctx.chunk)
            scale = grad_logprob[part] / temperature[part]
            table = torch.softmax(_scaled_logits(hidden[part], weight, temperature[part]), dim=-1)
            typed = _logits_gradient(table, scale, target[part], logprob[part], hidden.dtype)
            del table
            grad_hidden[part] = typed @ weight
            if grad_weight is None:
                continue
            if weight.dtype == torch.float32:
                grad_weight.addmm_(typed.T, hidden[part])
            else:
                grad_weight += typed.T @ hidden[part]
        grad = None if grad_weight is None else grad_weight.to(weight.dtype)
        return grad_hidden, grad, None, None, None, None


def _logits_gradient(table: Tensor, scale: Tensor, target: Tensor, logprob: Tensor, dtype: torch.dtype) -> Tensor:
    """[k, V] in `dtype`: scale * (onehot - softmax), from fp32 probabilities [k, V], which fp32 overwrites.

    The target's entry is scale * (1 - p) by expm1: in half precision a product of p near 1 and a sum after it would
    round away what is left.
    """
    if dtype == torch.float32:
        found = table.mul_(-scale[:, None])
    else:
        found = torch.mul(table, -scale[:, None], out=torch.empty_like(table, dtype=dtype))
    own = -scale * torch.expm1(logprob)
    return found.scatter_(1, target[:, None], own[:, None].to(dtype))
