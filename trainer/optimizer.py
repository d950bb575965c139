"""AdamW on the policy's fp32 master weights: warm-up, decay, gradient clipping, and a refusal to step on NaN."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from environments.common.errors import LivecodeError
from trainer.config import OptimizerConfig
from trainer.parallel import clip_grad_norm
from trainer.stored_adamw import StoredAdamW


class NonFiniteGradient(LivecodeError, RuntimeError):
    """The gradient's norm is infinite or NaN; the weights were left as they were."""


class UpdateStats(NamedTuple):
    """What one optimizer step did."""

    grad_norm: float
    """L2 norm over all parameters and ranks, before clipping."""
    lr: float
    taken: bool = True
    """False where the gradient was exactly zero: the weights were left as they were."""


class PolicyOptimizer:
    """AdamW with the schedule computed from `updates`, so a checkpoint needs that one number.

    `adamw` is the torch optimizer, for checkpoints. total: updates of the whole run, which a decay needs; a run that is
    lengthened takes the schedule of its new length from there on.
    """

    def __init__(self, policy: nn.Module, config: OptimizerConfig, total: int | None = None) -> None:
        if config.decay != "none" and total is None:
            raise ValueError(f"optimizer.decay {config.decay}: give the run's number of updates")
        self.config = config
        self.total = total
        self.updates = 0
        self.watch: Callable[[str], None] = lambda phase: None
        """Called with "gradient" before an update, before clipping, and with "weights" after it."""
        self.parameters = [weight for weight in policy.parameters() if weight.requires_grad]
        matrices = [weight for weight in self.parameters if weight.ndim >= 2]
        vectors = [weight for weight in self.parameters if weight.ndim < 2]
        groups: list[dict[str, Any]] = [{"params": group} for group in (matrices, vectors) if group]
        self.adamw: torch.optim.Optimizer
        if config.state == "device" and config.moments == "fp32":
            self.adamw = torch.optim.AdamW(groups, lr=config.lr, fused=True)
        else:
            self.adamw = StoredAdamW(groups, lr=config.lr, moments=config.moments, host=config.state == "cpu")
        self.apply_options()

    def apply_options(self) -> None:
        """Sets lr, betas, eps and weight decay as configured; loading a checkpoint brings those it was saved with."""
        for group in self.adamw.param_groups:
            group["lr"] = self.config.lr
            group["betas"] = self.config.betas
            group["eps"] = self.config.eps
            group["weight_decay"] = self.config.weight_decay if group["params"][0].ndim >= 2 else 0.0

    def lr_at(self, update: int) -> float:
        """Learning rate of update 0, 1, ...: linear over `warmup_steps` to the full rate, constant, then the decay.

        The decay's n updates have n/n, ..., 1/n of the rate (linear), or that on a cosine: never zero.
        """
        config = self.config
        if update < config.warmup_steps:
            return config.lr * (update + 1) / config.warmup_steps
        if config.decay == "none" or self.total is None:
            return config.lr
        falling = max(1, min(math.ceil(self.total * config.decay_share), self.total - config.warmup_steps))
        left = min(1.0, max(self.total - update, 1) / falling)
        return config.lr * (left if config.decay == "linear" else 0.5 * (1 - math.cos(math.pi * left)))

    def step(self) -> UpdateStats:
        """Clips, updates the weights and clears the gradients. Raises NonFiniteGradient instead of updating.

        A gradient that is zero everywhere updates nothing: AdamW's moments would move every weight without a signal.
        """
        self.watch("gradient")
        norm = clip_grad_norm(self.parameters, self.config.max_grad_norm)
        if not norm < float("inf"):
            self.zero_grad()
            raise NonFiniteGradient(
                f"gradient norm {norm} at update {self.updates}: the weights are unchanged; look at the last "
                "batch's log-probabilities and lower optimizer.lr"
            )
        lr = self.lr_at(self.updates)
        if norm == 0:
            self.zero_grad()
            return UpdateStats(0.0, lr, taken=False)
        for group in self.adamw.param_groups:
            group["lr"] = lr
        self.adamw.step()
        self.watch("weights")
        self.zero_grad()
        self.updates += 1
        return UpdateStats(norm, lr)

    def zero_grad(self) -> None:
        """Frees the gradients."""
        self.adamw.zero_grad(set_to_none=True)
