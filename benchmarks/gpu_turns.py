"""The GPU check's section on one GPU in turns: the state off the device and back, a handle across processes."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import torch

from benchmarks.gpu_harness import Check, Failed
from trainer.device_state import DeviceState
from trainer.weight_sync.ipc_handle import cuda_handle

READER = """
import pickle, sys
from pathlib import Path
from torch.multiprocessing.reductions import rebuild_cuda_tensor
arguments = list(next(iter(pickle.loads(Path(sys.argv[1]).read_bytes()).values())))
arguments[6] = 0  # the receiver's own number of the device, as vLLM's engine sets it
print(int(rebuild_cuda_tensor(*arguments).long().sum()))
"""


def turns(check: Check) -> dict[str, Any]:
    """The same bits after a turn, the memory given back meanwhile, and what another process reads through a handle."""
    shapes = ((65_536, 4096), (16_384, 4096), (4096,)) if check.cuda else ((70, 300), (40, 300), (300,))
    tensors = [check.random(*shape, seed=number) for number, shape in enumerate(shapes)]
    before = [tensor.cpu().clone() for tensor in tensors]
    state = DeviceState(lambda: tensors, check.device)
    state.off()  # pins the host's memory, once
    state.on()
    reserved = torch.cuda.memory_reserved() if check.cuda else 0
    with check.measured() as off:
        state.off()
    size = state.bytes
    given_back = reserved - torch.cuda.memory_reserved() if check.cuda else 0
    if check.cuda and given_back < size:
        raise Failed(f"{given_back} of {size} bytes were given back to the device")
    with check.measured() as on:
        state.on()
    if any(not torch.equal(tensor.cpu(), old) for tensor, old in zip(tensors, before, strict=True)):
        raise Failed("the state is not the same after a turn")
    found = {"bytes": size, "given_back": given_back, "seconds_off": off["seconds"], "seconds_on": on["seconds"]}
    return found | ({"handle": _through_a_handle(check)} if check.cuda else {})


def _through_a_handle(check: Check) -> int:
    """The sum that another process reads from this one's memory."""
    buffer = torch.arange(1 << 20, device=check.device).remainder(251).to(torch.uint8)
    torch.cuda.synchronize(check.device)
    file = check.folder / "handle"
    file.write_bytes(pickle.dumps(cuda_handle(buffer)))
    done = subprocess.run([sys.executable, "-c", READER, str(file)], capture_output=True, text=True, timeout=120)
    expected = int(buffer.long().sum())
    if done.returncode or int(done.stdout.strip() or -1) != expected:
        raise Failed(f"another process read {done.stdout!r}, not {expected}: {done.stderr[-500:]}")
    return expected
