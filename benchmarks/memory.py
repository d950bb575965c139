"""How much memory a training step takes: predicted against measured, and log-probabilities by chunks against at once.

    python -m benchmarks.memory [--out FILE.json]

Steps: small random models, the trainer's own policy, packing, objective and optimizer, on one CPU process or two over
gloo. Measured is the second step (AdamW's moments exist), of two ranks the least of five, and what
`trainer.planning.live_bytes` saw of its tensors at the most; predicted is `trainer.planning.timeline.plan` for
the same pack. Speed: the share of a large product's speed that the first run reaches gives the tokens/s predicted for
the others, per CPU second of one thread, so that other processes do not count. Log-probabilities: K tokens over V
entries, forward and backward, by chunks as the trainer does and by whole logits; what would not fit here runs on shapes
alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from benchmarks.memory_logprobs import logprobs
from trainer.config import TrainerConfig
from trainer.data.scored_groups import Rollout, ScoredGroup
from trainer.metrics import Metrics
from trainer.model.policy import Policy
from trainer.model.reference import Reference
from trainer.optimizer import PolicyOptimizer
from trainer.parallel import Parallel, distributed
from trainer.planning.fit import setup
from trainer.planning.flops import step_flops
from trainer.planning.live_bytes import LiveBytes
from trainer.planning.timeline import plan
from trainer.step import OptimizerBatch, accumulate_gradient, prepare, set_old_logprobs, set_reference_logprobs

MIB = 2**20
ROOT = Path(__file__).resolve().parents[1]
SIZES = {
    "vocab_size": 8192,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "max_position_embeddings": 8192,
}


@dataclass(frozen=True)
class Case:
    """One small run: model, options, lengths, ranks."""

    kind: str
    tied: bool
    layers: int
    checkpointing: str
    chunk: int
    prompt: int
    completion: int
    rollouts: int = 2
    """Of a group; a micro-batch holds one group."""
    groups: int = 2
    """For each rank: its micro-batches."""
    ranks: int = 1
    adapter: int = 0
    """Rank of an adapter that alone trains."""
    reference: str = "none"
    """As objective.reference."""
    moments: str = "fp32"
    """As optimizer.moments."""
    state: str = "device"
    """As optimizer.state."""

    @property
    def tokens(self) -> int:
        """Packed positions of a micro-batch."""
        return self.prompt + self.rollouts * (self.completion - 1)


CASES = {
    "full, tied": Case("llama", True, 4, "full", 64, 128, 256),
    "full, untied": Case("qwen3", False, 4, "full", 64, 128, 256),
    "full, small chunks, longer": Case("llama", True, 3, "full", 32, 128, 640),
    "full, one large chunk": Case("qwen3", False, 2, "full", 512, 128, 128),
    "selective, tied": Case("llama", True, 4, "selective", 64, 128, 256),
    "none, untied": Case("qwen3", False, 4, "none", 64, 128, 256),
    "none, many short completions": Case("llama", True, 4, "none", 64, 200, 20, rollouts=16),
    "one micro-batch": Case("qwen3", False, 4, "full", 64, 128, 256, groups=1),
    "two ranks, full, untied": Case("qwen3", False, 4, "full", 64, 128, 256, ranks=2),
    "adapter, full, untied": Case("qwen3", False, 4, "full", 64, 128, 256, adapter=16),
    "adapter, none, tied": Case("llama", True, 4, "none", 64, 128, 256, adapter=64),
    "frozen reference, full, untied": Case("qwen3", False, 4, "full", 64, 128, 256, reference="frozen"),
    "running mean, full, tied": Case("llama", True, 4, "full", 64, 128, 256, reference="ema"),
    "two ranks, frozen reference": Case("llama", True, 4, "none", 64, 128, 256, ranks=2, reference="frozen"),
    "moments in 8 bits": Case("qwen3", False, 4, "full", 64, 128, 256, moments="int8"),
    "moments in bf16, brought in parts": Case("llama", True, 4, "full", 64, 128, 256, moments="bf16", state="cpu"),
    "two ranks, none, tied": Case("llama", True, 4, "none", 64, 128, 256, ranks=2),
}


def write_model(folder: Path, case: Case) -> None:
    """A random model of the case's kind."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {**SIZES, "num_hidden_layers": case.layers, "tie_word_embeddings": case.tied}
    model = LlamaForCausalLM(LlamaConfig(**sizes)) if case.kind == "llama" else Qwen3ForCausalLM(Qwen3Config(**sizes))
    model.save_pretrained(folder)


