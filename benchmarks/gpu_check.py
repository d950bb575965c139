"""Every path of the trainer that needs a GPU, checked on one, without a network and in a few minutes.

    python -m benchmarks.gpu_check [--flash FA3] [--out benchmarks/results/gpu_check.json]
    python -m benchmarks.gpu_check --device cpu      # the same code without CUDA: no GPU path counts as checked

Needs an NVIDIA GPU of compute capability 8.0 or newer, 20 GB of disk in the temporary folder for random weights, and
torch, transformers and what `trainer` imports; neither vllm nor atroposlib. A section that fails is reported and the
others continue; the exit code is 1 if one failed. The most important sections come first, --out is written after each,
and what does not fit into --minutes is named. Limits and their reasons: benchmarks/gpu_harness.py.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if not __package__:
    # Run by path, this folder would come first: its trainer.py would be taken for the package `trainer`.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

if TYPE_CHECKING:
    from benchmarks.gpu_harness import Check

PACKAGES = {
    "torch": "torch",
    "transformers": "transformers",
    "safetensors": "safetensors",
    "numpy": "numpy",
    "pydantic": "pydantic",
    "pydantic_settings": "pydantic-settings",
    "yaml": "pyyaml",
}
"""Module and package that has to be installed."""


class Section(NamedTuple):
    """One check."""

    name: str
    function: Callable[[Check], dict[str, Any]]
    gpu_path: str
    """What is checked by it on a GPU only."""
    least_s: float = 5.0
    """Seconds that it needs at least: with fewer left it is not begun. An estimate."""


def sections() -> list[Section]:
    """All of them, the most important first: the time may end before the list does."""
    from benchmarks import gpu_sections as s
    from benchmarks import gpu_speed as whole
    from benchmarks.gpu_moments import moments
    from benchmarks.gpu_turns import turns

    return [
        Section("calls", s.calls, "names, arguments, devices and shapes of GPU calls, on fake tensors"),
        Section("attention", s.attention_values, "varlen attention, forward and backward"),
        Section("leak", s.leak, "documents of a pack under varlen attention"),
        Section("documents", s.documents, "bf16 gradients of a pack against each rollout alone"),
        Section("one_rank", s.one_rank, "nccl with one rank: FSDP2, checkpoint, whole weights"),
        Section("moments", moments, "AdamW's moments in pinned CPU memory, in bf16 and in 8 bits", 20),
        Section("turns", turns, "the trainer's state off the device and back, a CUDA IPC handle across processes", 20),
        Section("memory", whole.memory, "peak memory against the budget at 32k and 40k", 60),
        Section("speed", whole.speed, "tokens/s and causal MFU, kernel time by class", 60),
        Section("padded", whole.packed_against_padded, "packed against padded", 30),
        Section("recomputation", s.recomputation, "full and selective recomputation around varlen attention", 15),
        Section("compile", s.compiled, "compiled blocks on CUDA", 30),
        Section("variants", whole.recomputation_speed, "seconds of full, selective, compiled", 40),
        Section("transformers", s.against_transformers, "bf16 log-probabilities against transformers' sdpa", 10),
        Section("chunked", s.chunked, "log-probabilities by chunks at 151,936 entries"),
        Section("kernels", whole.attention_kernels, "torch's own flash attention and FA3", 10),
    ]


def run(
    check: Check,
    chosen: Sequence[Section],
    skipped: Sequence[str],
    keep: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Each section's status (passed, failed, not run), seconds and numbers; an error ends only its own section.

    keep: called with all rows so far after each section, so that a machine that goes away takes one section along.
    """
    from benchmarks.gpu_harness import Failed
    from benchmarks.loops import free

    found: dict[str, dict[str, Any]] = {}
    for section in chosen:
        row: dict[str, Any] = {"gpu_path": section.gpu_path}
        began = time.perf_counter()
        if section.name in skipped:
            row |= {"status": "not run", "why": "left out by --skip"}
        elif check.left() < section.least_s:
            row |= {"status": "not run", "why": "left out for time: --minutes"}
        else:
            print(f"{section.name} ...", flush=True)
            try:
                row |= {"status": "passed", "measured": section.function(check)}
            except Failed as error:
                row |= {"status": "failed", "why": str(error)}
            except Exception as error:  # whatever a kernel or driver raises, the next section is worth running
                row |= {"status": "failed", "why": f"{type(error).__name__}: {error}"[:2000]}
                traceback.print_exc()
            row["seconds"] = round(time.perf_counter() - began, 1)
            free(check.device)
        # Only what ran on a GPU says anything about a GPU.
        row["on_gpu"] = row["status"] if check.cuda else "not run"
        found[section.name] = row
        if keep is not None:
            keep(found)
    return found


