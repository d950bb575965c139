"""What deltas of weights save on real updates: bytes and seconds beside full updates, into a running vLLM on a CPU.

    python -m benchmarks.weight_delta --model models/SmolLM2-135M-Instruct [--updates 6] [--no-server] [--out FILE.json]

For each learning rate a policy takes AdamW updates (the demo's betas, fp32 masters) on real text, sequences alternately
good and bad, of which the first begins with weights spread over bf16's rounding interval as many small updates leave
them. After each one the weights go into the same server twice, as `weights.full_every: 1` and as deltas, in turn, so
that other work on the machine falls on both. CPU seconds, of one thread, are the trainer's for a publication and what
vLLM's worker takes to read it. The first publication, which is whole, is left out of the medians.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.ratio_noise import batch_of, fp32, spread
from benchmarks.workload import command, machine, versions
from environments.launch.processes import Child, free_port
from environments.launch.serve_model import ServeConfig, serve_command
from trainer.model.weight_files import checkpoint_files
from trainer.weight_sync.delta import DeltaPublisher
from trainer.weight_sync.disk import DiskPublisher
from trainer.weight_sync.weight_delta import laid_over, read_deltas

CASES = ((3e-5, ("float32", "bfloat16")), (1e-6, ("bfloat16",)))
"""Learning rates (the demo's, and that of a 14B) and the types that are served."""
PHASES = ("compare", "save", "update", "paused", "total")
CPU = ("publish_cpu", "read_cpu")


def update(model: PreTrainedModel, optimizer: torch.optim.Optimizer, ids: Tensor) -> None:
    """One step on the on-policy gradient, clipped as the trainer does."""
    model.requires_grad_()
    for place, part in enumerate(ids.split(1)):
        advantage = 1.0 if place % 2 == 0 else -1.0
        (-advantage * fp32(model, model, part).mean() / len(ids)).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    model.requires_grad_(False)


def published(publisher: DiskPublisher, weights: dict[str, Tensor], version: int) -> dict[str, Any]:
    """A publication, for the file."""
    begun = time.process_time()
    stats = publisher.publish(weights, version)
    spent = {"publish_cpu": time.process_time() - begun}
    assert stats is not None
    begun = time.process_time()
    [newest] = sorted(publisher.folder.glob("version-*"), key=lambda path: int(path.name.rpartition("-")[2]))[-1:]
    chain, deltas = read_deltas(newest)
    for _, tensor in laid_over(checkpoint_files(chain.base), deltas):
        tensor.clone()
    spent["read_cpu"] = time.process_time() - begun
    seconds = {phase: stats.seconds[phase] for phase in PHASES if phase in stats.seconds} | spent
    return {"bytes": stats.bytes, "changed": stats.changed_share} | {name: round(s, 3) for name, s in seconds.items()}


def measured(
    servers: list[str], folder: Path, model_path: Path, lr: float, dtypes: tuple[str, ...], ids: Tensor, every: int
) -> dict[str, list[dict[str, Any]]]:
    """Publications by type and way, one after each update; the first is of the weights before."""
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).eval().requires_grad_(False)
    spread(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
    ways: dict[str, DiskPublisher] = {}
    for dtype in dtypes:
        ways[f"{dtype}, full"] = DiskPublisher(servers, folder / dtype / "full", dtype=dtype, deadline_s=600.0)
        ways[f"{dtype}, delta"] = DeltaPublisher(
            servers, folder / dtype / "delta", dtype=dtype, deadline_s=600.0, full_every=every + 1
        )
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    weights = dict(model.named_parameters())
    for number, part in enumerate([ids[:0], *ids.split(len(ids) // every)]):
        if len(part):
            update(model, optimizer, part)
        for name, publisher in ways.items():
            found[name].append(published(publisher, weights, number))
            print(f"lr {lr:g}, {name}, update {number}: {found[name][-1]}", flush=True)
    return found


def serve(model: Path, folder: Path, stack: ExitStack) -> str:
    """A vLLM server's address; it ends with the stack."""
    config = ServeConfig(model=model, port=free_port(), enforce_eager=True, kv_cache_gib=1.0)
    words, env = serve_command(config)
    child = Child("vLLM", words, folder / "vllm.log", env)
    stack.callback(child.stop)
    child.wait_ready(f"{config.url}/health", 600.0)
    return config.url


def summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Medians without the first publication."""
    return {
        name: median(one[name] for one in rows[1:]) for name in rows[1] if name in ("bytes", "changed", *PHASES, *CPU)
    }


def main(arguments: list[str]) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--updates", type=int, default=6)
    parser.add_argument("--sequences", type=int, default=4, help="of one update")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--text", type=Path, default=Path("docs/benchmarks.md"))
    parser.add_argument("--no-server", action="store_true", help="measure the trainer's side and the reading alone")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    ids = batch_of(options.model, options.sequences * options.updates, options.tokens, options.text)
    result: dict[str, Any] = {
        "machine": machine(torch.device("cpu")),
        "versions": versions(),
        "command": command("benchmarks.weight_delta", arguments),
        "publications": {},
    }
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        servers = [] if options.no_server else [serve(options.model, Path(folder), stack)]
        for lr, dtypes in CASES:
            found = measured(servers, Path(folder) / f"{lr:g}", options.model, lr, dtypes, ids, options.updates)
            result["publications"] |= {f"{lr:g}, {name}": rows for name, rows in found.items()}
    for name, rows in result["publications"].items():
        one = summary(rows)
        seconds = ", ".join(f"{phase} {one[phase]:.2f} s" for phase in (*PHASES, *CPU) if phase in one)
        print(f"{name}: {one['changed']:.2%} changed, {one['bytes'] / 1e6:.1f} MB, {seconds}")
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
