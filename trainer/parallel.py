"""Processes and shards: one path from a single CPU process (gloo) to many nodes (nccl).

FSDP2 (`fully_shard`) holds the weights, also with one process. It averages gradients over the ranks, and
`set_gradient_divide_factor` does not reach nested modules, so the loss is multiplied by `world_size` instead.
Numbers and Python objects travel over a gloo group of their own, so a control message never waits on a GPU.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from environments.common.errors import LivecodeError

T = TypeVar("T")

ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets. None of them: one process alone."""


class ParallelError(LivecodeError, RuntimeError):
    """The processes cannot work together: a broken environment, or a rank that did not arrive."""


@dataclass(frozen=True)
class Parallel:
    """This process among the others."""

    rank: int
    world_size: int
    device: torch.device
    mesh: DeviceMesh
    """One dimension over all ranks, on the device's type."""
    control: dist.ProcessGroup
    """gloo over all ranks, for numbers and objects on the CPU."""

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which talks to the outside and writes files."""
        return self.rank == 0


@contextmanager
def distributed(deadline_s: float = 600.0, device: str | None = None) -> Iterator[Parallel]:
    """Joins the processes that torchrun started, or makes a world of one; leaves them at the end.

    deadline_s: longest wait for the other ranks in any collective. device: "cpu" or "cuda"; None: cuda where there
    is one. Raises ParallelError for an environment that torchrun would not have set.
    """
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    wait = timedelta(seconds=deadline_s)
    found = [name for name in ENVIRONMENT if name in os.environ]
    if found and len(found) < len(ENVIRONMENT):
        missing = ", ".join(name for name in ENVIRONMENT if name not in os.environ)
        raise ParallelError(f"{', '.join(found)} set but not {missing}: start with torchrun, or unset all of them")
    local = torch.device(kind, int(os.environ["LOCAL_RANK"]) if found else 0) if kind == "cuda" else torch.device(kind)
    if local.type == "cuda":
        if (local.index or 0) >= torch.cuda.device_count():
            raise ParallelError(
                f"LOCAL_RANK {local.index} with {torch.cuda.device_count()} GPUs: lower torchrun --nproc-per-node"
            )
        torch.cuda.set_device(local)
    backend = "nccl" if local.type == "cuda" else "gloo"
    if found:
        dist.init_process_group(backend, timeout=wait)
    else:
        dist.init_process_group(backend, timeout=wait, rank=0, world_size=1, store=dist.HashStore())
    try:
        world_size = dist.get_world_size()
        control = dist.new_group(backend="gloo", timeout=wait)
        yield Parallel(dist.get_rank(), world_size, local, init_device_mesh(local.type, (world_size,)), control)
    finally:
        dist.destroy_process_group()


def shard(
    root: nn.Module,
    blocks: Iterable[nn.Module],
    parallel: Parallel,
    dtype: torch.dtype | None = None,
    *,
    frozen: bool = False,
    offload: bool = False,
) -> None:
    """Shards each block and then what is left of `root` over all ranks, in place.

    dtype: the computation's type; the masters stay as they are and gradients are reduced in fp32. None: as stored.
    A block is whole only while it computes, also with one rank: a copy in the computation's type beside the masters
    is made again for the backward, which costs one more pass over the weights and saves all other blocks' copies.
    The root stays whole between forward and backward: its head is used again when log-probabilities are recomputed.
    frozen: there is no backward, so nothing stays whole. offload: shards are kept in the host's memory, pinned for a
    GPU.
    """
    # Inputs stay as they are: a batch's temperatures are fp32, and 0.7 in bf16 would be 0.6992.
    precision = MixedPrecisionPolicy(
        param_dtype=dtype, reduce_dtype=torch.float32 if dtype else None, cast_forward_inputs=False
    )
    options: dict[str, Any] = {"mesh": parallel.mesh, "mp_policy": precision}
    if offload:
        options["offload_policy"] = CPUOffloadPolicy(pin_memory=parallel.device.type == "cuda")
    sharded = [fully_shard(block, reshard_after_forward=True, **options) for block in blocks]
    for block, following in pairwise(sharded):
        # Asked for before the block computes, so that a slow host does not let the GPU wait for the next weights.
        block.set_modules_to_forward_prefetch([following])
    fully_shard(root, reshard_after_forward=frozen, **options)


def all_reduce_sums(values: Mapping[str, float | int], parallel: Parallel) -> dict[str, float | int]:
    """Sum of every entry over the ranks; ints stay exact ints (int64), floats are added in float64.

    Every rank passes the same keys with the same types. Raises ParallelError when they differ.
    """
    names = sorted(values)
    kinds = [(name, isinstance(values[name], int)) for name in names]
    if parallel.world_size > 1:
        every: list[Any] = [None] * parallel.world_size
        dist.all_gather_object(every, kinds, group=parallel.control)
        for rank, other in enumerate(every):
            if other != kinds:
                differing = sorted({name for name, _ in set(other) ^ set(kinds)})
                raise ParallelError(
                    f"sums of rank {rank} differ from rank {parallel.rank} in {differing}: give the same keys and types"
                )
    whole = torch.tensor([int(values[name]) for name, exact in kinds if exact], dtype=torch.int64)
    real = torch.tensor([float(values[name]) for name, exact in kinds if not exact], dtype=torch.float64)
    for part in (whole, real):
        if part.numel():
            dist.all_reduce(part, group=parallel.control)
    totals: dict[str, float | int] = dict(zip((name for name, exact in kinds if exact), whole.tolist(), strict=True))
    totals.update(zip((name for name, exact in kinds if not exact), real.tolist(), strict=True))
    return {name: totals[name] for name in values}


def broadcast(value: T | None, parallel: Parallel) -> T:
    """Rank 0's picklable object on every rank; what the others pass is ignored."""
    box = [value if parallel.is_main else None]
    dist.broadcast_object_list(box, src=0, group=parallel.control)
    return box[0]  # type: ignore[return-value]


