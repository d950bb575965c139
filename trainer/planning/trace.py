"""What one block and the log-probabilities hold in memory: the model's own code, run on shapes without memory.

The bytes of an eager block depend on every product, norm and cast in it, so they are not typed in: one block of the
configured model runs forward and backward on fake tensors, recomputed as the trainer would, with the trainer's own
attention. Nothing is allocated and no weights are needed; it takes about a second.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.modeling_layers import GradientCheckpointingLayer

from environments.common.errors import ConfigError
from trainer.adapter_config import AdapterConfig
from trainer.config import Recompute
from trainer.model import attention
from trainer.model.activation_checkpointing import recompute
from trainer.model.adapter import add_adapter
from trainer.model.layout import AttentionLayout
from trainer.model.logprobs import token_logprobs
from trainer.planning.live_bytes import LiveBytes

Shape = tuple[int, ...]
Adapter = tuple[int, tuple[str, ...]]
"""Rank and targets of an adapter that alone trains."""


class Untraceable(ConfigError):
    """The model is built unlike Llama, Qwen and alike, so its memory cannot be planned."""


@dataclass(frozen=True)
class LayerSizes:
    """Shapes of a model's parameters; a tied head is not counted again."""

    blocks: tuple[tuple[Shape, ...], ...]
    """For each block."""
    root: tuple[Shape, ...]
    """What is in no block: embedding, last norm, head."""
    adapters: tuple[tuple[Shape, ...], ...] = ()
    """Of each block's adapter, which is not in `blocks`; () without one."""


@dataclass(frozen=True)
class Trace:
    """Bytes of one part of the model for one pack, its weights left out and its input included."""

    evaluated: int
    """Peak of the forward without gradient."""
    forward: int
    """Peak of the forward with gradient."""
    kept: int
    """After that forward, for the backward; the output is left out, being the next part's input."""
    backward: int
    """Peak of the backward, with the gradients of activations and of this part's weights."""


def sizes(config: PretrainedConfig, adapter: Adapter | None = None) -> LayerSizes:
    """Shapes of all parameters, from the model built without memory."""
    return _sizes(config.to_json_string(use_diff=False), adapter)


@lru_cache(maxsize=16)
def _sizes(config: str, adapter: Adapter | None) -> LayerSizes:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(_config(config), dtype=torch.float32)
    blocks = [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]
    inside = {id(weight) for block in blocks for weight in block.parameters()}
    own = tuple(tuple(tuple(weight.shape) for weight in block.parameters()) for block in blocks)
    root = tuple(tuple(weight.shape) for weight in model.parameters() if id(weight) not in inside)
    if adapter is None:
        return LayerSizes(own, root)
    _adapt(model, adapter, torch.float32)
    trained = ([weight for weight in block.parameters() if weight.requires_grad] for block in blocks)
    return LayerSizes(own, root, tuple(tuple(tuple(weight.shape) for weight in weights) for weights in trained))


def _adapt(model: PreTrainedModel, adapter: Adapter, dtype: torch.dtype) -> None:
    blocks = [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]
    rank, targets = adapter
    add_adapter(model, blocks, AdapterConfig(rank=rank, targets=list(targets)), Path("."), dtype, dtype)


def block_trace(
    config: PretrainedConfig,
    layout: AttentionLayout,
    dtype: torch.dtype,
    mode: Recompute,
    *,
    varlen: bool,
    adapter: Adapter | None = None,
) -> Trace:
    """One block on a pack. varlen: with a GPU's attention instead of a CPU's."""
    return _block_trace(config.to_json_string(use_diff=False), layout, dtype, mode, varlen, adapter)


def tail_trace(
    config: PretrainedConfig, tokens: int, trained: int, dtype: torch.dtype, chunk: int, *, frozen: bool = False
) -> Trace:
    """What follows the last block: norm, choice of `trained` of the positions, their log-probabilities by chunks.

    frozen: the head has no gradient.
    """
    return _tail_trace(config.to_json_string(use_diff=False), tokens, trained, dtype, chunk, frozen)


@lru_cache(maxsize=256)
def _block_trace(
    config: str,
    layout: AttentionLayout,
    dtype: torch.dtype,
    mode: Recompute,
    varlen: bool,
    adapter: Adapter | None,
) -> Trace:
    # Index tensors are made before, outside: how many there are depends on values.
    layout = AttentionLayout(layout.spans)
    here = torch.device("cpu")
    if varlen:
        layout.varlen(here)
    else:
        for span in layout.spans:
            if span.completions:
                layout.batches(span, here)
            if span.shared:
                layout.rest_mask(span, here)
    with one_block(config, dtype, FakeTensorMode(allow_non_fake_inputs=True), adapter) as model:
        [block] = [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]
        if adapter is not None:
            _into_fake_memory(model)
        recompute(block, mode)
        position = torch.zeros(1, layout.total, dtype=torch.int64)
        base: Any = model.base_model
        rotary = base.rotary_emb(torch.zeros(1, dtype=dtype), position)

        def run(hidden: Tensor) -> Tensor:
            out = block(
                hidden,
                attention_mask=None,
                position_ids=position,
                position_embeddings=rotary,
                layout=layout,
                varlen=varlen,
            )
            hidden = out[0] if isinstance(out, tuple) else out
            assert isinstance(hidden, Tensor)
            return hidden

        return _traced(run, model, [position, *rotary], (1, layout.total, model.config.hidden_size), dtype)


