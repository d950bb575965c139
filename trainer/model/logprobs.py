"""Log-probability and entropy of tokens from hidden states, a chunk of logits at a time.

At 32k tokens and 151,936 entries, fp32 logits and their gradient are 37 GiB; a chunk of 1,024 is 0.6. Logits are
computed again in backward, where d logp_t / d logits_t = (onehot - softmax) / temperature is written into them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def token_logprobs(
    hidden: Tensor, weight: Tensor, target: Tensor, temperature: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """fp32 [K] log p(target) with gradient for hidden and, unless frozen, weight; fp32 [K] entropy in nats without.

    hidden [K, D], weight [V, D], target int64 [K], temperature fp32 [K] > 0; p = softmax(hidden W^T / temperature).
    """
    logprob, entropy = _TokenLogprobs.apply(hidden, weight, target, temperature, chunk)  # type: ignore[no-untyped-call]
    return logprob, entropy


def _scaled_logits(hidden: Tensor, weight: Tensor, temperature: Tensor) -> Tensor:
    return (hidden @ weight.T).float().div_(temperature[:, None])


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, temperature: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor]:
        logprob = torch.empty(len(target), dtype=torch.float32, device=hidden.device)
        log_total, entropy = torch.empty_like(logprob), torch.empty_like(logprob)
        for start in range(0, len(target), chunk):
            part = slice(start, start + chunk)
            logits = _scaled_logits(hidden[part], weight, temperature[part])
            log_total[part] = torch.logsumexp(logits, dim=-1)
            logprob[part] = logits.gather(1, target[part, None])[:, 0] - log_total[part]
            mean_logit = torch.linalg.vecdot(torch.softmax(logits, dim=-1), logits)
            entropy[part] = log_total[part] - mean_logit
        ctx.save_for_backward(hidden, weight, target, temperature, log_total)
        ctx.chunk = chunk
        ctx.mark_non_differentiable(entropy)
        return logprob, entropy

    @staticmethod
    def backward(ctx: Any, grad_logprob: Tensor, _: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        hidden, weight, target, temperature, log_total = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        # Sums over many chunks are kept in fp32, whatever the weights are in. A frozen head has none.
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for start in range(0, len(target), ctx.chunk):
            part = slice(start, start + ctx.chunk)
            scale = grad_logprob[part] / temperature[part]
            logits = _scaled_logits(hidden[part], weight, temperature[part])
            grad = logits.sub_(log_total[part, None]).exp_().mul_(-scale[:, None])
            grad.scatter_add_(1, target[part, None], scale[:, None])
            typed = grad.to(hidden.dtype)
            grad_hidden[part] = typed @ weight
            if grad_weight is None:
                continue
            if weight.dtype == torch.float32:
                grad_weight.addmm_(typed.T, hidden[part])
            else:
                grad_weight += typed.T @ hidden[part]
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None, None, None
