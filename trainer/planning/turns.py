"""One GPU in turns (weights.backend colocated): the device's memory in each phase, and what of them does not fit.

training      a step of the trainer, beside what vLLM keeps while it sleeps
publication   the trainer's state, vLLM's weights and the buffer between them; the checkpoint falls into it too
generation    vLLM's share, beside what the trainer's process keeps while its state is off the device
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from transformers import PretrainedConfig

from trainer.config import TrainerConfig
from trainer.planning.fit import refusal
from trainer.planning.flops import head_dim
from trainer.planning.timeline import FP32, FRAGMENTATION, GIB, RESERVED_GIB, Budget
from trainer.planning.trace import sizes

ASLEEP_GIB = 2.0
"""What vLLM keeps on the device while it sleeps: CUDA's context, libraries, what it allocates outside its pool. An
assumption, not yet measured; vLLM logs the real number ("still in use")."""
ENGINE_GIB = 2.0
"""Of vLLM's share beside weights and cache: activations and CUDA graphs. An assumption, not yet measured."""
BUFFER = 256 * 2**20
_PASSING = ("batch and positions", "one whole weight and its parts")


@dataclass(frozen=True)
class Turns:
    """Bytes on the device by phase, and where they come from."""

    training: float
    publication: float
    generation: float
    share: float
    """vLLM's while it is awake."""
    served: float
    """Of its weights."""
    token: float
    """Of one token in its cache."""
    host: float
    """In the host's memory while vLLM generates: the trainer's state, and a copy of the served weights."""
    host_asleep: float
    """In the host's memory while vLLM sleeps: its weights (level 1) or nothing."""

    @property
    def cache(self) -> float:
        """Bytes that vLLM's share leaves for its cache; negative where its weights do not fit."""
        return self.share - self.served - ENGINE_GIB * GIB


def turns(model: PretrainedConfig, config: TrainerConfig, budget: Budget, memory: float) -> Turns:
    """Of a GPU of `memory` bytes. budget: of the trainer alone."""
    served = 2 if config.weights.dtype == "bfloat16" else FP32
    shapes = [shape for group in (*sizes(model).blocks, sizes(model).root) for shape in group]
    count, largest = sum(map(prod, shapes)), max(map(prod, shapes))
    (moment,) = (one for one in budget.phases if one.phase == "publish")
    state = sum(size for name, size in moment.parts.items() if name not in _PASSING)
    weights = float(served * count)
    share = config.weights.server_share * memory
    heads = getattr(model, "num_key_value_heads", None) or model.num_attention_heads
    own = moment.total * (1 + FRAGMENTATION) + RESERVED_GIB * GIB
    return Turns(
        training=budget.needed + ASLEEP_GIB * GIB,
        publication=own + weights + max(BUFFER, served * largest) + ASLEEP_GIB * GIB,
        generation=share + RESERVED_GIB * GIB,
        share=share,
        served=weights,
        token=2.0 * served * model.num_hidden_layers * heads * head_dim(model),
        host=budget.host + state + weights,
        host_asleep=weights if config.weights.sleep_level == 1 else 0.0,
    )


def lines(found: Turns, config: TrainerConfig, memory: float) -> Iterator[str]:
    """What `atropos budget` prints of them."""
    tokens = max(found.cache, 0.0) / found.token
    yield f"one GPU in turns, GiB of {memory / GIB:.1f}"
    yield (
        f"  {'training':<36}{found.training / GIB:7.1f}   the step above, and {ASLEEP_GIB} that vLLM keeps asleep "
        "(assumed)"
    )
    yield f"  {'publication':<36}{found.publication / GIB:7.1f}   the trainer's state beside vLLM's weights"
    yield (
        f"  {'generation':<36}{found.generation / GIB:7.1f}   vLLM's {config.weights.server_share:.0%}, and "
        f"{RESERVED_GIB} that the trainer's process keeps (assumed)"
    )
    yield (
        f"vLLM's {found.share / GIB:.1f} GiB: weights {found.served / GIB:.1f}, {ENGINE_GIB} for activations and "
        f"graphs (assumed), a cache of {tokens:,.0f} tokens: {tokens / config.batch.context:.1f} sequences of the "
        "context"
    )
    yield (
        f"CPU memory: {found.host / GIB:.1f} GiB for the trainer's state and its copy of the served weights, and "
        f"{found.host_asleep / GIB:.1f} while vLLM sleeps (weights.sleep_level {config.weights.sleep_level})"
    )


def turns_refusal(
    model: PretrainedConfig, config: TrainerConfig, budget: Budget, memory: float, *, cuda: bool = True
) -> str | None:
    """Of the phases that do not fit the first, with fields, values and what would fit; None where all do."""
    found = turns(model, config, budget, memory)
    if found.training > memory:
        rest = memory - ASLEEP_GIB * GIB
        return (
            f"weights.backend colocated: training does not fit beside a sleeping vLLM, which keeps {ASLEEP_GIB} of "
            f"{memory / GIB:.4g} GiB: {refusal(model, config, 1, budget, rest, cuda)}"
        )
    if found.publication > memory:
        return (
            f"weights.backend colocated: {found.publication / GIB:.4g} GiB needed while weights are given to vLLM, "
            f"{memory / GIB:.4g} there; set optimizer.state: cpu, or use a smaller model"
        )
    share, most = config.weights.server_share, (memory - RESERVED_GIB * GIB) / memory
    if found.generation > memory:
        return (
            f"weights.server_share {share:g} of {memory / GIB:.4g} GiB leaves the trainer's process less than the "
            f"{RESERVED_GIB} GiB that it keeps while vLLM generates; set server.gpu_memory_utilization to "
            f"{int(100 * most) / 100:g} or less"
        )
    if found.cache < config.batch.context * found.token:
        least = (found.served + ENGINE_GIB * GIB + config.batch.context * found.token) / memory
        way = (
            f"set server.gpu_memory_utilization to {-(-int(1000 * least) // 10) / 100:g} or more"
            if least + 0.01 <= most
            else "use a smaller model, or a shorter batch.context"
        )
        return (
            f"weights.server_share {share:g} of {memory / GIB:.4g} GiB: {found.served / GIB:.3g} GiB of weights and "
            f"{ENGINE_GIB} for activations leave no cache for one sequence of batch.context {config.batch.context}; "
            f"{way}"
        )
    return None