def options(folder: Path, case: Case) -> TrainerConfig:
    """The trainer's options for a case."""
    return TrainerConfig.model_validate(
        {
            "model": folder,
            "run_dir": folder / "run",
            "activation_checkpointing": case.checkpointing,
            "logprob_chunk": case.chunk,
            "adapter": {"rank": case.adapter},
            "objective": {"reference": case.reference},
            "optimizer": {"moments": case.moments, "state": case.state},
            "batch": {
                "rollouts": case.rollouts * case.groups * case.ranks,
                "group_size": case.rollouts,
                "context": case.prompt + case.completion,
                "max_tokens": max(case.tokens, case.prompt + case.completion),
            },
        }
    )


def groups(case: Case) -> list[ScoredGroup]:
    """Random tokens; half of each group's rollouts are right."""
    draw = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [draw.randrange(SIZES["vocab_size"]) for _ in range(count)]

    return [
        ScoredGroup(
            f"g{number}",
            f"p{number}",
            1.0,
            case.prompt + case.completion,
            tokens(case.prompt),
            [
                Rollout(
                    tokens(case.completion),
                    [-9.7] * case.completion,
                    1.0 if place % 2 else -1.0,
                    False,
                    "stop",
                    [(0, 0, case.completion)],
                )
                for place in range(case.rollouts)
            ],
        )
        for number in range(case.groups * case.ranks)
    ]


def peaks_of_step(
    live: LiveBytes,
    sent: list[ScoredGroup],
    config: TrainerConfig,
    parallel: Parallel,
    policy: Policy,
    optimizer: PolicyOptimizer,
    reference: Reference | None,
) -> tuple[OptimizerBatch, dict[str, float]]:
    """One step: its only part, and the peak of each phase in bytes."""
    peaks: dict[str, float] = {}
    with live:
        batch = prepare(sent, config, parallel)
        [part] = batch.parts
        live.reset_peak()
        if reference is not None:
            set_reference_logprobs(batch, reference)
        peaks["reference"] = live.peak
        live.reset_peak()
        set_old_logprobs(batch, policy, config, parallel)
        peaks["old"] = live.peak
        live.reset_peak()
        accumulate_gradient(part, policy, config, parallel, Metrics())
        peaks["train"] = live.peak
        live.reset_peak()
        optimizer.step()
        if reference is not None:
            reference.follow()
        peaks["update"] = live.peak
    return part, peaks


def predicted(
    case: Case, model: PretrainedConfig, config: TrainerConfig, parallel: Parallel, part: OptimizerBatch
) -> dict[str, float]:
    """The plan's peaks of the same phases in bytes, and the step's operations."""
    [layout, *_] = (micro.layout for micro in part.micro_batches)
    assert len(part.micro_batches) == case.groups
    chosen = replace(setup(config, parallel.world_size, cuda=False), micro_batches=case.groups)
    budget = plan(model, chosen, layout, len(part.micro_batches[0].target))
    phases = {moment.phase: moment.total for moment in budget.phases}
    return {
        "predicted reference": phases.get("reference's log-probabilities", 0.0),
        "predicted old": phases["old log-probabilities"],
        "predicted train": max(size for name, size in phases.items() if "ward" in name),
        "predicted update": phases["update"],
        "flops": sum(
            step_flops(model, micro.layout, len(micro.target), backward=True, recompute=False)
            for micro in part.micro_batches
        ),
    }


