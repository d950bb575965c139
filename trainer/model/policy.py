"""The policy: any transformers causal language model, called on packs, giving log-probabilities and entropies.

The weights are fp32 masters, sharded by FSDP2 also with one process. Dropout is off: the ratio of two policies must
not be random. Logits exist for one chunk of tokens at a time (`trainer.model.logprobs`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_layers import GradientCheckpointingLayer

from trainer.adapter_config import AdapterConfig
from trainer.config import Recompute
from trainer.model import adapter as lora
from trainer.model.activation_checkpointing import recompute
from trainer.model.checks import check_context
from trainer.model.loading import LORA, UnsupportedModel, build, fill, tied_names
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
        adapter: AdapterConfig | None = None,
        seed: int = 0,
        frozen: Literal["fp32", "computed"] | None = None,
        offload: bool = False,
    ) -> None:
        """Shards the model of a local folder (safetensors) and reads this rank's part of it.

        activation_checkpointing: what of each block is computed again in the backward pass. logprob_chunk: tokens
        whose logits exist at the same time. compute_dtype: None computes in fp32 on a CPU and in bf16 on a GPU.
        compile_blocks: torch.compile each block by itself. context: the longest prompt + completion in tokens, which
        attention and rotary frequencies are checked for before the weights are read; None: no check.
        adapter: with a rank, a LoRA adapter trains and the model's own weights are frozen; `seed` is its start's.
        frozen: no weight trains, and they are kept in fp32 or in the type that is computed with; nothing of them stays
        whole after a forward. offload: they are kept in CPU memory (of a frozen model only).

        Raises UnsupportedModel and UnsupportedAttention.
        """
        super().__init__()
        self.parallel, self.logprob_chunk = parallel, logprob_chunk
        self.path = Path(model_path)
        self.adapter = adapter if adapter is not None and adapter.rank else None
        self.compute_dtype = compute_dtype or (torch.bfloat16 if parallel.device.type == "cuda" else None)
        self.model = build(self.path)
        self.blocks = [part for part in self.model.modules() if isinstance(part, GradientCheckpointingLayer)]
        _check(self.model, self.blocks)
        if context is not None:
            check_context(self.model, context)
        computed = self.compute_dtype or torch.float32
        if frozen:
            _freeze(self.model, computed if frozen == "computed" else None)
        if self.adapter is not None:
            lora.add_adapter(self.model, self.blocks, self.adapter, self.path, computed)
        _wrap(self.blocks, compile_blocks, activation_checkpointing)
        self.eval()
        shard(self, self.blocks, parallel, self.compute_dtype, frozen=frozen is not None, offload=offload)
        fill(self.model, self.path, torch.device("cpu") if offload else parallel.device)
        if offload:
            _move_buffers(self.model, parallel.device)
        if self.adapter is not None:
            lora.initialise(self.model, seed)

    @property
    def device(self) -> torch.device:
        """Where micro-batches have to be."""
        return self.parallel.device

    def logprobs(self, micro: MicroBatch, *, entropy: bool = True) -> tuple[Tensor, Tensor]:
        """fp32 [K] log-probabilities of the trained tokens, with gradient, and fp32 [K] entropies in nats, without.

        Both are of the distribution at the sequence's temperature; entropy False leaves the entropies out ([0]). A
        collective: every rank calls it equally often.
        With an empty micro-batch both are empty, and backward gives zeros for every weight.
        """
        [(logprob, found)] = self(micro, [micro.temperature], entropy)
        return logprob, found

    def logprobs_at(self, micro: MicroBatch, temperatures: Sequence[Tensor]) -> list[Tensor]:
        """fp32 [K] log-probabilities for each of these temperatures ([B]), by one pass through the blocks; a
        collective."""
        return [logprob for logprob, _ in self(micro, temperatures, False)]

    def forward(self, micro: MicroBatch, temperatures: Sequence[Tensor], entropy: bool) -> list[tuple[Tensor, Tensor]]:
        """See `logprobs`; FSDP's hooks hang on this call."""
        hidden = self.model.base_model(
            input_ids=micro.input_ids[None],
            position_ids=micro.position_ids[None],
            use_cache=False,
            layout=micro.layout,
        ).last_hidden_state[0]
        predicting, head = hidden[micro.source], self.model.get_output_embeddings().weight
        return [
            token_logprobs(predicting, head, micro.target, one[micro.sequence], self.logprob_chunk, entropy=entropy)
            for one in temperatures
        ]

    def state_dict_full(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Whole weights on rank 0's CPU, copied, under the names and in the form of a Hugging Face checkpoint.

        A tied head is left out, as transformers does; an adapter is merged into its targets. Other ranks get {}. A
        collective. dtype: convert floating weights to it; None keeps the fp32 masters.
        """
        aliases = tied_names(self.model)
        state = {name: value for name, value in self.model.state_dict().items() if name not in aliases}
        if self.adapter is None:
            whole = self._gathered(state, dtype)
        else:
            exact = lora.merged(self._gathered(state, torch.float32), self.adapter.scaling)
            whole = {name: value.to(dtype or torch.float32) for name, value in exact.items()}
        return revert_weight_conversion(self.model, whole) if self.parallel.is_main else {}

    def adapter_state(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """The adapter's whole weights on rank 0's CPU, copied, under peft's names; {} elsewhere. A collective."""
        state = {name: value for name, value in self.model.state_dict().items() if LORA in name}
        return lora.adapter_weights(self._gathered(state, dtype))

    def _gathered(self, state: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
        """Whole copies on rank 0's CPU, one at a time; {} elsewhere."""
        whole: dict[str, Tensor] = {}
        for name, value in state.items():
            full = value.full_tensor() if isinstance(value, DTensor) else value
            if self.parallel.is_main:
                to = dtype if dtype is not None and full.is_floating_point() else full.dtype
                whole[name] = full.detach().to("cpu", to, copy=True)
        return whole


def _freeze(model: PreTrainedModel, dtype: torch.dtype | None) -> None:
    """No weight trains; dtype: what they are kept in, None: as they are."""
    model.requires_grad_(False)
    if dtype is not None:
        for weight in model.parameters():
            weight.data = weight.data.to(dtype)


def _wrap(blocks: list[Any], compiled: bool, recomputed: Recompute) -> None:
    for block in blocks:
        if compiled:
            # Before the recomputation is wrapped around it: torch compiles nothing inside of a checkpointed call that
            # it did not compile already.
            block.forward = torch.compile(block.forward, dynamic=True)
        recompute(block, recomputed)


def _move_buffers(model: PreTrainedModel, device: torch.device) -> None:
    """Rotary frequencies are used on the device, wherever the weights are."""
    for part in model.modules():
        for name, value in list(part.named_buffers(recurse=False)):
            part._buffers[name] = value.to(device)


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
