"""What this machine has: cores, free memory, GPUs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    """Cores, GiB of memory that can be had, GPUs and the GiB of one."""

    cores: int
    free_gib: float
    gpus: int = 0
    gpu_gib: float = 0.0

    @property
    def ranks(self) -> int:
        """Processes that train: one for each GPU but the one that samples."""
        return max(1, self.gpus - 1)


def machine() -> Machine:
    """The one we run on. CUDA is asked only where the driver is there."""
    cores = len(os.sched_getaffinity(0))
    if not Path("/proc/driver/nvidia/version").exists():
        return Machine(cores, free_memory_gib())
    import torch

    count = torch.cuda.device_count()
    least = min((torch.cuda.get_device_properties(n).total_memory for n in range(count)), default=0)
    return Machine(cores, free_memory_gib(), count, least / 2**30)


def free_memory_gib(root: Path = Path("/")) -> float:
    """Memory that the kernel says is available, or what the container's limit leaves where that is less."""
    available = _kilobytes(root / "proc/meminfo", "MemAvailable") * 1024
    limit, used = root / "sys/fs/cgroup/memory.max", root / "sys/fs/cgroup/memory.current"
    if limit.is_file() and used.is_file() and (most := limit.read_text().strip()) != "max":
        available = min(available, int(most) - int(used.read_text()))
    return available / 2**30


def _kilobytes(path: Path, name: str) -> int:
    for line in path.read_text(encoding="ascii").splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0])
    raise OSError(f"{path}: no {name}")