@contextmanager
def together(parallel: Parallel) -> Iterator[None]:
    """An error that one rank raises in the block is raised on every rank, the lowest rank's first; a collective.

    For work outside of collectives: the other ranks would wait for one that has already left. An error that does not
    pickle reaches the others as a ParallelError with its text.
    """
    own: Exception | None = None
    try:
        yield
    except Exception as error:
        own = error
    if parallel.world_size > 1:
        every: list[Any] = [None] * parallel.world_size
        dist.all_gather_object(every, None if own is None else _portable(own), group=parallel.control)
        first = next((rank for rank, error in enumerate(every) if error is not None), None)
        if first is not None:
            raise (own if first == parallel.rank and own is not None else every[first])
    elif own is not None:
        raise own


def _portable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301  (our own bytes)
    except Exception:  # whatever a foreign class does in there
        return ParallelError(f"{type(error).__name__}: {error}")
    return error


def barrier(parallel: Parallel, deadline_s: float, what: str) -> None:
    """Waits for all ranks. Raises ParallelError after deadline_s, naming `what` was waited for."""
    try:
        dist.monitored_barrier(parallel.control, timeout=timedelta(seconds=deadline_s), wait_all_ranks=True)
    except RuntimeError as error:
        raise ParallelError(f"{what}: not all ranks arrived within {deadline_s:g} s: {error}") from error


def clip_grad_norm(parameters: Iterable[nn.Parameter], max_norm: float) -> float:
    """Scales the gradients to at most max_norm; returns their L2 norm over all parameters and ranks before that."""
    weights = [weight for weight in parameters if weight.grad is not None]
    norm = torch.nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])
    total: Tensor = norm.full_tensor() if isinstance(norm, DTensor) else norm
    torch.nn.utils.clip_grads_with_norm_(weights, max_norm, total)
    return float(total)
