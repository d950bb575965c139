"""Rank 0's end of a transfer over NCCL: the group with all workers of all servers, and the thread that sends.

Packing and broadcasting are vLLM's own code, so that both sides cut the stream of tensors in the same places.
"""

from __future__ import annotations

import logging
import queue
import socket
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor

from environments.common.errors import ConfigError
from trainer.weight_sync.route_call import RouteCall
from trainer.weight_sync.update_phases import ServerUpdate, each
from trainer.weight_sync.vllm_routes import WeightSyncError

logger = logging.getLogger(__name__)

BUFFERS = 2
"""Packed chunks that are on their way at a time, on both sides."""
POLL_S = 0.1
_GRACE_S = 1.0
LONGER_S = 5.0
"""A server's call in a collective outlives the collective's deadline: who waits for whom is known there only."""


class NcclUnavailable(ConfigError, RuntimeError):
    """weights.backend nccl cannot work on this machine; the message says what is missing."""


def open_group(
    listener: socket.socket,
    address: str,
    world_size: int,
    device: torch.device,
    deadline_s: float,
    met: threading.Event,
) -> Any:
    """Rank 0's end of the group: waits for every worker, then for NCCL's own rendezvous.

    listener: a listening socket that is taken over. met: set when every worker is there; until then this ends by the
    deadline, whoever stays away. Returns vLLM's PyNcclCommunicator on `device`.
    """
    from vllm.distributed.device_communicators import pynccl
    from vllm.distributed.utils import StatelessProcessGroup
    from vllm.utils.nccl import unpinned_nccl_env

    if device.type == "cuda":
        torch.cuda.set_device(device)  # a thread begins with the first GPU
    port = listener.getsockname()[1]
    group = StatelessProcessGroup.create(
        address, port, 0, world_size, store_timeout=max(int(deadline_s), 1), listen_socket=listener
    )
    met.set()
    with unpinned_nccl_env():
        opened = pynccl.PyNcclCommunicator(group, device=device)
    if opened.disabled:
        raise NcclUnavailable("vLLM found no NCCL library: install nvidia-nccl-cu12, or set VLLM_NCCL_SO_PATH")
    return opened


def check_machine(device: torch.device) -> None:
    """Raises NcclUnavailable, with what to do, where the trainer cannot send over NCCL."""
    if device.type != "cuda":
        raise NcclUnavailable("weights.backend nccl sends from a GPU, and torch sees none: set weights.backend: disk")
    if find_spec("vllm") is None:
        raise NcclUnavailable("weights.backend nccl needs vllm beside the trainer: install the extra `gpu`")
    from vllm.distributed.device_communicators.pynccl_wrapper import NCCLLibrary

    try:
        NCCLLibrary()
    except Exception as error:
        raise NcclUnavailable(
            f"weights.backend nccl: no NCCL library ({error}): install nvidia-nccl-cu12, set VLLM_NCCL_SO_PATH, or set "
            "weights.backend: disk"
        ) from error


class _Stopped(Exception):
    """The transfer is given up: nothing more is to be broadcast."""


class Sender:
    """Packs and broadcasts tensors in a daemon thread, in the order of `put`."""

    def __init__(self, communicator: Any, device: torch.device, buffer_bytes: int) -> None:
        self._queue: queue.Queue[tuple[str, Tensor] | None] = queue.Queue(maxsize=1)
        self._stopped = False
        self._communicator, self._device, self._buffer_bytes = communicator, device, buffer_bytes
        # A tensor above the buffer's size is a chunk by itself, which vLLM's packing warns of.
        warnings.filterwarnings("ignore", message="Tensor .* which exceeds buffer_size_bytes", category=UserWarning)
        self.call: RouteCall[None] = RouteCall(self._run)

    def put(self, named: tuple[str, Tensor] | None, seconds: float) -> bool:
        """Whether there was room within this many seconds; None says that the one before was the last."""
        if named is not None and named[1].is_cuda:
            torch.cuda.current_stream().synchronize()  # the sender works on streams of its own
        try:
            self._queue.put(named, timeout=seconds)
        except queue.Full:
            return False
        return True

    def stop(self) -> None:
        """Nothing more is broadcast; the thread ends unless a broadcast holds it."""
        self._stopped = True
        with suppress(queue.Empty):
            self._queue.get_nowait()
        self.put(None, 0.5)

    def _run(self) -> None:
        from vllm.distributed.weight_transfer.packed_tensor import packed_nccl_broadcast_producer

        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        packed_nccl_broadcast_producer(
            iterator=self._tensors(),
            group=self._communicator,
            src=0,
            post_iter_func=lambda item: item[1],
            buffer_size_bytes=self._buffer_bytes,
            num_buffers=BUFFERS,
        )

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        while True:
            named = self._queue.get()
            if self._stopped:
                raise _Stopped
            if named is None:
                return
            if named[1].is_cuda:  # its memory must not be reused while a stream of the sender still reads it
                named[1].record_stream(torch.cuda.current_stream())
            yield named


