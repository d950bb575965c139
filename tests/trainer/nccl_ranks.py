"""What two FSDP ranks do with the `nccl` publisher, a process each: one case of test_nccl_ranks.py."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import torch

from tests.support import gloo_nccl
from tests.support.gloo_nccl import GlooCommunicator
from trainer.model.policy import Policy
from trainer.parallel import distributed
from trainer.weight_sync import nccl as weights_nccl
from trainer.weight_sync.nccl import NcclPublisher
from trainer.weight_sync.vllm_routes import WeightSyncError
from trainer.weight_sync.weight_stream import WeightStream

broadcast = GlooCommunicator.broadcast


def forever(*_: Any, **__: Any) -> None:
    threading.Event().wait()


def breaks_in_the_third_chunk(communicator: Any, tensor: torch.Tensor, src: int, stream: Any = None) -> None:
    """Two chunks have arrived by then."""
    communicator.sent = getattr(communicator, "sent", 0) + 1
    if communicator.sent == 3:
        raise ConnectionError("the link is down")
    broadcast(communicator, tensor, src, stream)


def main(case: str, model: Path, server: str, folder: Path, rank: int, port: int) -> None:
    said = os.open(folder / f"stderr-{rank}.txt", os.O_CREAT | os.O_WRONLY)
    os.dup2(said, 2)
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= place | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    gloo_nccl.install()
    vars(weights_nccl)["check_machine"] = lambda device: None
    torch.set_num_threads(1)
    with distributed(deadline_s=600, device="cpu") as parallel:
        policy = Policy(model, parallel)
        publisher = NcclPublisher([server], parallel, dtype="float32", deadline_s=120.0, buffer_bytes=4096)
        publisher.publish(policy, 1)
        with torch.no_grad():
            for tensor in policy.model.state_dict().values():
                tensor.mul_(1.5)
        if case == "breaks":
            GlooCommunicator.broadcast = breaks_in_the_third_chunk  # type: ignore[method-assign, assignment]
        elif case == "hangs":
            GlooCommunicator.broadcast = forever  # type: ignore[method-assign]
        elif case == "does not come" and parallel.rank == 1:
            WeightStream.__iter__ = forever  # type: ignore[method-assign, assignment]
        if case in ("hangs", "does not come"):
            publisher.deadline_s, weights_nccl.AFTER_DEADLINE_S = 2.0, 2.0
        try:
            publisher.publish(policy, 2)
        except WeightSyncError as error:
            (folder / f"error-{parallel.rank}.txt").write_text(str(error))
            if case == "hangs":
                forever()  # as when leaving the process group waits for a GPU that waits for the transfer
        torch.save(policy.state_dict_full(), folder / f"weights-{parallel.rank}.pt")
