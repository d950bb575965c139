"""Whether a configuration fits a device's memory, what it needs, and which changes make it fit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig

from environments.common.errors import ConfigError
from environments.common.hub import is_hub_name, model_folder
from trainer.config import TrainerConfig
from trainer.planning.flops import attended_pairs, flops
from trainer.planning.shapes import SHAPES
from trainer.planning.timeline import GIB, Budget, Setup, full_layout, plan
from trainer.planning.trace import Untraceable

log = logging.getLogger(__name__)

LEAST_CHUNK = 256
"""Chunks below this are not proposed: the products become too small to be fast."""
CONTEXT_STEP = 1024
MOST_GPUS = 1024


class DoesNotFitMemory(ConfigError, RuntimeError):
    """The configuration needs more memory than a device has; the message says where, and what does fit."""


@dataclass(frozen=True)
class Fix:
    """A change that fits: options with their new values, and GPUs."""

    config: TrainerConfig
    world_size: int
    text: str


def model_config(folder: Path) -> PretrainedConfig:
    """The config.json of a folder, which needs no weights; without one, the shapes known by the folder's name.

    Raises ConfigError when there is neither.
    """
    if (folder / "config.json").is_file():
        try:
            found: PretrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True)
            return found
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"model = {folder}: config.json cannot be read: {error}") from error
    if folder.name in SHAPES:
        return AutoConfig.for_model("qwen3", **SHAPES[folder.name])
    if is_hub_name(folder):
        return model_config(model_folder(folder, weights=False))
    raise ConfigError(
        f"model = {folder}: no config.json there; give a folder with one, or a name that ends in one of "
        f"{', '.join(SHAPES)}"
    )


def setup(config: TrainerConfig, world_size: int, *, cuda: bool = True) -> Setup:
    """What of the options decides about memory. cuda: bf16 and flash attention, as on a GPU; else fp32 on a CPU."""
    batch, steps = config.batch, config.objective.optimizer_steps_per_batch
    chosen = config.objective.reference
    tokens = -(-batch.rollouts * batch.context // steps)
    return Setup(
        world_size=world_size,
        context=batch.context,
        max_tokens=batch.max_tokens,
        logprob_chunk=config.logprob_chunk,
        activation_checkpointing=config.activation_checkpointing,
        micro_batches=steps * -(-tokens // (world_size * batch.max_tokens)),
        optimizer_steps=steps,
        recompute_old=config.objective.old_logprobs == "recompute",
        dtype=torch.bfloat16 if cuda else torch.float32,
        varlen=cuda,
        reference="base" if config.adapter.rank and chosen != "none" else chosen,
        reference_offload=config.objective.reference_offload,
        adapter=(config.adapter.rank, tuple(config.adapter.targets)) if config.adapter.rank else None,
        moments=config.optimizer.moments,
        moments_on_cpu=config.optimizer.state == "cpu",
    )


def token_flops(model: PretrainedConfig, config: TrainerConfig) -> tuple[float, float]:
    """Operations for one packed token of full-length sequences: (training, log-probabilities without gradient).

    The latter are the old ones where they are recomputed, and the reference's.
    """
    layout = full_layout(config.batch.context, config.batch.max_tokens)
    trained = layout.total - sum(span.prompt for span in layout.spans)
    counts = (layout.total, attended_pairs(layout), trained)
    forwards = (config.objective.old_logprobs == "recompute") + (config.objective.reference != "none")
    return flops(model, *counts, backward=True) / layout.total, forwards * flops(
        model, *counts, backward=False
    ) / layout.total


def tokens_per_second(token: float, gpus: int, peak: float, mfu: float) -> float:
    """Packed tokens a second on all GPUs: gpus x peak x mfu / operations of a token."""
    return gpus * peak * mfu / token


def fixes(model: PretrainedConfig, config: TrainerConfig, world_size: int, memory: float, cuda: bool) -> list[Fix]:
    """Changes that make the configuration fit into `memory` bytes, each by itself; else those that do it together."""
    search = _Search(model, world_size, memory, cuda)
    return search.alone(config) or search.together(config)


@dataclass(frozen=True)
class _Search:
    model: PretrainedConfig
    world_size: int
    memory: float
    cuda: bool

    def alone(self, config: TrainerConfig) -> list[Fix]:
        """Of each option its mildest change that is enough."""
        batch = config.batch
        chunks = [chunk for chunk in (config.logprob_chunk >> n for n in range(1, 20)) if chunk >= LEAST_CHUNK]
        modes = {"none": ["selective", "full"], "selective": ["full"], "full": []}[config.activation_checkpointing]
        found = self._first((_with(config, logprob_chunk=n), f"set logprob_chunk to {n}") for n in chunks)
        found += self._first(
            (_with(config, activation_checkpointing=mode), f"set activation_checkpointing to {mode}") for mode in modes
        )
        tokens = _largest(batch.context, batch.max_tokens, lambda n: self._fits(_with(config, max_tokens=n)))
        if tokens:
            found.append(Fix(_with(config, max_tokens=tokens), self.world_size, f"set batch.max_tokens to {tokens}"))
        return found

    def together(self, config: TrainerConfig) -> list[Fix]:
        """All of them at once; where that is too little the optimizer's state or more GPUs; else a shorter context."""
        batch = config.batch
        least = _with(
            config,
            logprob_chunk=min(config.logprob_chunk, LEAST_CHUNK),
            activation_checkpointing="full",
            max_tokens=batch.context,
        )
        settings = f"activation_checkpointing full, logprob_chunk {least.logprob_chunk}"
        whole = f"{settings}, batch.max_tokens {batch.context}"
        found = self._first([(least, f"set {whole}")])
        if found:
            return found
        for start, text in ((config, "set "), (least, f"set {whole}, ")):
            found = [
                fix
                for levers in _levers(start)
                for fix in self._first((changed, text + words) for changed, words in levers)
            ]
            if found:
                break
        found += self._more_gpus(config, "") or self._more_gpus(least, f"set {whole} and ")
        if found:
            return found

        def shorter(context: int) -> TrainerConfig:
            return _with(least, context=context, max_tokens=context)

        context = _largest(CONTEXT_STEP, batch.context, lambda n: self._fits(shorter(n)))
        if not context:
            return []
        words = f"set {settings}, batch.context and batch.max_tokens {context}"
        return [Fix(shorter(context), self.world_size, words)]

    def _fits(self, changed: TrainerConfig, ranks: int | None = None) -> bool:
        return plan(self.model, setup(changed, ranks or self.world_size, cuda=self.cuda)).needed <= self.memory

    def _first(self, candidates: Iterable[tuple[TrainerConfig, str]]) -> list[Fix]:
        return next(([Fix(one, self.world_size, text)] for one, text in candidates if self._fits(one)), [])

    def _more_gpus(self, start: TrainerConfig, text: str) -> list[Fix]:
        ranks = self.world_size * 2
        while ranks <= MOST_GPUS:
            if self._fits(start, ranks):
                return [Fix(start, ranks, f"{text}start {ranks} ranks")]
            ranks *= 2
        return []


