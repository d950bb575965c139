"""The reference of the KL term: the start model, frozen; a running mean of the policy; or the base of an adapter.

The first two are a model of their own, sharded as the policy's: each block is whole only while it computes. The base of
an adapter is the policy with its adapter switched off.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from trainer.config import TrainerConfig
from trainer.model.adapter import switched_off
from trainer.model.loading import tied_names
from trainer.model.packing import MicroBatch
from trainer.model.policy import Policy


class Reference:
    """What the policy is held to. `logprobs` is a collective, as the policy's."""

    def __init__(self, config: TrainerConfig, policy: Policy) -> None:
        """Reads the start model's weights, whatever the policy's are. An adapter's base is the policy itself.

        A frozen reference is kept in the type that is computed with; a running mean in fp32, which a small change does
        not round away. Raises what `Policy` raises.
        """
        self.policy = policy
        self.decay = config.objective.reference_decay if config.objective.reference == "ema" else None
        self.own: Policy | None = None
        if policy.adapter is None:
            self.own = Policy(
                policy.path,
                policy.parallel,
                activation_checkpointing="none",
                logprob_chunk=config.logprob_chunk,
                compute_dtype=policy.compute_dtype,
                compile_blocks=config.compile,
                frozen="fp32" if self.decay is not None else "computed",
                offload=config.objective.reference_offload,
            )

    @torch.no_grad()
    def logprobs(self, micro: MicroBatch) -> Tensor:
        """fp32 [K] log-probabilities of the trained tokens at the sequence's temperature, without gradient."""
        if self.own is not None:
            return self.own.logprobs(micro, entropy=False)[0]
        with switched_off(self.policy.model):
            return self.policy.logprobs(micro, entropy=False)[0]

    def begin(self) -> None:
        """A running mean begins at the policy as it is; anything else is left as it was read."""
        self._move(0.0)

    def follow(self) -> None:
        """After an optimizer step: mean = decay * mean + (1 - decay) * policy. Nothing where it is frozen."""
        if self.decay is not None:
            self._move(self.decay)

    @torch.no_grad()
    def _move(self, decay: float) -> None:
        if self.decay is None or self.own is None:
            return
        for mine, theirs in zip(self.own.model.parameters(), self.policy.model.parameters(), strict=True):
            own, new = _local(mine), _local(theirs).to(_local(mine).device)
            own.lerp_(new, 1.0 - decay) if decay else own.copy_(new)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint has to hold: the sharded running mean by its weights' names; {} for what does not move."""
        if self.decay is None or self.own is None:
            return {}
        aliases = tied_names(self.own.model)
        return {name: value for name, value in self.own.model.state_dict().items() if name not in aliases}


def _local(weight: Tensor) -> Tensor:
    return weight.to_local() if isinstance(weight, DTensor) else weight
