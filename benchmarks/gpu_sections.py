"""The sections of benchmarks/gpu_check.py: each measures, holds what it measured to a limit, and returns the numbers.

Device, type and model's shape are parameters, so that all of it but the CUDA kernels runs on a CPU too. Limits and what
they rest on: gpu_harness.py.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from benchmarks.gpu_calls import check_all
from benchmarks.gpu_harness import HALF, LEAK, MODEL_HALF, SINGLE, Check, Failed, hold, off
from benchmarks.loops import GIB, PackedLoop, Phases, free, relative_error, trainer_config
from benchmarks.workload import SHAPES, Lengths, draw_lengths, make_groups
from trainer.checkpoints import Checkpoints
from trainer.config import Recompute
from trainer.data.scored_groups import ScoredGroup
from trainer.model.attention import grouped_attention, varlen_attention
from trainer.model.layout import AttentionLayout, Span
from trainer.model.logprobs import token_logprobs
from trainer.model.packing import MicroBatch, pack
from trainer.model.policy import Policy

# -- attention ---------------------------------------------------------------------------------------------------

NAMES = ("output", "query gradient", "key gradient", "value gradient")


def _layout(check: Check) -> AttentionLayout:
    """Lengths around the kernel's tile sizes, a single token, a group whose completions are all of one token."""
    if check.cuda:
        return AttentionLayout((Span(0, 300, (700, 37, 1, 1025)), Span(2063, 129, (64, 511)), Span(2767, 5, ())))
    return AttentionLayout((Span(0, 30, (70, 7, 1, 102)), Span(210, 13, (6, 51)), Span(280, 5, ())))


def _heads(check: Check, total: int, seed: int) -> list[Tensor]:
    """Query with 4 heads, key and value with 2, of 128."""
    return [check.random(total, heads, 128, seed=seed + place) for place, heads in enumerate((4, 2, 2))]


