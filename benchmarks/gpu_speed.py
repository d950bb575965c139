"""Sections of benchmarks/gpu_check.py that train whole steps: memory, speed, packed against padded, other kernels.

A case that does not fit into the time that is left is named under `left out for time`, not measured badly.
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch
import torch._dynamo
from transformers import Qwen3Config

from benchmarks.gpu_harness import Check, Failed, hold
from benchmarks.gpu_sections import seeded_groups
from benchmarks.kernel_time import kernel_seconds
from benchmarks.loops import GIB, PackedLoop, PaddedLoop, Phases, free, optimizer_fits, trainer_config
from benchmarks.trainer import Case, parse, peak_flops, useful_flops
from benchmarks.workload import SHAPES, Lengths
from trainer.model.attention import varlen_attention
from trainer.model.layout import AttentionLayout, Span
from trainer.planning.fit import setup
from trainer.planning.flops import attended_pairs
from trainer.planning.live_bytes import LiveBytes
from trainer.planning.timeline import Budget, plan

LEFT_OUT = "left out for time"


def within_time(check: Check, cases: list[tuple[str, int]], result: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """The cases (shape, context) until one, going by the slowest so far, would not end in time."""
    slowest = 0.0
    for shape, context in cases:
        if check.left() < 2 * slowest:
            result.setdefault(LEFT_OUT, []).append(f"{shape}, {context}")
            continue
        began = time.monotonic()
        yield shape, context
        slowest = max(slowest, time.monotonic() - began)


def _measured_peak(check: Check, loop: PackedLoop) -> float:
    with ExitStack() as stack:
        live = None if check.cuda else stack.enter_context(LiveBytes())
        if live is not None:
            live.count(loop.state())
        phases = Phases(check.device, live)
        for _ in range(2):  # AdamW's state exists from the second on
            phases.clear()
            loop.step(phases)
    return max(phases.peak.get(phase, 0) for phase in ("old_logprobs", "gradient", "optimizer"))


def _predicted_peak(budget: Budget, update: bool) -> float:
    """Bytes; without an optimizer there are no moments, and no update."""
    if update:
        return budget.peak.total
    without = (
        sum(size for name, size in phase.parts.items() if not name.startswith("AdamW"))
        for phase in budget.phases
        if phase.phase not in ("update", "publish")
    )
    return max(without)


def memory(check: Check) -> dict[str, Any]:
    """Peak memory of full packs against trainer.budget, within 10 %: the largest model first, then the smallest."""
    result: dict[str, Any] = {}
    worst = 0.0
    shapes = list(dict.fromkeys((check.shapes[-1], check.shapes[0])))
    cases = [(shape, context) for shape in shapes for context in (check.contexts[-1], check.longest)]
    for shape, context in within_time(check, cases, result):
        # Two rollouts that each fill a micro-batch with their prompt.
        groups = seeded_groups([Lengths(512, (context - 513,) * 2)], shape, context)
        config = trainer_config(check.model(shape), context, context, 2, 2)
        wanted = setup(config, 1, cuda=check.cuda)
        model = Qwen3Config(**SHAPES[shape])
        update = optimizer_fits(_parameters(model), check.device)
        loop = PackedLoop(config, groups, check.parallel, wanted.dtype, optimizer=update)
        try:
            peak = _measured_peak(check, loop)
        except torch.OutOfMemoryError:
            result[f"{shape}, {context}"] = {"outcome": "out of memory", "optimizer": update}
            continue
        finally:
            del loop
            free(check.device)
        predicted = _predicted_peak(plan(model, wanted), update)
        numbers = {"peak_gib": peak / GIB, "budget_gib": predicted / GIB, "optimizer": update}
        result[f"{shape}, {context}"] = numbers
        worst = max(worst, abs(peak / predicted - 1))
    # In a CPU's small packs the ids on the host and the objective's vectors, which the plan leaves out, are not small.
    hold(f"the budget's largest error ({result})", worst, 0.1 if check.cuda else 0.2)
    return result | {"largest error": worst}


def _parameters(config: Qwen3Config) -> int:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters())


def _options(check: Check, shape: str, context: int, *more: str) -> Namespace:
    asked = ["--device", check.device.type, "--groups", "1", "--seed", "1", *more]
    return parse([*asked, "--shape", shape, "--context", str(context)])


def speed(check: Check) -> dict[str, Any]:
    """tokens/s and causal MFU of the packed loop on drawn lengths, the floor by operations, and where the rest goes."""
    peak, meaning = peak_flops(check.device)
    result: dict[str, Any] = {"full rate": f"{peak:.4g} FLOP/s, {meaning}"}
    cases = [(shape, context) for context in check.contexts for shape in check.shapes]
    for shape, context in within_time(check, cases, result):
        check.model(shape)
        case = Case(shape, context, check.folder, check.parallel, _options(check, shape, context, "--loops", "packed"))
        kernels: dict[str, float] = {}

        def profiled(loop: PackedLoop | PaddedLoop, kernels: dict[str, float] = kernels) -> None:
            kernels.update(kernel_seconds(lambda: loop.step(Phases(check.device)), check.device))

        case.round(profiled)
        result[f"{shape}, {context}"] = _row(case, peak, kernels)
        free(check.device)
    rows = {name: row for name, row in result.items() if isinstance(row, dict)}
    missing = [name for name, row in rows.items() if row["outcome"] != "measured"]
    if missing:
        raise Failed(f"out of memory: {'; '.join(missing)} ({result})")
    return result


def _row(case: Case, peak: float, kernels: dict[str, float]) -> dict[str, Any]:
    loop = case.result(peak)["loops"]["packed"]
    kept = ("tokens_per_s", "trained_tokens_per_s", "mfu_gradient", "mfu_step")
    row: dict[str, Any] = {name: loop[name] for name in kept if name in loop}
    row |= {"peak_gib": max(loop["peak_gib"].values()), "outcome": loop["outcome"], "optimizer": case.update}
    if "seconds" in loop:
        operations = sum(useful_flops(case.shape, case.lengths, backward=both) for both in (False, True))
        row |= {"step_s": loop["seconds"]["step"], "floor_s": operations / peak, "seconds": loop["seconds"]}
        row["share"] = {kind: seconds / kernels["wall"] for kind, seconds in kernels.items() if kind != "wall"}
    return row


def packed_against_padded(check: Check) -> dict[str, Any]:
    """Seconds and memory of the plain loop over those of the packed one, on the same groups."""
    shape, context = check.shapes[0], check.contexts[0]
    check.model(shape)
    case = Case(shape, context, check.folder, check.parallel, _options(check, shape, context))
    case.round()
    found = case.result(peak_flops(check.device)[0])
    ratios: dict[str, Any] = found["padded_over_packed"]
    return {"case": f"{shape}, {context}"} | ratios


def recomputation_speed(check: Check) -> dict[str, Any]:
    """Full against selective recomputation, and compiled blocks: a step's seconds and peak memory."""
    shape, context = check.shapes[0], check.contexts[-1]
    result: dict[str, Any] = {"case": f"{shape}, {context}"}
    ways = {"full": [], "selective": ["--recompute", "selective"], "full, compiled": ["--compile"]}
    for name, more in ways.items():
        if check.left() < 30:
            result.setdefault(LEFT_OUT, []).append(name)
            continue
        torch._dynamo.reset()
        options = _options(check, shape, context, "--loops", "packed", *more)
        check.model(shape)
        case = Case(shape, context, check.folder, check.parallel, options)
        case.round()
        loop = case.result(peak_flops(check.device)[0])["loops"]["packed"]
        result[name] = {"outcome": loop["outcome"], "peak_gib": max(loop["peak_gib"].values())}
        if "seconds" in loop:
            result[name] |= {"step_s": loop["seconds"]["step"], "mfu_step": loop["mfu_step"]}
        free(check.device)
    return result


