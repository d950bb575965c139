"""The `nccl` publisher: from the trainer's GPUs to the servers' GPUs, packed, by vLLM's own `nccl` engine.

All ranks gather tensor by tensor; rank 0 packs what comes and broadcasts it to every worker of every server. Rank 0 is
rank 0 of the group too; a server's workers begin at its rank_offset, 1 + the workers of the servers before it (vLLM's
own trainer class gives every server the offset 1, so it serves one server only).

The group lives from one publication to the next. When a server is gone, has come back or was started again, a group of
those that are there is made with a store on a new port. Before the transfer a server that is gone is left out; one that
breaks off in the middle of it ends the publication, since the others then hold half of the weights: the run makes it
anew with those that are left.

A phase ends by its deadline on the main thread of rank 0: HTTP and NCCL are in daemon threads. When the transfer
has failed the gather runs to its end without sending, so that the other ranks are not left waiting in it; and where
a rank does wait for one that never comes, the process ends itself.

Not run on a GPU: the tests replace NCCL's communicator by one over gloo, everything else is real.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any

from environments.common.server_list import WatchedServers
from trainer.model.policy import Policy
from trainer.parallel import Parallel, broadcast, together
from trainer.process.watchdog import Watchdog, end_process_in
from trainer.weight_sync.disk import pause_all
from trainer.weight_sync.members import Members
from trainer.weight_sync.nccl_group import (
    LONGER_S,
    POLL_S,
    NcclGroup,
    Sender,
    check_machine,
    failure,
    make_group,
    settled,
)
from trainer.weight_sync.route_call import RouteCall
from trainer.weight_sync.server_options import check_options
from trainer.weight_sync.update_phases import ServerUpdate, each, given_up, slowest, without
from trainer.weight_sync.vllm_routes import (
    DTYPES,
    PauseMode,
    PublishStats,
    WeightServer,
    WeightSyncError,
    check_all,
)
from trainer.weight_sync.weight_stream import ServedCopy, WeightStream, update_info

logger = logging.getLogger(__name__)

BUFFER_BYTES = 512 * 2**20
"""A packed chunk ends with the tensor that exceeds this; both sides hold two of them."""
AFTER_DEADLINE_S = 8.0
"""How long after a deadline a process that cannot end by itself is ended."""
_CLOSE_S = 3.0


class NcclPublisher:
    """Sends the policy's weights over NCCL (vLLM's backend `nccl`).

    Args:
        servers: addresses of the vLLM servers, or on rank 0 a list of them that is watched.
        parallel: the trainer's ranks, which call `publish` and `catch_up` together.
        dtype: the type that is served. Small updates of fp32 masters round away in bf16: watch `changed_share`.
        pause_mode: keep (running requests continue with the new weights), abort or wait.
        deadline_s: longest time of one phase, in seconds; the gather and the transfer are one phase, `update`.
        address: where the servers reach rank 0; None: this machine's address on the way to the first of them.
        end_in: ends this process this many seconds later, with a message, where a thread of it is stuck.
    """

    def __init__(
        self,
        servers: Sequence[str] | WatchedServers,
        parallel: Parallel,
        *,
        dtype: str = "bfloat16",
        pause_mode: PauseMode = "keep",
        deadline_s: float = 120.0,
        address: str | None = None,
        buffer_bytes: int = BUFFER_BYTES,
        end_in: Callable[[float, str], None] = end_process_in,
    ) -> None:
        if parallel.is_main:  # the others only gather
            check_machine(parallel.device)
        self._half_loaded: set[str] = set()
        self._members = Members(servers, lambda url: WeightServer(url, deadline_s), self._half_loaded)
        self.servers = self._members.servers
        self.parallel = parallel
        self.dtype = DTYPES[dtype]
        self.pause_mode = pause_mode
        self.deadline_s = deadline_s
        self.buffer_bytes = buffer_bytes
        self._address = address
        self._end_in = end_in
        self._group: NcclGroup | None = None
        self._labels: dict[str, str] = {}
        self._copy = ServedCopy()
        self._compared: tuple[int, float | None] | None = None  # a version, and its share of changed numbers
        self._published: str | None = None

    # -- what the run calls ----------------------------------------------------------------------------------

    def check(self, *, resumed: bool = False, wait_s: float = 0.0) -> None:
        """Ask every server for its health and its backend; raises WeightSyncError (phase "health").

        resumed: servers that are gone are left to `catch_up`. wait_s: else they are waited for so long.
        """
        check_all(self.servers, resumed=resumed, wait_s=wait_s)
        each(
            [ServerUpdate(server) for server in self.servers],
            "health",
            lambda update: check_options(update.server, "nccl", "nccl"),
        )

    def pause(self) -> None:
        """Stop generation on every server until the next `publish`, running requests kept; raises WeightSyncError."""
        pause_all(self._members.proven)

    def publish(self, weights: Policy, version: int, prompt: Sequence[int] | None = None) -> PublishStats | None:
        """Send the policy's weights to every server; their tokens then carry `str(version)`.

        prompt: every server is probed with it. A server that is gone is left out, logged and counted, as long
        as another one is there. Raises WeightSyncError otherwise, on every rank. Ranks other than rank 0 get None.
        """
        started = time.perf_counter()
        with together(self.parallel):
            if self.parallel.is_main:
                self._members.ready()
        stream = WeightStream(weights.model, self.dtype)
        if self._compared is None or self._compared[0] != version:  # an aborted publication is repeated
            self._compared = version, self._copy.changed_share(stream, self.parallel)
        changed = self._compared[1]
        seconds = {"compare": time.perf_counter() - started}
        self._published = None  # until it is whole: half of a publication is not to be caught up with
        done, missing = self._transfer(self._members.proven, stream, str(version), seconds, prompt)
        self._published, self._compared = str(version), None
        # A server that does not fit would leave all of its group half loaded, so new ones get one of their own.
        if broadcast(any(server.joined for server in self.servers), self.parallel):
            self.catch_up(weights)
        if not self.parallel.is_main:
            return None
        for gone in missing:
            logger.warning("%s; the run continues without this server until it is back", gone)
        seconds |= slowest(done)
        seconds["total"] = time.perf_counter() - started
        probes = {update.server.url: update.probe for update in done if update.probe is not None}
        return PublishStats(version, seconds, changed, stream.bytes, tuple(gone.server for gone in missing), probes)

    def behind(self) -> list[str]:
        """Servers that answer, and serve something else than the last publication or stand still; on rank 0."""
        return [server.url for server in self._members.behind(self._published) if self._fits(server)]

    def _fits(self, server: WeightServer) -> bool:
        """Whether it is not a new one of another backend: this process would wait for it in the group for good."""
        try:
            if server.joined:
                check_options(server, "nccl", "nccl")
        except WeightSyncError as error:
            logger.warning("%s", error)
            self._members.put_off(error)
            return False
        return True

    def catch_up(self, weights: Policy) -> list[str]:
        """Sends the policy's weights, which are the last publication's, to the servers that are `behind`.

        They get a group of their own, so that the others keep generating. What fails is logged and left to the next
        call, unless this process is stuck by it. A collective; other ranks than rank 0 return none.
        """
        behind = broadcast(self.behind() if self.parallel.is_main else None, self.parallel)
        version = self._published
        if not behind or version is None:
            return []
        chosen = [server for server in self.servers if server.url in behind]
        self._close()  # the next publication makes a group of all
        try:
            done, _ = self._transfer(chosen, WeightStream(weights.model, self.dtype), version, {}, None)
        except WeightSyncError as error:
            if error.stuck:
                raise
            logger.warning("%s", error)
            self._members.put_off(error)
            return []
        finally:
            self._close()
        for update in done:
            logger.info("%s has the weights of step %s", update.server.url, version)
        return [update.server.url for update in done]

    # -- one transfer ----------------------------------------------------------------------------------------

    def _transfer(
        self,
        servers: Sequence[WeightServer],
        stream: WeightStream,
        version: str,
        seconds: dict[str, float],
        prompt: Sequence[int] | None,
    ) -> tuple[list[ServerUpdate], list[WeightSyncError]]:
        """The updates that are done, and the servers that are gone; both empty on the other ranks. A collective."""
        main, rank = self.parallel.is_main, self.parallel.rank
        missing: list[WeightSyncError] = []
        updates: list[ServerUpdate] = []
        end = time.monotonic() + self.deadline_s + AFTER_DEADLINE_S
        try:
            with together(self.parallel):
                if main:
                    updates = self._begin(servers, seconds, missing)
            waited = self.deadline_s + AFTER_DEADLINE_S
            end = time.monotonic() + waited
            message = f"weights, phase update: rank {rank} waited {waited:g} s for the others in the gather"
            with Watchdog(waited, message) as guard, together(self.parallel):
                try:
                    if main:
                        self._send(updates, stream, seconds, guard)
                    else:
                        for _ in stream:
                            pass
                except Exception as error:
                    guard.cause = error
                    raise
            with together(self.parallel):
                if main:
                    updates = self._finish(updates, version, prompt, missing)
        except WeightSyncError as error:
            if error.stuck:
                # Leaving the process group may wait for the GPU, and the GPU for the transfer.
                self._end_in(max(end - time.monotonic(), 1.0), str(error))
            self._close()
            raise
        return updates, missing

    def _begin(
        self, servers: Sequence[WeightServer], seconds: dict[str, float], missing: list[WeightSyncError]
    ) -> list[ServerUpdate]:
        """Who is there, pause, a group where there is none of exactly these, start."""
        there = [ServerUpdate(server, self._half_loaded) for server in servers]
        try:
            labels = each(there, "health", lambda update: update.server.label(), missing)
            there = without(missing, there)
            each(there, "pause", lambda update: update.pause(self.pause_mode), missing)
            there = without(missing, there)
            if not there:
                raise missing[0]
            members = [update.server.url for update in there]
            # A server that was started again has another label than we gave it, and is no longer in the group.
            same = all(url in self._labels and labels[url] == self._labels[url] for url in members)
            if self._group is None or self._group.members != members or not same:
                started = time.perf_counter()
                self._close()
                self._group = make_group(there, self.parallel.device, self.deadline_s, self.buffer_bytes, self._address)
                seconds["init"] = time.perf_counter() - started
            each(there, "start", _start)
        except WeightSyncError as error:
            raise given_up(without(missing, there), error) from error
        return there

    def _send(
        self, updates: Sequence[ServerUpdate], stream: WeightStream, seconds: dict[str, float], guard: Watchdog
    ) -> None:
        """The gather on this thread, the broadcast in the sender's, the servers' calls in theirs."""
        assert self._group is not None
        started = time.perf_counter()
        until = time.monotonic() + self.deadline_s
        info = update_info(stream.specs, stream.dtype)
        calls: dict[str, RouteCall[Any]] = {
            update.server.url: RouteCall(
                partial(update.phase, "update", "/update_weights", {"update_info": info}, LONGER_S)
            )
            for update in updates
        }
        sender = Sender(self._group.communicator, self.parallel.device, self.buffer_bytes)
        failed = None
        for named in chain(stream, [None]):
            while failed is None and not sender.put(named, POLL_S):
                failed = failure("update", sender.call, calls, until)
            # With a failure the rest is gathered and not sent: the other ranks are in the gather.
            failed = failed or failure("update", sender.call, calls, until)
            guard.cause = failed
        seconds["gather"] = time.perf_counter() - started
        while failed is None and not settled(sender.call, calls):
            failed = failure("update", sender.call, calls, until)
        failed = failed or failure("update", sender.call, calls, until)
        if failed is None:
            return
        guard.cause = failed
        logger.error("%s", failed)
        sender.stop()
        self._close()
        failed.stuck = not sender.call.wait(POLL_S)
        raise given_up(updates, failed)

    def _finish(
        self, updates: list[ServerUpdate], version: str, prompt: Sequence[int] | None, missing: list[WeightSyncError]
    ) -> list[ServerUpdate]:
        try:
            each(updates, "finish", lambda update: update.finish(version, prompt), missing, phases=5)
        except WeightSyncError as error:
            raise given_up([update for update in updates if update.server.url == error.server], error) from error
        done = without(missing, updates)
        if not done:
            raise missing[0]
        self._labels = {update.server.url: version for update in done}
        return done

    def _close(self) -> None:
        """Gives up the group; NCCL may wait in that as well."""
        group, self._group = self._group, None
        if group is not None:
            RouteCall(group.communicator.destroy).wait(_CLOSE_S)


def _start(update: ServerUpdate) -> None:
    update.unsafe = True  # this engine puts the weights away as soon as an update is opened
    update.start()
