"""`atropos budget`: GiB per GPU and tokens/s of a configuration, before a GPU is asked for.

    atropos budget --config configs/nouscoder-14b/train-32k.yaml --gpu h100 --gpus 8

The memory is `trainer.planning.timeline`'s; the speed is an estimate: operations (`trainer.planning.flops`) over peak
x an assumed MFU. What does not fit is refused with the settings that do, here and when the trainer starts. Only the
trainer's GPUs are planned: vLLM, which samples on others, has `gpu_memory_utilization` for its own. Where both are on
one GPU in turns (`--weights.backend colocated`) each phase is: `trainer.planning.turns`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from environments.common.errors import BAD_INPUT, ConfigError
from environments.common.settings import load
from environments.common.terminal import take_any_text
from trainer.config import TrainerConfig
from trainer.planning.flops import GPUS

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from trainer.planning.timeline import Budget


class BudgetConfig(TrainerConfig):
    """What a run needs on each GPU: the trainer's options, and the GPUs to plan for."""

    START: ClassVar[tuple[str, ...]] = ("model", "gpu", "gpus")
    COMMON: ClassVar[tuple[str, ...]] = (
        *("batch.context", "batch.max_tokens", "batch.rollouts", "activation_checkpointing", "logprob_chunk"),
        *("memory_gib", "mfu"),
    )
    EXAMPLE: ClassVar[str] = "atropos budget --config configs/nouscoder-14b/train-32k.yaml --gpu h100 --gpus 8"

    run_dir: Path = Field(Path("runs/budget"), description="Not used.")
    gpu: Literal["a100", "h100", "h200", "b200"] = Field("h100", description="Kind of GPU, as an SXM module.")
    gpus: int = Field(8, ge=1, description="GPUs that train; those that serve are not counted.")
    mfu: float = Field(
        0.3,
        gt=0,
        le=1,
        description="Assumed share of the peak: published ones are 0.30 (RL of a 4B at 64k) to 0.35 (an 8B at 8k, "
        "compiled).",
    )


def report(config: BudgetConfig, model: PretrainedConfig, budget: Budget) -> Iterator[str]:
    """The lines that the command prints."""
    from trainer.planning.fit import setup, token_flops, tokens_per_second
    from trainer.planning.timeline import FRAGMENTATION, GIB, RESERVED_GIB
    from trainer.planning.trace import sizes

    gpu = GPUS[config.gpu]
    count = sum(prod(shape) for shapes in (*sizes(model).blocks, sizes(model).root) for shape in shapes)
    peak = budget.peak
    chosen = setup(config, config.gpus).adapter
    adapter = sum(prod(shape) for shapes in sizes(model, chosen).adapters for shape in shapes)
    yield (
        f"{config.model.name}, {count / 1e9:.2f} B parameters"
        + (f" and an adapter of {adapter / 1e6:.1f} M" if adapter else "")
        + f", on {config.gpus} x {config.gpu}: "
        f"context {config.batch.context}, packs of {config.batch.max_tokens} tokens, "
        f"activation_checkpointing {config.activation_checkpointing}, logprob_chunk {config.logprob_chunk}"
    )
    yield "GiB on each GPU at the largest moment of each phase"
    for moment in budget.phases:
        yield f"  {moment.phase:<36}{moment.total / GIB:7.1f}{'   <- peak' if moment is peak else ''}"
    yield f"in the peak, {peak.phase}"
    for name, size in sorted(peak.parts.items(), key=lambda part: -part[1]):
        yield f"  {name:<36}{size / GIB:7.1f}"
    yield (
        f"needed {budget.needed / GIB:.1f} of {memory_of(config) / GIB:.1f} GiB, with {FRAGMENTATION:.0%} for the "
        f"allocator and {RESERVED_GIB} GiB for CUDA and NCCL (assumed)"
    )
    if budget.host:
        yield f"and {budget.host / GIB:.1f} GiB of CPU memory for each GPU, for what is kept there"
    train, old = token_flops(model, config)
    rate = tokens_per_second(train + old, config.gpus, gpu.bf16_flops, config.mfu)
    batch = config.batch.rollouts * config.batch.context
    yield (
        f"estimate: {rate:,.0f} tokens/s in all, at an assumed MFU of {config.mfu:.0%} of {gpu.bf16_flops / 1e12:.0f} "
        f"TFLOP/s; {batch / rate:,.0f} s for {config.batch.rollouts} rollouts that are all as long as the context"
    )
    of = "its old" if config.objective.reference == "none" else "its old and its reference's"
    yield (
        f"{train / 1e9:.1f} GFLOP a token to train (causal, nothing computed twice) and {old / 1e9:.1f} for {of} "
        "log-probability; sampling is vLLM's and not in it"
    )


def memory_of(config: BudgetConfig) -> float:
    """Bytes of one GPU: `memory_gib` where it is given, else the table's."""
    return (config.memory_gib or GPUS[config.gpu].memory_gib) * 2**30


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: exit code 0 when it fits, 1 when it does not, 2 for settings that cannot be used."""
    take_any_text()
    try:
        return _plan(load(BudgetConfig, sys.argv[1:] if argv is None else argv, "atropos budget"))
    except ConfigError as error:
        print(f"error {error}", file=sys.stderr)
        return BAD_INPUT


def _plan(config: BudgetConfig) -> int:
    # Imported here: --help and wrong options should not pay for torch.
    from trainer.planning.fit import model_config, refusal, setup
    from trainer.planning.timeline import plan
    from trainer.planning.turns import lines as turns_lines
    from trainer.planning.turns import turns, turns_refusal

    model = model_config(config.model)
    budget = plan(model, setup(config, config.gpus))
    memory = memory_of(config)
    print("\n".join(report(config, model, budget)))
    if config.weights.backend == "colocated":
        if config.gpus != 1:
            raise ConfigError(f"gpus {config.gpus} with weights.backend colocated: it has one GPU; set gpus: 1")
        print("\n".join(turns_lines(turns(model, config, budget, memory), config, memory)))
        wrong = turns_refusal(model, config, budget, memory)
    else:
        fits = budget.needed <= memory
        wrong = None if fits else refusal(model, config, config.gpus, budget, memory, True)
    if wrong is None:
        return 0
    print(f"error {wrong}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