def attention_kernels(check: Check) -> dict[str, Any]:
    """Forward and backward of varlen attention: torch's own kernel, and FA3 where this build has it."""
    result: dict[str, Any] = {}
    if not check.cuda:
        return {"varlen": "needs a GPU"}
    context, heads, groups, width = check.contexts[-1], 32, 8, 128  # Qwen3-4B's
    layout = AttentionLayout((Span(0, 512, ((context - 512) // 2,) * 2),))
    shapes = ((layout.total, heads, width), (layout.total, groups, width), (layout.total, groups, width))
    parts = [check.random(*shape, seed=place).bfloat16().requires_grad_() for place, shape in enumerate(shapes)]
    upstream = check.random(*shapes[0], seed=9).bfloat16()
    operations = 3.5 * 4.0 * heads * width * attended_pairs(layout)  # a backward is five products, a forward two
    peak, _ = peak_flops(check.device)
    for kernel in (None, "FA3"):
        try:
            if kernel is not None:
                torch.nn.attention.activate_flash_attention_impl(kernel)
        except (ImportError, RuntimeError, AttributeError) as error:
            result[str(kernel)] = f"not in this build: {error}"[:200]
            continue
        phases = Phases(check.device)
        for _ in range(4):
            with phases("attention"):
                out = varlen_attention(parts[0], parts[1], parts[2], layout, width**-0.5)
                torch.autograd.grad(out, parts, upstream)
        seconds = min(phases.seconds["attention"])
        result[kernel or "torch's own"] = {"seconds": seconds, "share of peak": operations / seconds / peak}
    return result
