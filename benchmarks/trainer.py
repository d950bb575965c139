"""A training step by this project and by the plain transformers loop: tokens/s, causal MFU, peak memory, by phase.

    python -m benchmarks.trainer                                  # a GPU: Qwen3-0.6B/1.7B/4B at 8k, 32k and 40k
    python -m benchmarks.trainer --device cpu [--shape small] [--context 2048] [--max-tokens 8192] [--out FILE.json]

Random weights, lengths drawn as benchmarks/workload.py says, the loops of benchmarks/loops.py on the same groups:
  packed         trainer.step on trainer.model.policy, micro-batches of --max-tokens
  padded         transformers, as many rows to a micro-batch as fit in --max-tokens at full context, at least one
  padded filled  transformers, as many rows as fit with the padding that they really need
A round rebuilds each loop and runs it, on a GPU after a warm-up step; seconds are medians over rounds, ratios medians
of the rounds' own ratios, since a shared machine's speed drifts. On a CPU one thread computes, and its processor time
counts. A step: packing, old log-probabilities, forward and backward, AdamW. The gather of whole weights for publication
is timed beside it. Before anything is timed both ways have to give the same gradient on the tiny shape in fp32.

tokens: each group's prompt once and its completions; trained tokens: the completions. MFU: operations of
trainer/planning/flops.py on these tokens (causal attention, head on trained tokens, nothing for padding or
recomputation; old log-probabilities are one forward, the gradient three) over seconds and the GPU's peak in bf16;
without a known GPU, over the rate of one large matrix product on this machine. Peak memory:
torch.cuda.max_memory_allocated; on a CPU the storages of all tensors, host copies included. A model whose optimizer
does not fit is measured without that phase.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if not __package__:
    # Run by path, this folder would come first: its trainer.py would be taken for the package `trainer`.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from transformers import Qwen3Config

from benchmarks.loops import (
    GIB,
    PackedLoop,
    PaddedLoop,
    Phases,
    follow_memory,
    free,
    optimizer_fits,
    relative_error,
    run_steps,
    trainer_config,
)
from benchmarks.workload import (
    SHAPES,
    Lengths,
    command,
    draw_lengths,
    machine,
    make_groups,
    padded_batches,
    padded_share,
    useful,
    versions,
    write_model,
)
from trainer.parallel import Parallel, distributed
from trainer.planning.flops import GPUS, step_flops

LOOPS = ("packed", "padded", "padded filled")
STEP = ("prepare", "old_logprobs", "gradient", "optimizer")
"""Phases whose seconds are a step's."""
SAME = 1e-5
"""Largest relative error of the two gradients in fp32."""


def product_rate(device: torch.device) -> float:
    """Operations a second of one large fp32 (on a GPU bf16) matrix product: the best of a few."""
    size, kind = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    a, b = (torch.randn(size, size, device=device, dtype=kind) for _ in range(2))
    phases = Phases(device)
    for _ in range(8):
        with phases("product"):
            a @ b
    return 2.0 * size**3 / min(phases.seconds["product"])