def _levers(config: TrainerConfig) -> list[list[tuple[TrainerConfig, str]]]:
    """Ways to keep AdamW's moments in less device memory: by where, by how many bits, and by both; mildest first."""
    chosen = config.optimizer
    fewer = {"fp32": ["bf16", "int8"], "bf16": ["int8"], "int8": []}[chosen.moments]
    rounded = [(_with(config, moments=kept), f"optimizer.moments to {kept}") for kept in fewer]
    if chosen.state == "cpu":
        return [rounded]
    return [[(_with(config, state="cpu"), "optimizer.state to cpu")], rounded]


def _largest(low: int, high: int, fits: Callable[[int], bool]) -> int | None:
    """The largest of low, low + CONTEXT_STEP, ... below `high` that fits; what fits, fits with less too."""
    best, below, above = None, 0, -(-(high - low) // CONTEXT_STEP) - 1
    while below <= above:
        middle = (below + above) // 2
        if fits(low + middle * CONTEXT_STEP):
            best, below = low + middle * CONTEXT_STEP, middle + 1
        else:
            above = middle - 1
    return best


def _with(config: TrainerConfig, **changes: Any) -> TrainerConfig:
    def section(*names: str) -> dict[str, Any]:
        return {name: changes.pop(name) for name in names if name in changes}

    batch = config.batch.model_copy(update=section("context", "max_tokens"))
    optimizer = config.optimizer.model_copy(update=section("state", "moments"))
    return config.model_copy(update={**changes, "batch": batch, "optimizer": optimizer})


def refusal(
    model: PretrainedConfig, config: TrainerConfig, world_size: int, budget: Budget, memory: float, cuda: bool
) -> str:
    """Fields, values, what they need, and what fits."""
    peak = budget.peak
    parts = sorted(peak.parts.items(), key=lambda part: -part[1])[:4]
    ways = [fix.text for fix in fixes(model, config, world_size, memory, cuda)]
    return (
        f"batch.max_tokens = {config.batch.max_tokens}, batch.context = {config.batch.context} of {config.model} on "
        f"{world_size} ranks: {budget.needed / GIB:.4g} GiB needed on each, {memory / GIB:.4g} there (largest in the "
        f"phase '{peak.phase}': {', '.join(f'{name} {size / GIB:.3g}' for name, size in parts)}); "
        + ("; or ".join(ways) if ways else "no setting of this model fits: use a smaller one or a larger device")
    )


def check_memory(config: TrainerConfig, world_size: int, device: torch.device) -> None:
    """Raises DoesNotFitMemory when a step needs more than the device has free. See `memory_gib` for what is checked.

    Says nothing about a folder without a model, which is found out when it is read.
    """
    cuda = device.type == "cuda"
    if config.memory_gib == 0 or (config.memory_gib is None and not cuda):
        return
    if not (config.model / "config.json").is_file():
        return
    turns = config.weights.backend == "colocated"
    # In turns vLLM gives back what it holds at the moment.
    memory = config.memory_gib * GIB if config.memory_gib else float(torch.cuda.mem_get_info(device)[turns])
    try:
        model = model_config(config.model)
        budget = plan(model, setup(config, world_size, cuda=cuda))
        if turns:
            from trainer.planning.turns import turns_refusal  # which asks this module for its own refusals

            message = turns_refusal(model, config, budget, memory, cuda=cuda)
        else:
            message = refusal(model, config, world_size, budget, memory, cuda) if budget.needed > memory else None
    except (ConfigError, Untraceable) as error:
        log.warning("memory is not checked: %s", error)
        return
    if message is not None:
        raise DoesNotFitMemory(f"{message}; memory_gib: 0 begins without this check")
    log.info("%.1f GiB of %.1f needed at the peak, %s", budget.needed / GIB, memory / GIB, budget.peak.phase)