def _shown(numbers: dict[str, Any]) -> Iterator[str]:
    for name, value in numbers.items():
        if isinstance(value, dict):
            yield f"{name} ({', '.join(_shown(value))})"
        else:
            yield f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"


def table(found: dict[str, dict[str, Any]]) -> str:
    """The outcome as Markdown."""
    lines = ["| section | here | GPU path | on a GPU | seconds |", "|---|---|---|---|---|"]
    for name, row in found.items():
        why = f": {row['why'][:160]}" if "why" in row else ""
        seconds = row.get("seconds", "")
        lines.append(f"| {name} | {row['status']}{why} | {row['gpu_path']} | {row['on_gpu']} | {seconds} |")
    for name in ("memory", "speed", "padded", "variants", "kernels"):
        for case, numbers in found.get(name, {}).get("measured", {}).items():
            if isinstance(numbers, dict):
                lines.append(f"| {name}: {case} | {', '.join(_shown(numbers))} | | | |")
    return "\n".join(lines) + "\n"


def parsed(arguments: list[str]) -> argparse.Namespace:
    """The command line's options, checked; `only`, `skip`, `shape` and `context` are lists."""
    import torch

    from benchmarks.trainer import activate_flash
    from benchmarks.workload import SHAPES

    names = [section.name for section in sections()]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--shape", help="models with commas, the smallest first")
    parser.add_argument("--context", help="contexts of the speed section with commas, ascending")
    parser.add_argument("--only", default=",".join(names), help="sections with commas")
    parser.add_argument("--skip", default="", help="sections with commas")
    parser.add_argument("--minutes", type=float, default=8.0, help="what would take longer is left out and reported")
    parser.add_argument("--flash", choices=["FA3", "FA4"], help="attention kernel that torch activates; its package")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    on_gpu = options.device == "cuda"
    options.only, options.skip = ([name for name in text.split(",") if name] for text in (options.only, options.skip))
    for name in (*options.only, *options.skip):
        if name not in names:
            parser.error(f"section {name}: choose from {', '.join(names)}")
    if on_gpu and not torch.cuda.is_available():
        parser.error("torch sees no GPU here: run this on a machine with one, or give --device cpu")
    if on_gpu and torch.cuda.get_device_capability() < (8, 0):
        parser.error(f"{torch.cuda.get_device_name()}: flash attention needs compute capability 8.0 or newer")
    activate_flash(parser, options.flash)
    options.shape = (options.shape or ("Qwen3-0.6B,Qwen3-1.7B,Qwen3-4B" if on_gpu else "tiny")).split(",")
    for shape in options.shape:
        if shape not in SHAPES:
            parser.error(f"--shape {shape}: choose from {', '.join(SHAPES)}")
    options.context = [int(one) for one in (options.context or ("8192,32768" if on_gpu else "1024")).split(",")]
    return options


def main(arguments: list[str]) -> int:
    """Command line; the exit code is 1 if a section failed."""
    missing = [package for module, package in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        print(f"gpu_check needs {', '.join(missing)}: pip install {' '.join(missing)}", file=sys.stderr)
        return 2
    import torch

    from benchmarks.gpu_harness import Check
    from benchmarks.workload import command, machine, versions

    options = parsed(arguments)
    device = torch.device("cuda", 0) if options.device == "cuda" else torch.device("cpu")
    began = time.perf_counter()
    described = {
        "machine": machine(device),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": versions(),
        "flash": options.flash or "torch's own",
        "command": command("benchmarks.gpu_check", arguments),
    }

    def keep(rows: dict[str, Any]) -> None:
        if options.out:
            result = described | {"seconds": round(time.perf_counter() - began, 1), "sections": rows}
            options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

    with tempfile.TemporaryDirectory() as folder:
        check = Check(device, Path(folder), options.shape, options.context, max(options.context) * 5 // 4)
        check.deadline = time.monotonic() + 60 * options.minutes
        with check.opened:
            found = run(check, [section for section in sections() if section.name in options.only], options.skip, keep)
    print(table(found), end="")
    return int(any(row["status"] == "failed" for row in found.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
