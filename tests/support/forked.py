"""Processes that begin with torch, transformers, the trainer and vLLM's weight engine imported.

One server of forks imports them once for all tests of a worker; a rank then starts in milliseconds where a new
interpreter computes for five seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from environments.launch.processes import free_port

_PRELOAD = [
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen3.modeling_qwen3",
    "tests.support.gloo_nccl",
    "tests.trainer.masked_ranks",
    "tests.trainer.nccl_ranks",
    "tests.trainer.objective_ranks",
    "tests.trainer.two_ranks",
    "trainer.run",
    "vllm.distributed.weight_transfer.nccl_engine",
    "vllm.model_executor.model_loader.mtp_validation",  # which the engine imports as it receives
]


def forked(target: Callable[..., None], *arguments: Any) -> BaseProcess:
    """A started process; its arguments and `target` are pickled."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    process = context.Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


def completed(
    folder: Path, target: Callable[..., int | None], *arguments: Any, **variables: str
) -> subprocess.CompletedProcess[str]:
    """What `subprocess.run` gives of a command line whose function is `target`; `variables` are set for it.

    Args:
        folder: takes what is printed.
    """
    paths = [folder / "stdout.txt", folder / "stderr.txt"]
    process = forked(_command, paths, variables, target, arguments)
    process.join(280.0)
    process.kill()
    process.join()
    assert process.exitcode is not None
    return subprocess.CompletedProcess([], process.exitcode, *(path.read_text() for path in paths))


class Ranks:
    """A started world of gloo ranks on CPUs, each running `target(*arguments)` with torchrun's variables.

    Args:
        folder: takes what each rank prints.
        target: its result, None or a number, is the rank's exit code.
    """

    def __init__(self, world: int, folder: Path, target: Callable[..., int | None], *arguments: Any) -> None:
        port = free_port()
        folder.mkdir(parents=True, exist_ok=True)
        self._printed = [folder / f"world-{world}-rank-{rank}.txt" for rank in range(world)]
        self._ranks = [
            forked(_rank, rank, world, port, self._printed[rank], target, arguments) for rank in range(world)
        ]

    def wait(self, deadline_s: float = 280.0) -> list[str]:
        """What each rank printed; AssertionError with it where one fails or the deadline passes."""
        try:
            for rank in self._ranks:
                rank.join(deadline_s)
            codes = [rank.exitcode for rank in self._ranks]
        finally:
            self.kill()
        printed = [path.read_text() for path in self._printed]
        assert set(codes) == {0}, "\n".join([f"exit codes {codes}", *printed])
        return printed

    def kill(self) -> None:
        """Ends what still runs."""
        for rank in self._ranks:
            rank.kill()
            rank.join()


def _command(
    paths: list[Path], variables: dict[str, str], target: Callable[..., int | None], arguments: tuple[Any, ...]
) -> None:
    for number, path in enumerate(paths, 1):
        os.dup2(os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_APPEND), number)
    os.environ |= variables
    sys.exit(target(*arguments))


def _rank(
    rank: int,
    world: int,
    port: int,
    printed: Path,
    target: Callable[..., int | None],
    arguments: tuple[Any, ...],
) -> None:
    output = os.open(printed, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()}
    torch.set_num_threads(1)
    sys.exit(target(*arguments))
