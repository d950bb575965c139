"""The policy: any transformers causal language model, called on packs, giving log-probabilities and entropies.

The weights are fp32 masters, sharded by FSDP2 also with one process. Dropout is off: the ratio of two policies must
not be random. Logits exist for one chunk of tokens at a time (`trainer.model.logprobs`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_layers import GradientCheckpointingLayer

from trainer.config import Recompute
from trainer.model.activation_checkpointing import recompute
from trainer.model.checks import check_context
from trainer.model.loading import UnsupportedModel, build, fill, tied_names
from trainer.model.logprobs import token_logprobs
from trainer.model.packing import MicroBatch
from trainer.parallel import Parallel, shard

LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""Options of models that change the logits after the head; they are refused."""


class Policy(nn.Module):
    """The trained model. `model` is transformers' own, with weights under their checkpoint names."""

    def __init__(
        self,
        model_path: str | Path,
        parallel: Parallel,
        *,
        activation_checkpointing: Recompute = "full",
        logprob_chunk: int = 1024,
        compute_dtype: torch.dtype | None = None,
        compile_blocks: bool = False,
        context: int | None = None,
    ) -> None:
        """Shards the model of a local folder (safetensors) and reads this rank's part of it.

        activation_checkpointing: what of each block is computed again in the backward pass. logprob_chunk: tokens
        whose logits exist at the same time. compute_dtype: None computes in fp32 on a CPU and in bf16 on a GPU.
        compile_blocks: torch.compile each block by itself. context: the longest prompt + completion in tokens, which
        the model's attention and rotary frequencies are checked for before its weights are read; None: no check.

        Raises UnsupportedModel and UnsupportedAttention.
        """
        super().__init__()
        self.parallel = parallel
        self.logprob_chunk = logprob_chunk
        self.model = build(Path(model_path))
        self.blocks = [part for part in self.model.modules() if isinstance(part, GradientCheckpointingLayer)]
        _check(self.model, self.blocks)
        if context is not None:
            check_context(self.model, context)
        for block in self.blocks:
            if compile_blocks:
                # Before the recomputation is wrapped around it: torch compiles nothing inside of a checkpointed call
                # that it did not compile already.
                block.forward = torch.compile(block.forward, dynamic=True)
            recompute(block, activation_checkpointing)
        if compute_dtype is None and parallel.device.type == "cuda":
            compute_dtype = torch.bfloat16
        self.eval()
        shard(self, self.blocks, parallel, compute_dtype)
        fill(self.model, Path(model_path), parallel.device)

    @property
    def device(self) -> torch.device:
        """Where micro-batches have to be."""
        return self.parallel.device

    def logprobs(self, micro: MicroBatch) -> tuple[Tensor, Tensor]:
        """fp32 [K] log-probabilities of the trained tokens, with gradient, and fp32 [K] entropies in nats, without.

        Both are of the distribution at the sequence's temperature. A collective: every rank calls it equally often.
        With an empty micro-batch both are empty, and backward gives zeros for every weight.
        """
        logprob, entropy = self(micro)
        return logprob, entropy

    def forward(self, micro: MicroBatch) -> tuple[Tensor, Tensor]:
        """See `logprobs`; FSDP's hooks hang on this call."""
        hidden = self.model.base_model(
            input_ids=micro.input_ids[None],
            position_ids=micro.position_ids[None],
            use_cache=False,
            layout=micro.layout,
        ).last_hidden_state[0]
        return token_logprobs(
            hidden[micro.source],
            self.model.get_output_embeddings().weight,
            micro.target,
            micro.temperature[micro.sequence],
            self.logprob_chunk,
        )

    def state_dict_full(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Whole weights on rank 0's CPU, copied, under the names and in the form of a Hugging Face checkpoint.

        A tied head is left out, as transformers does. Other ranks get {}. A collective. dtype: convert floating
        weights to it; None keeps the fp32 masters.
        """
        aliases = tied_names(self.model)
        whole: dict[str, Tensor] = {}
        for name, value in self.model.state_dict().items():
            if name in aliases:
                continue
            full = value.full_tensor() if isinstance(value, DTensor) else value
            if self.parallel.is_main:
                to = dtype if dtype is not None and full.is_floating_point() else full.dtype
                whole[name] = full.detach().to("cpu", to, copy=True)
        return revert_weight_conversion(self.model, whole) if self.parallel.is_main else {}


def _check(model: PreTrainedModel, blocks: list[Any]) -> None:
    name = type(model).__name__
    config = model.config
    head = model.get_output_embeddings()
    if not blocks or not model.is_backend_compatible() or not isinstance(head, nn.Linear):
        raise UnsupportedModel(f"{name}: not a decoder on transformers' attention interface; use Llama, Qwen or alike")
    if head.bias is not None:
        raise UnsupportedModel(f"{name}: its head has a bias; use a model without one")
    other = {kind for kind in getattr(config, "layer_types", None) or [] if "attention" not in kind or "linear" in kind}
    if other:
        raise UnsupportedModel(f"{name}: layers of type {sorted(other)} would leak between packed sequences")
    for option in LOGIT_CHANGES:
        if getattr(config, option, None) not in (None, 1.0):
            raise UnsupportedModel(f"{name}: {option} = {getattr(config, option)} is not computed; use another model")