def _attend(check: Check, heads: Sequence[Tensor], upstream: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Output and the gradients of query, key and value: varlen on a GPU in bf16, else grouped."""
    query, key, value = inputs = [part.to(dtype).requires_grad_() for part in heads]
    form = varlen_attention if check.cuda and dtype == torch.bfloat16 else grouped_attention
    out = form(query, key, value, _layout(check), 128**-0.5)
    return [out, *torch.autograd.grad(out, inputs, upstream.to(dtype))]


def attention_values(check: Check) -> dict[str, Any]:
    """bf16 attention against the fp32 form on the same numbers: output and gradients."""
    total = _layout(check).total
    heads, upstream = _heads(check, total, 1), check.random(total, 4, 128, seed=7)
    half, single = (_attend(check, heads, upstream, dtype) for dtype in (torch.bfloat16, torch.float32))
    return {
        name: hold(f"relative error of the {name}", off(ours, theirs), HALF)
        for name, ours, theirs in zip(NAMES, half, single, strict=True)
    }


def leak(check: Check) -> dict[str, Any]:
    """Other documents change: outputs and gradients of this one do not. Its own prompt changes: they do."""
    layout = _layout(check)
    first = layout.spans[0]
    own = slice(first.start + first.prompt, first.start + first.prompt + first.completions[0])
    prompt = slice(first.start, first.start + first.prompt)
    mine = torch.cat([torch.arange(part.start, part.stop) for part in (prompt, own)]).to(check.device)
    heads, others = _heads(check, layout.total, 1), _heads(check, layout.total, 50)
    upstream = torch.zeros(layout.total, 4, 128, device=check.device)
    upstream[own] = check.random(own.stop - own.start, 4, 128, seed=7)
    changed, prompt_changed = ([part.clone() for part in heads] for _ in range(2))
    for part, elsewhere, other in zip(changed, prompt_changed, others, strict=True):
        kept = part[mine].clone()
        part.copy_(other)
        part[mine] = kept
        elsewhere[prompt] = other[prompt]
    found = [_attend(check, parts, upstream, torch.bfloat16) for parts in (heads, changed, prompt_changed)]
    result: dict[str, Any] = {}
    for name, before, after, moved in zip(NAMES, *found, strict=True):
        # Not held to zero: the query's gradient is summed by atomic additions, in any order.
        result[name] = hold(f"a leak into the {name}", off(after[mine], before[mine]), LEAK)
        result[f"{name}, own prompt changed"] = seen = off(moved[own], before[own])
        if seen < 5 * LEAK:
            raise Failed(f"the {name} moved by only {seen:.3g} when its own prompt changed: this section sees no leak")
    return result


# -- the policy --------------------------------------------------------------------------------------------------


def seeded_groups(lengths: Sequence[Lengths], shape: str, context: int) -> list[ScoredGroup]:
    """Groups of these lengths with random tokens of the shape's vocabulary, the same each time."""
    return make_groups(lengths, context, SHAPES[shape]["vocab_size"], 0)


def _backward(policy: Policy, micros: Sequence[MicroBatch]) -> tuple[dict[Any, Tensor], dict[str, Tensor]]:
    """Log-probabilities by (group, rollout), and the gradients of a sum of them with fixed random signs."""
    found: dict[Any, Tensor] = {}
    for micro in micros:
        logprob, _ = policy.logprobs(micro)
        parts = logprob.split(micro.length.tolist())
        signs = []
        for (group, rollout), part in zip(micro.origin, parts, strict=True):
            draw = torch.Generator().manual_seed(1000 * group + rollout)
            signs.append(torch.randint(2, (len(part),), generator=draw).to(part) * 2 - 1)
            found[group, rollout] = part.detach()
        (logprob * torch.cat(signs)).sum().backward()
    gradients = {name: _taken(weight) for name, weight in policy.model.named_parameters()}
    return found, gradients


def _taken(weight: Tensor) -> Tensor:
    gradient, weight.grad = weight.grad, None
    assert isinstance(gradient, DTensor)
    return gradient.full_tensor().clone()


def _alone(groups: Sequence[ScoredGroup], device: torch.device) -> list[MicroBatch]:
    """One micro-batch for each rollout, under the origins of the whole."""
    micros = []
    for number, group in enumerate(groups):
        for place, rollout in enumerate(group.rollouts):
            only = ScoredGroup(group.group_id, "p", group.temperature, group.context, group.prompt, [rollout])
            [micro] = pack([only], [[1.0]], group.context, device=device)
            micro.origin = [(number, place)]
            micros.append(micro)
    return micros


def documents(check: Check) -> dict[str, Any]:
    """A pack's log-probabilities and gradients against each rollout alone, in fp32 and bf16."""
    shape = "small" if check.cuda else "tiny"
    groups = seeded_groups([Lengths(150, (260, 31, 1, 120)), Lengths(90, (77, 300))], shape, 512)
    [whole] = pack(groups, [[1.0] * 4, [1.0] * 2], 2048, device=check.device)
    result: dict[str, Any] = {}
    exact: dict[str, Tensor] = {}
    for name, dtype, limit in (("fp32", torch.float32, SINGLE), ("bf16", torch.bfloat16, MODEL_HALF)):
        policy = Policy(check.model(shape), check.parallel, compute_dtype=dtype)
        packed, gradient = _backward(policy, [whole])
        alone, expected = _backward(policy, _alone(groups, check.device))
        away = max(float((packed[key] - alone[key]).abs().max()) for key in alone)
        result[f"{name}: log-probabilities, nats"] = hold(f"{name} log-probabilities", away, 2 * limit)
        result[f"{name}: gradient"] = hold(f"{name} gradient", relative_error(gradient, expected), limit)
        exact = exact or gradient
    result["bf16 against fp32: gradient"] = hold("bf16 gradient against fp32", relative_error(gradient, exact), 0.1)
    return result


def calls(check: Check) -> dict[str, Any]:
    """GPU calls fit the installed torch and transformers; see benchmarks/gpu_calls.py."""
    found = check_all()
    wrong = {name: why for name, why in found.items() if why != "fits"}
    if wrong:
        raise Failed("; ".join(f"{name}: {why}" for name, why in wrong.items()))
    return found


def against_transformers(check: Check) -> dict[str, Any]:
    """bf16 log-probabilities of packed rollouts against transformers' own sdpa on each one alone, nats."""
    shape = check.shapes[0]
    groups = seeded_groups([Lengths(200, (300, 17, 150))], shape, 512)
    [whole] = pack(groups, [[1.0] * 3], 2048, device=check.device)
    policy = Policy(check.model(shape), check.parallel, compute_dtype=torch.bfloat16)
    with torch.no_grad():
        ours = policy.logprobs(whole)[0].split(whole.length.tolist())
    del policy
    free(check.device)
    plain = AutoModelForCausalLM.from_pretrained(
        check.model(shape), dtype=torch.bfloat16, attn_implementation="sdpa", local_files_only=True
    )
    nn.Module.to(plain, check.device)
    away = []
    for (_, place), mine in zip(whole.origin, ours, strict=True):
        completion = groups[0].rollouts[place].completion
        ids = torch.tensor([groups[0].prompt + completion], device=check.device)
        with torch.no_grad():
            table = torch.log_softmax(plain(ids, use_cache=False).logits[0, :-1].float(), dim=-1)
        theirs = table.gather(1, ids[0, 1:, None])[-len(completion) :, 0]
        away.append((mine - theirs).abs())
    every = torch.cat(away)
    return {
        "mean": hold("mean difference in nats", float(every.mean()), 0.02),
        "max": hold("largest difference in nats", float(every.max()), 0.2),
    }


def chunked(check: Check) -> dict[str, Any]:
    """Log-probabilities by chunks against whole fp32 logits: values, gradients, peak memory."""
    count, vocabulary, width, chunk = (8192, 151_936, 1024, 1024) if check.cuda else (512, 8192, 64, 64)
    dtype = torch.bfloat16 if check.cuda else torch.float32
    hidden = check.random(count, width, seed=1).to(dtype).requires_grad_()
    weight = check.random(vocabulary, width, seed=2, scale=0.02).to(dtype).requires_grad_()
    target = torch.randint(vocabulary, (count,), generator=torch.Generator().manual_seed(3)).to(check.device)
    upstream, temperature = check.random(count, seed=4), torch.full((count,), 0.7, device=check.device)
    results, taken = [], []
    for way in ("chunks", "whole"):
        with check.measured([hidden, weight]) as found:
            if way == "chunks":
                logprob = token_logprobs(hidden, weight, target, temperature, chunk)[0]
            else:
                table = torch.log_softmax((hidden @ weight.T).float() / temperature[:, None], dim=-1)
                logprob = table.gather(1, target[:, None])[:, 0]
                del table
            gradients = torch.autograd.grad(logprob, (hidden, weight), upstream)
        results.append([logprob.detach(), *gradients])
        taken.append(found)
        del logprob, gradients
        free(check.device)
    limit = HALF if dtype == torch.bfloat16 else SINGLE
    names = ("values", "gradient of the hidden states", "gradient of the head")
    found = {name: hold(name, off(a, b), limit) for name, a, b in zip(names, *results, strict=True)}
    hold("peak of the chunks over the whole's", taken[0]["peak_gib"] / taken[1]["peak_gib"], 0.8)
    return found | {"chunks": taken[0], "whole": taken[1]}


def recomputation(check: Check) -> dict[str, Any]:
    """full, selective and none: the same gradient, less memory the more is computed again."""
    shape, context = check.shapes[0], check.contexts[0]
    groups = seeded_groups([Lengths(context // 8, (context // 2, context // 4))], shape, context)
    [whole] = pack(groups, [[1.0, 1.0]], context, device=check.device)
    modes: tuple[Recompute, ...] = ("none", "selective", "full")
    result: dict[str, Any] = {}
    first: dict[str, Tensor] = {}
    for mode in modes:
        policy = Policy(check.model(shape), check.parallel, activation_checkpointing=mode, compute_dtype=torch.bfloat16)
        _backward(policy, [whole])
        with check.measured(list(policy.parameters())) as found:
            _, gradient = _backward(policy, [whole])
        first = first or gradient
        result[mode] = found | {"gradient": hold(f"{mode}: gradient", relative_error(gradient, first), MODEL_HALF)}
        del policy, gradient
        free(check.device)
    peaks = [result[mode]["peak_gib"] for mode in modes]
    if peaks != sorted(peaks, reverse=True):
        raise Failed(f"peak memory of {', '.join(modes)} does not fall: {', '.join(f'{p:.3f}' for p in peaks)} GiB")
    return result


def compiled(check: Check) -> dict[str, Any]:
    """Blocks under torch.compile: the same values, what was compiled, the speed with and without."""
    import torch._dynamo

    shape, context = check.shapes[0], check.contexts[0]
    groups = seeded_groups([Lengths(context // 8, (context // 2, context // 4))], shape, context)
    [whole] = pack(groups, [[1.0, 1.0]], context, device=check.device)
    values: list[tuple[dict[Any, Tensor], dict[str, Tensor]]] = []
    result: dict[str, Any] = {}
    for name, compile_blocks in (("eager", False), ("compiled", True)):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        policy = Policy(check.model(shape), check.parallel, compute_dtype=torch.bfloat16, compile_blocks=compile_blocks)
        began = time.perf_counter()
        _backward(policy, [whole])
        warm_up = time.perf_counter() - began
        phases = Phases(check.device)
        with phases("block"):
            values.append(_backward(policy, [whole]))
        result[name] = {"first_step_seconds": warm_up, "seconds": phases.seconds["block"][0]}
        if check.cuda:
            result[name]["peak_gib"] = phases.peak["block"] / GIB
        counters = {kind: dict(counts) for kind, counts in torch._dynamo.utils.counters.items()}
        del policy
        free(check.device)
    captured = counters.get("stats", {}).get("calls_captured", 0)
    if not captured:
        raise Failed(f"torch compiled nothing: {counters}")
    breaks = {str(why).splitlines()[0]: count for why, count in counters.get("graph_break", {}).items()}
    result["compiled"] |= {"calls_captured": captured, "graph_breaks": breaks}
    (eager, expected), (other, gradient) = values
    away = torch.cat([(eager[key] - other[key]).abs().flatten().float() for key in eager])
    # Both round to bf16, at other places: single tokens of a sharp model part by tenths, a wrong mask moves the mean.
    result["largest difference, nats"] = hold("compiled log-probabilities, one token", float(away.max()), 0.2)
    result["log-probabilities, nats"] = hold("compiled log-probabilities, mean difference", float(away.mean()), 0.05)
    result["gradient"] = hold("compiled gradient", relative_error(gradient, expected), MODEL_HALF)
    result["speed"] = result["eager"]["seconds"] / result["compiled"]["seconds"]
    return result


# -- the whole trainer -------------------------------------------------------------------------------------------


def one_rank(check: Check) -> dict[str, Any]:
    """FSDP2 in a world of one: a step, a checkpoint, its load into a fresh trainer, the same next step."""
    shape = "small" if check.cuda else "tiny"
    groups = seeded_groups(draw_lengths(2, 4, 512, 0), shape, 512)
    config = trainer_config(check.model(shape), 512, 1024, 8, 4)
    loop = PackedLoop(config, groups, check.parallel, torch.bfloat16)
    phases = Phases(check.device)
    checkpoints = Checkpoints(check.folder / "checkpoints", check.parallel)
    try:
        loop.step(phases)
        saved = loop.policy.state_dict_full()
        checkpoints.save(loop.policy, loop.optimizer, 1)
        checkpoints.wait()
        loop.step(phases)
        expected = loop.policy.state_dict_full()
        again = PackedLoop(config, groups, check.parallel, torch.bfloat16)
        step = checkpoints.load("latest", again.policy, again.optimizer).step
    finally:
        checkpoints.close()
    loaded = again.policy.state_dict_full()
    if step != 1 or any(not torch.equal(loaded[name], saved[name]) for name in saved):
        raise Failed("a loaded checkpoint does not hold the weights that were saved")
    moved = relative_error(saved, expected)
    again.step(phases)
    apart = relative_error(again.policy.state_dict_full(), expected)
    if not (moved > 0 and apart <= 0.1 * moved):
        raise Failed(f"the step after the load is {apart:.3g} from the one without it, which moved by {moved:.3g}")
    [empty] = pack([], [], 64, device=check.device)
    logprob, _ = again.policy.logprobs(empty)
    logprob.sum().backward()
    if any(bool(_taken(weight).any()) for weight in again.policy.model.parameters()):
        raise Failed("an empty micro-batch has a gradient")
    import torch.distributed as dist

    return {"backend": dist.get_backend(), "moved": moved, "apart": apart}