def _into_fake_memory(model: PreTrainedModel) -> None:
    """A model of the meta device as fake tensors: peft cannot put its layers into one of fake tensors."""
    for part in model.modules():
        for name, weight in list(part.named_parameters(recurse=False)):
            fake = torch.zeros(weight.shape, dtype=weight.dtype)
            setattr(part, name, torch.nn.Parameter(fake, requires_grad=weight.requires_grad))
        for name, buffer in list(part.named_buffers(recurse=False)):
            setattr(part, name, torch.zeros(buffer.shape, dtype=buffer.dtype))


@lru_cache(maxsize=256)
def _tail_trace(config: str, tokens: int, trained: int, dtype: torch.dtype, chunk: int, frozen: bool) -> Trace:
    # On the meta device: five times as fast over many chunks, and no operation here depends on the device.
    with one_block(config, dtype, torch.device("meta")) as model:
        model.requires_grad_(not frozen)
        base: Any = model.base_model
        norm, head = base.norm, model.get_output_embeddings().weight
        places = torch.zeros(trained, dtype=torch.int64)
        temperature = torch.ones(trained)

        def run(hidden: Tensor) -> Tensor:
            hidden = norm(hidden)[0]
            graded = torch.is_grad_enabled()  # without gradient no entropies are asked for
            return token_logprobs(hidden[places], head, places, temperature, chunk, entropy=graded)[0]

        return _traced(run, model, [places, temperature], (1, tokens, model.config.hidden_size), dtype)


@contextmanager
def one_block(
    config: str, dtype: torch.dtype, shapes: AbstractContextManager[Any], adapter: Adapter | None = None
) -> Iterator[PreTrainedModel]:
    """The model of a config.json's text with one block, of tensors without memory made within `shapes`."""
    one = _config(config)
    one.num_hidden_layers = 1
    if adapter is not None:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(one, dtype=dtype, attn_implementation=attention.NAME).eval()
        _adapt(model, adapter, dtype)
    with shapes, no_init_weights():
        if adapter is None:
            model = AutoModelForCausalLM.from_config(one, dtype=dtype, attn_implementation=attention.NAME).eval()
        blocks = sum(isinstance(part, GradientCheckpointingLayer) for part in model.modules())
        missing = [name for name in ("norm", "rotary_emb") if not hasattr(model.base_model, name)]
        if blocks != 1 or missing:
            raise Untraceable(
                f"{type(model).__name__}: {blocks} blocks a layer, without {missing}: its memory is not planned"
            )
        yield model


def _config(text: str) -> PretrainedConfig:
    entries = json.loads(text)
    return AutoConfig.for_model(entries.pop("model_type"), **entries)


def _traced(
    run: Callable[[Tensor], Tensor], model: PreTrainedModel, given: list[Tensor], shape: Shape, dtype: torch.dtype
) -> Trace:
    start = torch.zeros((), dtype=dtype, requires_grad=True)
    with KernelBytes() as live:
        live.count([start, *given, *model.parameters(), *model.buffers()])
        base = live.now
        with torch.no_grad():
            run(torch.zeros(shape, dtype=dtype))
        evaluated = live.peak - base
        live.reset_peak()
        out = run(_Begin.apply(start, shape))  # type: ignore[no-untyped-call]
        forward, kept = live.peak - base, live.now - base - out.untyped_storage().nbytes()
        end = _End.apply(out)  # type: ignore[no-untyped-call]
        del out
        live.reset_peak()
        end.backward()
        return Trace(evaluated, forward, kept, live.peak - base)


class KernelBytes(LiveBytes):
    """Adds what flash attention's backward allocates inside: fp32 sums for the query's gradient, and the keys' and
    values' gradients for every query head before they are added up (read from torch's mha_varlen_bwd)."""

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(operator, types, args, kwargs)
        if "_varlen_attn_backward" in str(operator):
            query, key = args[1:3]
            wide = 2 * key.shape[0] * query.shape[1] * query.shape[2] * key.element_size()
            self.hidden(4 * query.numel() + (wide if query.shape[1] != key.shape[1] else 0))
        return result


class _Begin(torch.autograd.Function):
    """The block before: makes the input, which lives no longer than what needs it, and takes its gradient."""

    @staticmethod
    def forward(ctx: Any, start: Tensor, shape: Shape) -> Tensor:
        return start.new_zeros(shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.new_zeros(()), None


class _End(torch.autograd.Function):
    """The block after: keeps nothing of the output, and gives a gradient."""

    @staticmethod
    def forward(ctx: Any, out: Tensor) -> Tensor:
        ctx.shape = out.shape
        return out.new_zeros(())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.new_zeros(ctx.shape)
