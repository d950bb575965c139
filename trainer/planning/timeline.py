"""The memory of a training step on one rank, before it runs: a timeline of what is alive at the same time.

Parts that are large do not all exist together: layer checkpoints are gone when the embedding's gradient is reduced,
and a recomputed block is gone before the next. So `plan` walks through a step as the trainer takes it
(trainer/step.py) and FSDP2 gathers, frees and reduces (torch.distributed.fsdp); the budget is the largest moment.
Activations come from `trainer.planning.trace`. Tests hold it against steps measured on a CPU and against the whole
Policy in a world of eight on shapes without memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, prod
from typing import Literal

import torch
from transformers import PretrainedConfig

from trainer.config import Recompute
from trainer.model.layout import AttentionLayout, Span
from trainer.moment_formats import Moments, kept_bytes
from trainer.planning.trace import Adapter, Shape, Trace, block_trace, sizes, tail_trace
from trainer.planning.update_trace import update_bytes

GIB = 2**30
FP32 = 4
RESERVED_GIB = 2.5
"""On a GPU beside tensors: CUDA's context, NCCL's buffers, libraries' workspaces. An assumption, not yet measured."""
FRAGMENTATION = 0.05
"""Share of the peak that the allocator holds without using it. An assumption, not yet measured."""
PROMPT = 512
"""Prompt tokens assumed of a sequence as long as the context; it hardly matters, being computed like any others."""

Parts = dict[str, float]


@dataclass(frozen=True)
class Setup:
    """What the memory of a step depends on, besides the model."""

    world_size: int
    context: int
    max_tokens: int
    logprob_chunk: int
    activation_checkpointing: Recompute
    micro_batches: int
    """Of a batch, on each rank."""
    optimizer_steps: int
    """Of a batch. With one micro-batch each, gradients exist only as far as the backward has come."""
    recompute_old: bool
    """Whether old log-probabilities are computed by a forward."""
    dtype: torch.dtype = torch.bfloat16
    """What is computed in; weights, moments and the gradients' sums are fp32."""
    varlen: bool = True
    """Attention of a GPU; False: of a CPU."""
    reference: Literal["none", "frozen", "ema", "base"] = "none"
    """A model of its own, kept in `dtype` (frozen) or fp32 (ema); base: the policy without its adapter."""
    reference_offload: bool = False
    """Whether its shards are on the host."""
    adapter: Adapter | None = None
    """What alone trains: the model is then kept in `dtype`, without gradients and moments."""
    moments: Moments = "fp32"
    """How AdamW's moments are kept."""
    moments_on_cpu: bool = False
    """Whether they are in the host's memory, of which the device has parts during an update."""


@dataclass(frozen=True)
class PhaseMemory:
    """Bytes that are alive at one moment of a step, by what they are."""

    phase: str
    parts: Parts

    @property
    def total(self) -> float:
        """Bytes."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Budget:
    """The largest moment of each phase, in the order of a step."""

    phases: tuple[PhaseMemory, ...]
    reserved_gib: float = RESERVED_GIB
    host: float = 0.0
    """Bytes of the host's memory that a rank on a GPU holds all the time: moments and a reference that are there."""

    @property
    def peak(self) -> PhaseMemory:
        """The largest of all."""
        return max(self.phases, key=lambda moment: moment.total)

    @property
    def needed(self) -> float:
        """Bytes of device memory: the peak, what lies fragmented, and what is reserved."""
        return self.peak.total * (1 + FRAGMENTATION) + self.reserved_gib * GIB