def step(case: Case, folder: Path, parallel: Parallel) -> dict[str, float]:
    """Peaks of a step's phases in bytes, predicted and measured, and a further one's CPU seconds.

    The step is one after the first. Gloo's thread lets go of a collective's tensors when it is scheduled, which adds to
    a peak and never takes from it: over several ranks the least of five steps is what a step takes.
    """
    config, sent = options(folder, case), groups(case)
    policy = Policy(
        folder,
        parallel,
        activation_checkpointing=config.activation_checkpointing,
        logprob_chunk=config.logprob_chunk,
        adapter=config.adapter,
    )
    optimizer = PolicyOptimizer(policy, config.optimizer)
    reference = Reference(config, policy) if case.reference != "none" else None
    live = LiveBytes()
    live.count([*policy.parameters(), *policy.buffers()])
    if reference is not None and reference.own is not None:
        live.count([*reference.own.parameters(), *reference.own.buffers()])
    steps: list[dict[str, float]] = []
    for _ in range(2 if case.ranks == 1 else 6):
        part, peaks = peaks_of_step(live, sent, config, parallel, policy, optimizer, reference)
        steps.append(peaks)
    found: dict[str, float] = {phase: min(peaks[phase] for peaks in steps[1:]) for phase in steps[0]}
    started = time.process_time()
    accumulate_gradient(part, policy, config, parallel, Metrics())
    found["seconds"] = time.process_time() - started
    return found | predicted(case, AutoConfig.from_pretrained(folder), config, parallel, part)


def run(name: str, folder: Path) -> dict[str, float]:
    """A case's `step`, by as many processes as it says."""
    case = CASES[name]
    write_model(folder, case)
    if case.ranks == 1:
        with distributed(deadline_s=120, device="cpu") as parallel:
            return step(case, folder, parallel)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": str(case.ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.memory", "--rank-of", name, "--folder", str(folder)],
            cwd=ROOT,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(case.ranks)
    ]
    try:
        printed = [rank.communicate(timeout=280)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    if any(rank.returncode for rank in ranks):
        raise RuntimeError(f"{name}: a rank failed")
    return dict(json.loads(printed[0].splitlines()[-1]))


def product_peak() -> float:
    """Operations per CPU second of a large fp32 matrix product on one thread of this machine."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    a @ b
    started = time.process_time()
    for _ in range(5):
        a @ b
    return 5 * 2 * 1024**3 / (time.process_time() - started)


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rank-of", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.rank_of:
        torch.set_num_threads(1)
        with distributed(deadline_s=240, device="cpu") as parallel:
            print(json.dumps(step(CASES[chosen.rank_of], chosen.folder, parallel)))
        return
    torch.set_num_threads(1)
    rows = []
    peak = product_peak()
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            found = run(name, Path(folder))
        row: dict[str, Any] = {"case": name, **asdict(case), "tokens": case.tokens}
        for phase in ("old", "train", "update", *(["reference"] if case.reference != "none" else [])):
            row[f"{phase}_mib"] = round(found[phase] / MIB, 1)
            row[f"{phase}_predicted_mib"] = round(found[f"predicted {phase}"] / MIB, 1)
        row["tokens_per_cpu_s"] = round(case.tokens * case.groups / found["seconds"], 1)
        row["mfu"] = found["flops"] / found["seconds"] / peak
        print(json.dumps(row), file=sys.stderr)
        rows.append(row)
    for row in rows:
        if row["ranks"] == 1:
            row["tokens_per_cpu_s_predicted"] = round(row["tokens_per_cpu_s"] * rows[0]["mfu"] / row["mfu"], 1)
        row["mfu"] = round(row["mfu"], 3)
    result = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "torch": torch.__version__,
        "product_gflops": round(peak / 1e9, 1),
        "steps": rows,
        "logprobs": [
            logprobs(4096, 32_768, 64, 512, real=True),
            logprobs(8192, 16_384, 64, 512, real=True),
            logprobs(32_768, 151_936, 5120, 1024, real=False),
        ],
    }
    print(json.dumps(result, indent=1))
    if chosen.out:
        chosen.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
