"""What the multi-rank tests compute, on one rank or on several: `main` is what each rank of a world of two runs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from tests.trainer.conftest import make_groups
from trainer.adapter_config import AdapterConfig
from trainer.checkpoints import Checkpoints
from trainer.config import OptimizerConfig, Recompute
from trainer.model.packing import pack
from trainer.model.policy import Policy
from trainer.moment_formats import Moments
from trainer.optimizer import PolicyOptimizer
from trainer.parallel import Parallel, ParallelError, all_reduce_sums, barrier, broadcast, distributed, together

SHAPES = [(11, [4, 2, 6]), (3, [8, 9]), (6, [1, 5]), (5, [3, 3, 3])]
ONE_GROUP = [(7, [4, 2])]
"""With two ranks, one of them has nothing to do."""

ADAPTER = AdapterConfig(rank=4)

OPTIMIZER = OptimizerConfig(lr=1e-2, weight_decay=0.1, warmup_steps=2)


def accumulate(policy: Policy, parallel: Parallel, shapes: list[tuple[int, list[int]]], max_tokens: int) -> float:
    """Adds the gradient of (1/S) sum_t A_i logp_t^2 over the batch; returns this loss over all ranks."""
    groups = make_groups(shapes)
    advantages = [[1.0 - 0.6 * place for place in range(len(group.rollouts))] for group in groups]
    tokens = sum(len(rollout.completion) for group in groups for rollout in group.rollouts)
    total = 0.0
    for micro in pack(groups, advantages, max_tokens, rank=parallel.rank, world_size=parallel.world_size):
        logprob, _ = policy.logprobs(micro)
        loss = (micro.advantage[micro.sequence] * logprob.square()).sum() / tokens
        (loss * parallel.world_size).backward()
        total += float(loss.detach())
    return float(all_reduce_sums({"loss": total}, parallel)["loss"])


def whole(values: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """Gathers sharded tensors; a collective."""
    found = {}
    for name, value in values.items():
        assert value is not None, name
        found[name] = (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()
    return found


def gradients(
    path: Path,
    parallel: Parallel,
    shapes: list[tuple[int, list[int]]],
    max_tokens: int,
    checkpointing: Recompute = "full",
) -> dict[str, Tensor]:
    """The whole gradient of `accumulate`, and its loss under "loss"."""
    policy = Policy(path, parallel, activation_checkpointing=checkpointing, logprob_chunk=5)
    loss = accumulate(policy, parallel, shapes, max_tokens)
    return {
        **whole({name: weight.grad for name, weight in policy.model.named_parameters()}),
        "loss": torch.tensor(loss),
    }


LEVERS: tuple[tuple[str, Moments], ...] = (("cpu", "fp32"), ("device", "bf16"), ("cpu", "int8"))
"""Where and how AdamW's moments are kept."""


def start(
    path: Path,
    parallel: Parallel,
    adapter: AdapterConfig | None = None,
    lever: tuple[str, Moments] = ("device", "fp32"),
) -> tuple[Policy, PolicyOptimizer]:
    """A fresh policy with its optimizer."""
    policy = Policy(path, parallel, adapter=adapter)
    return policy, PolicyOptimizer(policy, OPTIMIZER.model_copy(update={"state": lever[0], "moments": lever[1]}))


def whole_moments(optimizer: PolicyOptimizer) -> dict[str, Tensor]:
    """Every tensor of the optimizer's state, whole, by its weight's place and its name."""
    states = [optimizer.adamw.state[weight] for weight in optimizer.parameters]
    return whole({f"{place}.{name}": value for place, state in enumerate(states) for name, value in state.items()})


def train(policy: Policy, optimizer: PolicyOptimizer, parallel: Parallel, updates: int) -> list[float]:
    """`updates` steps on batches that differ by the update's number; the loss of each."""
    losses = []
    for _ in range(updates):
        losses.append(accumulate(policy, parallel, SHAPES[optimizer.updates % 3 :], 40))
        optimizer.step()
    return losses


def weights(policy: Policy) -> dict[str, Tensor]:
    """Whole weights on every rank."""
    return whole(dict(policy.model.named_parameters()))


def main(models: Path, folder: Path) -> None:
    """Everything that needs two ranks, once; rank 0 leaves the results in folder/results.pt."""
    results: dict[Any, Any] = {}
    with distributed(deadline_s=120, device="cpu") as parallel:
        for kind in ("llama", "qwen3"):
            for max_tokens in (20, 1000):
                results["gradient", kind, max_tokens] = gradients(models / kind, parallel, SHAPES, max_tokens)
        results["gradient", "one group"] = gradients(models / "llama", parallel, ONE_GROUP, 1000)

        policy, optimizer = start(models / "llama", parallel, ADAPTER)
        train(policy, optimizer, parallel, 3)
        results["adapter"] = policy.adapter_state()

        for lever in LEVERS[1:]:
            policy, optimizer = start(models / "llama", parallel, None, lever)
            train(policy, optimizer, parallel, 2)
            saving = Checkpoints(folder / f"by-two-{lever[1]}", parallel)
            saving.save(policy, optimizer, 2)
            saving.wait()
            saving.close()
            results["moments after two", lever[1]] = whole_moments(optimizer)
            train(policy, optimizer, parallel, 1)
            results["levers after three", lever[1]] = weights(policy)

        ours = {"tokens": 2**60 + parallel.rank, "loss": 0.1 * (parallel.rank + 1)}
        results["sums"] = all_reduce_sums(ours, parallel)
        try:
            all_reduce_sums({f"only on {parallel.rank}": 1}, parallel)
        except ParallelError as error:
            results["sums error"] = str(error)
        results["broadcast"] = broadcast({"groups": [1, 2]} if parallel.is_main else None, parallel)

        policy, optimizer = start(models / "llama", parallel)
        train(policy, optimizer, parallel, 2)
        saved = Checkpoints(folder / "by-two", parallel)
        saved.save(policy, optimizer, 2, {"lease": 5})
        train(policy, optimizer, parallel, 1)  # while the files are being written
        results["after three"] = weights(policy)
        results["full"] = policy.state_dict_full()
        saved.wait()
        results["durable"] = saved.durable

        policy, optimizer = start(models / "llama", parallel)
        Checkpoints(folder / "by-one", parallel).load("latest", policy, optimizer)
        train(policy, optimizer, parallel, 1)
        results["resumed from one"] = weights(policy)
        try:
            saved.load("step-00000009", policy, optimizer)
        except RuntimeError as error:
            results["missing"] = f"{type(error).__name__}: {error}"
        try:
            with together(parallel):
                if parallel.rank == 1:
                    raise ValueError("field = 3: choose 4")
        except ValueError as error:
            results["together"] = str(error)
        torch.save(results, folder / f"results-{parallel.rank}.pt")

        # Last, since a rank that comes too late leaves the group unusable.
        if parallel.rank == 1:
            time.sleep(1.5)
        try:
            barrier(parallel, 0.3, "the test's meeting")
        except ParallelError as error:
            (folder / f"barrier-{parallel.rank}.txt").write_text(str(error))