@dataclass
class NcclGroup:
    """Rank 0's communicator, and the servers' addresses in the order of their ranks."""

    communicator: Any
    members: list[str]


def make_group(
    updates: Sequence[ServerUpdate],
    device: torch.device,
    deadline_s: float,
    buffer_bytes: int,
    address: str | None = None,
) -> NcclGroup:
    """A group of rank 0 and all workers of these servers, on a port that the kernel picks.

    address: of rank 0 as the servers reach it; None: the one on the way to them. Raises WeightSyncError (phase "init").
    """
    sizes = each(updates, "init", lambda update: int(update.server.ask("init", "/get_world_size")["world_size"]))
    urls = [update.server.url for update in updates]
    address = address or address_towards(urls)
    try:
        # Listening before anyone knows the port: it cannot be taken meanwhile, and never was another group's.
        listener = socket.create_server((address, 0))
    except OSError as error:
        reason = f"cannot listen on {address} ({error}); set weights.nccl_address to an address of rank 0"
        raise WeightSyncError(urls[0], "init", reason) from error
    port = listener.getsockname()[1]
    world_size = 1 + sum(sizes.values())
    until = time.monotonic() + deadline_s
    met = threading.Event()
    own = RouteCall(partial(open_group, listener, address, world_size, device, deadline_s, met))
    calls: dict[str, RouteCall[Any]] = {}
    offset = 1
    for update in updates:
        info = {
            "master_address": address,
            "master_port": port,
            "rank_offset": offset,
            "world_size": world_size,
            "packed": True,
            "packed_buffer_size_bytes": buffer_bytes,
            "packed_num_buffers": BUFFERS,
        }
        calls[update.server.url] = RouteCall(partial(_join, update, info))
        offset += sizes[update.server.url]
    failed = None
    while failed is None and not settled(own, calls):
        failed = failure("init", own, calls, until)
    failed = failed or failure("init", own, calls, until)
    if failed is not None:
        # One that still waits for workers has nothing on the GPU, and its thread ends by itself.
        failed.stuck = not own.wait(POLL_S) and met.is_set()
        raise failed
    logger.info("nccl group of %d on %s:%d, servers: %s", world_size, address, port, ", ".join(urls))
    return NcclGroup(own.result(0), urls)


def settled(own: RouteCall[Any], calls: Mapping[str, RouteCall[Any]]) -> bool:
    """Whether rank 0's end and every server's have returned or failed; waits a moment for them."""
    end = time.monotonic() + POLL_S
    return all(call.wait(end - time.monotonic()) for call in (own, *calls.values()))


def failure(
    phase: str, own: RouteCall[Any], calls: Mapping[str, RouteCall[Any]], until: float
) -> WeightSyncError | None:
    """What has gone wrong so far, if anything, between rank 0's end (`own`) and the servers' (`calls`, by address).

    The servers' own reasons come first: rank 0's end often only notices. until: the deadline, of time.monotonic().
    """
    if any(call.done and call.error is not None for call in (own, *calls.values())):
        grace = time.monotonic() + _GRACE_S  # for the reason: the others see a server that dies at the same moment
        for call in calls.values():
            call.wait(grace - time.monotonic())
    errors = {url: call.error for url, call in calls.items() if call.done and call.error is not None}
    known = [error for error in errors.values() if isinstance(error, WeightSyncError)]
    if known:
        return min(known, key=lambda error: not error.gone)
    for url, other in errors.items():
        return WeightSyncError(url, phase, f"{type(other).__name__}: {other}")
    pending = [url for url, call in calls.items() if not call.done]
    if own.done and own.error is None and not pending:
        return None
    everyone = ", ".join(pending or calls)
    if own.done and own.error is not None:
        return WeightSyncError(everyone, phase, f"the transfer broke off: {type(own.error).__name__}: {own.error}")
    if time.monotonic() < until:
        return None
    mine = "has ended" if own.done else "waits as well"
    return WeightSyncError(everyone, phase, f"not ended by its deadline; rank 0's end {mine}")


def address_towards(urls: Sequence[str]) -> str:
    """This machine's IPv4 address on the way to the servers: of another machine's, where there is one."""
    addresses = []
    for url in urls:
        parts = urlsplit(url)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
            try:
                way.connect((parts.hostname or "", parts.port or 80))  # sends nothing
            except OSError as error:
                raise WeightSyncError(url, "init", f"no way to it from here: {error}", gone=True) from error
            addresses.append(str(way.getsockname()[0]))
    return next((address for address in addresses if not address.startswith("127.")), addresses[0])


def _join(update: ServerUpdate, info: dict[str, Any]) -> None:
    # What a group before has left there is released; a server without one does nothing.
    update.server.post("init", "/shutdown_weight_transfer_engine")
    update.phase("init", "/init_weight_transfer_engine", {"init_info": info}, LONGER_S)