def peak_flops(device: torch.device) -> tuple[float, str]:
    """What 100 % is, and what that number is: a data sheet's or this machine's own."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device).lower()
        for kind, gpu in GPUS.items():
            if kind in name:
                return gpu.bf16_flops, f"bf16 peak of {kind}"
    return product_rate(device), "a large matrix product on this machine"


def useful_flops(shape: str, lengths: list[Lengths], *, backward: bool) -> float:
    """Operations of one forward (with its backward) over these groups, nothing computed twice."""
    layout, trained = useful(lengths)
    return step_flops(Qwen3Config(**SHAPES[shape]), layout, trained, backward=backward, recompute=False)


def same_gradient(parallel: Parallel, folder: Path) -> float:
    """Relative error of the packed loop's gradient against the padded one's, tiny shape, fp32."""
    model = write_model("tiny", folder / "tiny", parallel.device, torch.float32)
    groups = make_groups(draw_lengths(3, 4, 256, 0), 256, SHAPES["tiny"]["vocab_size"], 0)
    config = trainer_config(model, 256, 512, 12, 4)
    packed = PackedLoop(config, groups, parallel, torch.float32).gradients()
    return relative_error(packed, PaddedLoop(config, groups, parallel, torch.float32, rows=2).gradients())


class Case:
    """One shape at one context: its model's folder, its groups, and what the loops took."""

    def __init__(self, shape: str, context: int, folder: Path, parallel: Parallel, options: argparse.Namespace) -> None:
        self.shape, self.context, self.parallel = shape, context, parallel
        self.max_tokens = options.max_tokens or context
        self.repeats = options.repeats
        self.lengths = draw_lengths(options.groups, options.group_size, context, options.seed)
        self.groups = make_groups(self.lengths, context, SHAPES[shape]["vocab_size"], options.seed)
        model = write_model(shape, folder / shape, parallel.device)
        self.config = trainer_config(
            model,
            context,
            self.max_tokens,
            options.groups * options.group_size,
            options.group_size,
            activation_checkpointing=options.recompute,
            compile=options.compile,
        )
        self.rows = {"padded": max(1, self.max_tokens // context), "padded filled": None}
        with torch.device("meta"):
            self.parameters = sum(p.numel() for p in _on_meta(shape).parameters())
        self.update = optimizer_fits(self.parameters, parallel.device)
        self.seconds: dict[str, list[dict[str, float]]] = {name: [] for name in options.loops}
        self.peak: dict[str, dict[str, int]] = {}
        self.outcome: dict[str, str] = {}

    def make(self, name: str) -> PackedLoop | PaddedLoop:
        """A loop at its beginning."""
        if name == "packed":
            return PackedLoop(self.config, self.groups, self.parallel, optimizer=self.update)
        rows = self.rows[name]
        return PaddedLoop(self.config, self.groups, self.parallel, rows=rows, optimizer=self.update)

    def round(self, observe: Callable[[PackedLoop | PaddedLoop], None] | None = None) -> None:
        """Each loop once. observe: called with each loop that was measured, after its steps."""
        for name in self.seconds:
            if self.outcome.get(name) == "out of memory":
                continue
            phases = Phases(self.parallel.device)
            loop = self.make(name)
            self.outcome[name] = run_steps(loop, phases, self.repeats)
            if self.outcome[name] == "measured":
                self.seconds[name].append({phase: statistics.median(taken) for phase, taken in phases.seconds.items()})
                if observe is not None:
                    observe(loop)
            if self.parallel.device.type == "cuda":
                self.peak[name] = phases.peak
            elif name not in self.peak:
                self.peak[name] = follow_memory(loop, self.parallel.device)
            del loop
            free(self.parallel.device)

    def result(self, peak: float) -> dict[str, Any]:
        """Everything measured, for the table and the file. peak: operations a second that are 100 %."""
        layout, trained = useful(self.lengths)
        forward, backward = (useful_flops(self.shape, self.lengths, backward=both) for both in (False, True))
        rows = [group.prompt + length for group in self.lengths for length in group.completions]
        loops = {}
        for name, rounds in self.seconds.items():
            found: dict[str, Any] = {"outcome": self.outcome[name]}
            if name != "packed":
                batches = padded_batches(rows, self.max_tokens, self.rows[name])
                found |= {"micro_batches": len(batches), "padding": padded_share(rows, batches)}
            if rounds:
                taken = {phase: statistics.median(one[phase] for one in rounds) for phase in rounds[0]}
                step = statistics.median(_step(one) for one in rounds)
                found |= {
                    "seconds": taken | {"step": step},
                    "tokens_per_s": layout.total / step,
                    "trained_tokens_per_s": trained / step,
                    "mfu_gradient": backward / taken["gradient"] / peak,
                    "mfu_step": (forward + backward) / step / peak,
                }
            found["peak_gib"] = {phase: size / GIB for phase, size in self.peak[name].items()}
            loops[name] = found
        return {
            "shape": self.shape,
            "parameters": self.parameters,
            "context": self.context,
            "max_tokens": self.max_tokens,
            "groups": [[group.prompt, list(group.completions)] for group in self.lengths],
            "tokens": layout.total,
            "trained_tokens": trained,
            "recompute": self.config.activation_checkpointing,
            "compile": self.config.compile,
            "optimizer": self.update,
            "loops": loops,
            "padded_over_packed": dict(self._ratios()),
        }

    def _ratios(self) -> Iterator[tuple[str, dict[str, Any]]]:
        packed = self.seconds.get("packed", [])
        for name, rounds in self.seconds.items():
            if name == "packed" or not packed or not rounds:
                continue
            speed = [_step(theirs) / _step(ours) for theirs, ours in zip(rounds, packed, strict=True)]
            memory = _largest(self.peak[name]) / _largest(self.peak["packed"])
            yield name, {"seconds": statistics.median(speed), "by_round": speed, "peak_memory": memory}


def _step(seconds: dict[str, float]) -> float:
    return sum(seconds.get(phase, 0.0) for phase in STEP)


def _largest(peak: dict[str, int]) -> int:
    """Of the step: the gather's copy is on the host."""
    return max(size for phase, size in peak.items() if phase in STEP)


def _on_meta(shape: str) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    model: torch.nn.Module = AutoModelForCausalLM.from_config(Qwen3Config(**SHAPES[shape]))
    return model


def table(results: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    lines = [
        "| model | context | loop | padding | step s | old / gradient / AdamW / gather s | tokens/s | "
        "trained tokens/s | MFU gradient / step | peak GiB | seconds, memory against packed |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case in results:
        for name, loop in case["loops"].items():
            head = f"| {case['shape']} | {case['context']} | {name} | {100 * loop.get('padding', 0):.0f} % | "
            if "seconds" not in loop:
                lines.append(head + f"{loop['outcome']} | | | | | | |")
                continue
            taken = loop["seconds"]
            phases = " / ".join(
                f"{taken[phase]:.3g}" if phase in taken else "-"
                for phase in ("old_logprobs", "gradient", "optimizer", "gather")
            )
            peak = max(size for phase, size in loop["peak_gib"].items() if phase in STEP)
            mfu = f"{100 * loop['mfu_gradient']:.0f} / {100 * loop['mfu_step']:.0f} %"
            ratio = case["padded_over_packed"].get(name)
            against = f"{ratio['seconds']:.2f} x, {ratio['peak_memory']:.2f} x" if ratio else ""
            lines.append(
                head + f"{taken['step']:.3g} | {phases} | {loop['tokens_per_s']:.0f} | "
                f"{loop['trained_tokens_per_s']:.0f} | {mfu} | {peak:.2f} | {against} |"
            )
    return "\n".join(lines) + "\n"


def activate_flash(parser: argparse.ArgumentParser, kernel: str | None) -> None:
    """Has torch use another flash attention, or ends the program with the reason."""
    if kernel is None:
        return
    try:
        torch.nn.attention.activate_flash_attention_impl(kernel)
    except (ImportError, RuntimeError) as error:
        parser.error(f"--flash {kernel}: {error}: install its package, or leave the option out for torch's own kernel")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Command line. Exits with one message for a shape, a context or a loop that does not exist."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if cuda else "cpu")
    parser.add_argument("--shape", help=f"names with commas: {', '.join(SHAPES)}")
    parser.add_argument("--context", help="longest prompt + completion in tokens, with commas")
    parser.add_argument("--max-tokens", type=int, help="positions of a micro-batch; as many as --context")
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--loops", default=",".join(LOOPS), help="names with commas")
    parser.add_argument("--recompute", choices=["full", "selective", "none"], default="full")
    parser.add_argument("--compile", action="store_true", help="compile the packed loop's blocks")
    parser.add_argument("--flash", choices=["FA3", "FA4"], help="attention kernel that torch activates; its package")
    parser.add_argument("--repeats", type=int, default=1, help="measured steps of a loop in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not cuda:
        parser.error("--device cuda: torch sees no GPU here; give --device cpu")
    on_gpu = options.device == "cuda"
    options.shape = (options.shape or ("Qwen3-0.6B,Qwen3-1.7B,Qwen3-4B" if on_gpu else "small")).split(",")
    options.context = [int(one) for one in (options.context or ("8192,32768,40960" if on_gpu else "2048")).split(",")]
    options.loops = options.loops.split(",")
    for name, wanted, known in (("--shape", options.shape, SHAPES), ("--loops", options.loops, LOOPS)):
        for one in wanted:
            if one not in known:
                parser.error(f"{name} {one}: choose from {', '.join(known)}")
    for context in options.context:
        if context < 64 or (options.max_tokens and options.max_tokens < context):
            parser.error(f"--context {context}: give 64 or more, and --max-tokens of at least as many")
    activate_flash(parser, options.flash)
    if min(options.groups, options.repeats, options.rounds) < 1 or options.group_size < 2:
        parser.error("--groups, --repeats and --rounds: 1 or more; --group-size: 2 or more")
    return options


def main(arguments: list[str]) -> int:
    """Measure, print, write."""
    options = parse(arguments)
    if options.device == "cpu":
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, distributed(600, options.device) as parallel:
        error = same_gradient(parallel, Path(folder))
        print(f"the two gradients differ by {error:.1e} (tiny shape, fp32)", flush=True)
        if not error <= SAME:
            print(f"more than {SAME:.0e}: nothing is timed", file=sys.stderr)
            return 1
        peak, meaning = peak_flops(parallel.device)
        results = []
        for shape in options.shape:
            for context in options.context:
                case = Case(shape, context, Path(folder), parallel, options)
                for number in range(options.rounds):
                    case.round()
                    print(f"{shape}, {context}: round {number + 1} of {options.rounds}", flush=True)
                results.append(case.result(peak))
        found = {
            "machine": machine(parallel.device),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "versions": versions(),
            "seconds_are": "by the clock" if options.device == "cuda" else "processor time of one thread",
            "command": command("benchmarks.trainer", arguments),
            "flash": options.flash or "torch's own",
            "rounds": options.rounds,
            "repeats": options.repeats,
            "gradient_error": error,
            "full_rate_flops": peak,
            "full_rate_is": meaning,
            "cases": results,
        }
    print(table(results), end="")
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