def full_layout(context: int, max_tokens: int) -> AttentionLayout:
    """A full pack: sequences as long as the context, each of its own group, and a shorter one for the rest."""
    lengths = [context] * (max_tokens // context) + ([max_tokens % context] if max_tokens % context else [])
    spans, start = [], 0
    for length in lengths:
        prompt = min(PROMPT, length // 2) or 1
        spans.append(Span(start, prompt, (length - prompt,) if length > prompt else ()))
        start += length
    return AttentionLayout(tuple(spans))


def plan(
    config: PretrainedConfig, setup: Setup, layout: AttentionLayout | None = None, trained: int | None = None
) -> Budget:
    """The budget of a step whose micro-batches all look like `layout` with this many trained tokens.

    None: `full_layout`, every completion token trained. Not the first step: AdamW's moments exist.
    """
    layout = layout or full_layout(setup.context, setup.max_tokens)
    if trained is None:
        trained = layout.total - sum(span.prompt for span in layout.spans)
    timeline = _Timeline(config, setup, layout, trained)
    return Budget(_largest(timeline.step()), RESERVED_GIB if setup.varlen else 0.0, timeline.host)


def _largest(moments: Iterator[PhaseMemory]) -> tuple[PhaseMemory, ...]:
    found: dict[str, PhaseMemory] = {}
    for moment in moments:
        if moment.phase not in found or moment.total > found[moment.phase].total:
            found[moment.phase] = moment
    return tuple(found.values())


class _Timeline:
    """One optimizer step, moment by moment."""

    def __init__(self, config: PretrainedConfig, setup: Setup, layout: AttentionLayout, trained: int) -> None:
        found = sizes(config, setup.adapter)
        frozen = setup.adapter is not None
        self.world, self.many = setup.world_size, setup.world_size > 1
        self.item = setup.dtype.itemsize
        self.setup = setup
        self.block: Trace = block_trace(
            config, layout, setup.dtype, setup.activation_checkpointing, varlen=setup.varlen, adapter=setup.adapter
        )
        self.tail: Trace = tail_trace(config, layout.total, trained, setup.dtype, setup.logprob_chunk, frozen=frozen)
        own = [sum(self._padded(shape) for shape in shapes) for shapes in found.blocks]
        adapters = [sum(self._padded(shape) for shape in shapes) for shapes in found.adapters] or [0] * len(own)
        self.blocks = [sum(sizes) for sizes in zip(own, adapters, strict=True)]
        self.trained = adapters if frozen else self.blocks
        """Entries of each block that have a gradient."""
        self.root = sum(self._padded(shape) for shape in found.root)
        self.matrix = max(prod(shape) for shapes in (*found.blocks, found.root) for shape in shapes)
        tied = sum(len(shape) > 1 for shape in found.root) == 1
        head = config.vocab_size * config.hidden_size
        self.head_grad = self.item * (
            head if tied else self.root - self._padded((config.vocab_size, config.hidden_size))
        )
        self.embedding_grad = self.item * head
        self.root_trained = self.root
        if frozen:
            self.head_grad, self.embedding_grad, self.root_trained = 0, 0, 0
        self.shard = FP32 * (self.root_trained + sum(self.trained)) / self.world
        self.hidden = self.item * layout.total * config.hidden_size
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        rotary = 2 * self.item * layout.total * head_dim
        batch = setup.micro_batches * (16 * layout.total + 32 * trained)
        shapes = [shape for one in (found.adapters if frozen else (*found.blocks, found.root)) for shape in one]
        own_rows = tuple((ceil(shape[0] / self.world), *shape[1:]) for shape in shapes)
        moments = float(sum(kept_bytes(setup.moments, shape) for shape in own_rows))
        away = setup.moments_on_cpu and setup.varlen  # of a CPU, its memory is the device's
        self.update_parts = update_bytes(own_rows, setup.moments, host=setup.moments_on_cpu)
        reference = self._reference_bytes()
        self.host = (moments if away else 0.0) + (reference if setup.reference_offload else 0.0)
        self.fixed: Parts = {
            "weights (fp32, sharded)": self.shard,
            "frozen weights (sharded)": self.item * (self.root + sum(own)) / self.world if frozen else 0,
            f"AdamW's moments ({setup.moments}, sharded)": 0.0 if away else moments,
            "reference (sharded)": 0.0 if setup.reference_offload else reference,
            "batch and positions": batch + rotary,
        }

    def _reference_bytes(self) -> float:
        if self.setup.reference not in ("frozen", "ema"):
            return 0.0
        return (FP32 if self.setup.reference == "ema" else self.item) * (self.root + sum(self.blocks)) / self.world

    def _padded(self, shape: Shape) -> int:
        """Entries after every rank's rows were made as many as the first one's."""
        return ceil(shape[0] / self.world) * self.world * prod(shape[1:])

    def step(self) -> Iterator[PhaseMemory]:
        """Every moment that can be the largest one."""
        if self.setup.reference in ("frozen", "ema"):
            yield from self._referred()
        if self.setup.recompute_old or self.setup.reference == "base":
            yield from self._forward("old log-probabilities", 0.0, grad=False)
        before = self.shard if self.setup.micro_batches > self.setup.optimizer_steps else 0.0
        yield from self._forward("forward", before, grad=True)
        yield from self._backward(before)
        yield self._moment("update", self.shard, {"moments of the parts in flight": self.update_parts})
        yield self._moment("publish", 0.0, {"one whole weight and its parts": 2 * FP32 * self.matrix})

    def _moment(self, phase: str, gradients: float, parts: Parts | None = None) -> PhaseMemory:
        found = {**self.fixed, "gradients (fp32, sharded)": gradients, **(parts or {})}
        return PhaseMemory(phase, {name: size for name, size in found.items() if size})

    def _whole(self, block: int, buffers: int = 0, roots: int = 1, *, computes: bool = True) -> Parts:
        """Unsharded weights while `block` computes (-1: none), and so many buffers of gathered ones.

        A single rank gathers into no buffer, and has a copy of a block only while it `computes`.
        """
        if self.many:
            blocks = (self.blocks[block] if block >= 0 else 0) + buffers * self.blocks[max(block, 0)]
        else:
            blocks, roots = self.blocks[block] if block >= 0 and computes else 0, 1
        return {
            "whole weights of embedding and head": self.item * self.root * roots,
            "whole weights of blocks in flight": self.item * blocks,
        }

    def _forward(self, phase: str, gradients: float, *, grad: bool) -> Iterator[PhaseMemory]:
        last = len(self.blocks) - 1
        # Gathering takes a flat buffer beside the weights; the root's is there until the first block has been gathered.
        yield self._moment(
            phase,
            gradients,
            {**self._whole(0, buffers=1, roots=2), "activations outside of blocks": self.hidden},
        )
        kept = self.block.kept if grad else 0
        for block in range(last + 1):
            # Beside its weights: the buffer they came in, and the next block's.
            parts = self._whole(block, buffers=1 if block == last else 2)
            parts["layer checkpoints"] = kept * block
            parts["one block"] = self.block.forward if grad else self.block.evaluated
            # transformers holds on to the embeddings; with gradient they are the first checkpoint.
            parts["activations outside of blocks"] = self.hidden if block and not grad else 0
            yield self._moment(phase, gradients, parts)
        parts = self._whole(last, computes=False)
        parts["layer checkpoints"] = kept * (last + 1)
        parts["log-probabilities"] = self.tail.forward if grad else self.tail.evaluated
        yield self._moment(phase, gradients, parts)

    def _referred(self) -> Iterator[PhaseMemory]:
        """The reference's forward: of the policy nothing is whole, of the reference only what computes."""
        phase = "reference's log-probabilities"
        root = {"whole weights of embedding and head": float(self.item * self.root)}
        for number, size in enumerate(self.blocks):
            parts = {**root, "whole weights of blocks in flight": float(self.item * size * (3 if self.many else 1))}
            parts |= {"one block": self.block.evaluated, "activations outside of blocks": self.hidden if number else 0}
            yield self._moment(phase, 0.0, parts)
        yield self._moment(phase, 0.0, {**root, "log-probabilities": self.tail.evaluated})

    def _backward(self, before: float) -> Iterator[PhaseMemory]:
        last = len(self.blocks) - 1
        gradients = before
        parts = self._whole(last, computes=False)
        parts["layer checkpoints"] = self.block.kept * (last + 1)
        parts["log-probabilities"] = self.tail.backward
        yield self._moment("backward of log-probabilities", gradients, parts)
        for block in range(last, -1, -1):
            yield from self._backward_of_block(block, gradients)
            if not before:
                gradients += FP32 * self.trained[block] / self.world
        yield self._moment(
            "backward of the embedding",
            gradients,
            {
                **self._whole(-1),
                "gradients of embedding and head": self.head_grad + self.embedding_grad,
                "activations outside of blocks": self.hidden,
                "gradient reduction": FP32 * self.trained[0],
            },
        )
        yield self._moment(
            "backward of the embedding",
            gradients,
            {"gradient reduction": self._reduction(self.root_trained)},
        )

    def _backward_of_block(self, block: int, gradients: float) -> Iterator[PhaseMemory]:
        own = {"gradients of the head": self.head_grad, "layer checkpoints": self.block.kept * block}
        yield self._moment(
            "backward of blocks",
            gradients,
            {
                **self._whole(block, buffers=1 if block else 0),
                **own,
                "one block recomputed, its gradients": self.block.backward,
                "gradient reduction": FP32 * self.trained[block + 1] if block < len(self.blocks) - 1 else 0,
            },
        )
        # Its weights are given back before the buffer to reduce is made.
        yield self._moment(
            "backward of blocks",
            gradients,
            {
                **self._whole(block - 1),
                **own,
                "activations outside of blocks": self.hidden,
                "gradient reduction": self._reduction(self.trained[block]),
            },
        )

    def _reduction(self, entries: int) -> float:
        """Bytes to sum a gradient over the ranks: an fp32 copy beside the gradient, then beside this rank's part."""
        return FP32 * entries + max(self.item * entries, FP32 * entries / self.world)
