"""Where a training step spends its time on a device: kernel time by class, and the gaps in which nothing ran."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

CLASSES = (
    ("attention", r"flash|fmha|attention|sdpa|varlen"),
    ("matmul", r"gemm|cutlass|nvjet|cublas|xmma|wgmma|\b(aten::)?(mm|addmm|bmm|matmul|linear)\b"),
    ("optimizer", r"multi_tensor|adam|_foreach|fused_adam"),
    ("collectives", r"nccl|gloo|all_gather|reduce_scatter"),
    ("memory", r"memcpy|memset|copy|\bcat\b|gather|scatter|index"),
    ("elementwise", r"elementwise|vectorized|reduce|softmax|norm|triton|pointwise|silu|mul|add|exp|sum|pow|to\b"),
)
"""Kernel classes by what their names hold; the first that matches counts, the rest is `other`."""


def kernel_class(name: str) -> str:
    """The class of a kernel, or of an operator on a CPU."""
    lower = name.lower()
    return next((kind for kind, words in CLASSES if re.search(words, lower)), "other")


def kernel_seconds(work: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Seconds of kernels by class, of the work as a whole (`wall`), and without any kernel (`gaps`).

    On a CPU operators' own time replaces that of kernels. The profiler slows the host down, so gaps are an upper bound.
    """
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    if cuda:
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    with profile(activities=activities) as taken:
        work()
        if cuda:
            torch.cuda.synchronize(device)
        wall = time.perf_counter() - began
    found: dict[str, float] = {}
    for row in taken.key_averages():
        if cuda and row.device_type != torch.autograd.DeviceType.CUDA:
            continue  # an operator's row repeats the time of the kernels that it started
        micros = row.self_device_time_total if cuda else row.self_cpu_time_total
        if micros:
            kind = kernel_class(row.key)
            found[kind] = found.get(kind, 0.0) + micros / 1e6
    return found | {"wall": wall, "gaps": max(0.0, wall - sum(found.values()))}
