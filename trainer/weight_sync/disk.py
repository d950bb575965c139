"""The `disk` publisher: safetensors in a folder that servers and trainer share. With and without a GPU."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import ClassVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from environments.common.files import ordinary_mode
from environments.common.server_list import WatchedServers
from trainer.model.policy import Policy
from trainer.model.weight_files import SINGLE, checkpoint_files
from trainer.parallel import Parallel, together
from trainer.weight_sync.members import Members
from trainer.weight_sync.update_phases import ServerUpdate, slowest
from trainer.weight_sync.vllm_routes import DTYPES, PauseMode, PublishStats, WeightServer, WeightSyncError, check_all

logger = logging.getLogger(__name__)

_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "module.")


def checkpoint_tensors(
    weights: Mapping[str, torch.Tensor] | torch.nn.Module, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Full CPU tensors of `dtype` under Hugging Face names: wrappers' prefixes and a tied output head left out.

    Shards (DTensor) are gathered, so under FSDP every rank has to call this. Of a Policy rank 0 alone gets them.
    """
    if isinstance(weights, Policy):
        return weights.state_dict_full(dtype)
    state = weights.state_dict() if isinstance(weights, torch.nn.Module) else weights
    tensors: dict[str, torch.Tensor] = {}
    seen: dict[tuple[int, tuple[int, ...]], str] = {}
    for name, tensor in state.items():
        for wrapper in _WRAPPERS:
            name = name.replace(wrapper, "")
        full = tensor.detach()
        if hasattr(full, "full_tensor"):
            full = full.full_tensor()
        else:
            key = (full.data_ptr(), tuple(full.shape))
            if full.device.type != "meta" and seen.setdefault(key, name) != name:
                continue  # one tensor under two names: a tied output head; vLLM ties it by itself
        tensors[name] = full.to("cpu", dtype).contiguous()
    return tensors


class DiskPublisher:
    """Writes safetensors into a folder and has every server load them (vLLM's backend `disk`).

    Args:
        servers: addresses of the vLLM servers, or a list of them that is watched.
        folder: exchange folder under a path that servers and trainer share; at most two versions lie in it, and those
            that servers which hang may still read.
        parallel: the trainer's ranks, which call `publish` and `catch_up` together; None: this process alone.
        dtype: the type that is served. Small updates of fp32 masters round away in bf16: watch `changed_share`.
        pause_mode: keep (running requests continue with the new weights), abort or wait.
        deadline_s: longest time of one phase, in seconds.
        initial: model folder that the servers started with, to count the first publication's changed share.
    """

    ADAPTER: ClassVar[str | None] = None

    def __init__(
        self,
        servers: Sequence[str] | WatchedServers,
        folder: Path,
        *,
        parallel: Parallel | None = None,
        dtype: str = "float32",
        pause_mode: PauseMode = "keep",
        deadline_s: float = 120.0,
        initial: Path | None = None,
    ) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"weights.dtype = {dtype!r}: choose one of {', '.join(DTYPES)}")
        self._half_loaded: set[str] = set()
        self._members = Members(servers, lambda url: WeightServer(url, deadline_s, self.ADAPTER), self._half_loaded)
        self.servers = self._members.servers
        self.folder = folder.resolve()
        self.parallel = parallel
        self.dtype = DTYPES[dtype]
        self.pause_mode = pause_mode
        self._last = initial
        self._initialised: set[str] = set()
        self._published: tuple[Path, str] | None = None
        self._reading: dict[str, Path] = {}  # what servers that hung in an update may still read
        self._met: set[str] = set()
        self._said: list[str] = []

    def check(self, *, resumed: bool = False, wait_s: float = 0.0) -> None:
        """Ask every server for its health; raises WeightSyncError (phase "health").

        resumed: servers that are gone are left to `catch_up`. wait_s: else they are waited for so long.
        """
        check_all(self.servers, resumed=resumed, wait_s=wait_s)

    def pause(self) -> None:
        """Stop generation on every server until the next `publish`, running requests kept; raises WeightSyncError."""
        pause_all(self._members.proven)

    def publish(
        self,
        weights: Mapping[str, torch.Tensor] | torch.nn.Module,
        version: int,
        prompt: Sequence[int] | None = None,
    ) -> PublishStats | None:
        """Write the weights and load them into every server; their tokens then carry `str(version)`.

        prompt: every server is probed with it. A server that is gone or hangs is left out, logged and counted, as
        long as another one has got the weights. Raises WeightSyncError with the first that fails otherwise; the others
        have finished their own update by then. Ranks other than rank 0 get None.
        """
        started = time.perf_counter()
        tensors = self._tensors(weights)
        with together(self.parallel) if self.parallel else nullcontext():
            if self.parallel is None or self.parallel.is_main:
                self._members.ready()
                return self._publish(tensors, version, prompt, started)
        return None

    # -- what an adapter's publisher does otherwise ----------------------------------------------------------

    def _tensors(self, weights: Mapping[str, torch.Tensor] | torch.nn.Module) -> dict[str, torch.Tensor]:
        """What is served, on rank 0's CPU; a collective."""
        return checkpoint_tensors(weights, self.dtype)

    def _save(self, tensors: dict[str, torch.Tensor], folder: Path) -> None:
        save_file(tensors, str(folder / SINGLE))
        ordinary_mode(folder / SINGLE)

    def _files(self, folder: Path) -> list[Path]:
        return checkpoint_files(folder)

    def _send(self, update: ServerUpdate, written: Path, version: str, prompt: Sequence[int] | None) -> None:
        """From the pause to the resume."""
        server = update.server
        if server.joined or server.was_started_again():
            self._initialised.discard(server.url)
        if server.url not in self._initialised:
            update.phase("init", "/init_weight_transfer_engine", {"init_info": {}})
            self._initialised.add(server.url)
        update.start()
        self._load(update, written)
        update.finish(version, prompt)

    def _load(self, update: ServerUpdate, folder: Path) -> None:
        self._reading[update.server.url] = folder  # one that hangs resumes reading as soon as it can
        update.phase("update", "/update_weights", {"update_info": {"folder": str(folder)}})
        self._reading.pop(update.server.url)

    def _needed(self, folder: Path) -> set[Path]:
        """All folders that a server which loads `folder` reads."""
        return {folder}

    # -- the way of a publication ----------------------------------------------------------------------------

    def _publish(
        self, tensors: dict[str, torch.Tensor], version: int, prompt: Sequence[int] | None, started: float
    ) -> PublishStats:
        gathered = time.perf_counter()
        changed = self._changed_share(tensors)
        compared = time.perf_counter()
        written = self._write(tensors, version)
        seconds = {"gather": gathered - started, "compare": compared - gathered}
        seconds["save"] = time.perf_counter() - compared
        missing: list[WeightSyncError] = []
        done: list[ServerUpdate] = []
        if self.servers:
            with ThreadPoolExecutor(len(self.servers)) as pool:
                jobs = {
                    server: pool.submit(self._update, server, written, str(version), prompt) for server in self.servers
                }
            for server, job in jobs.items():
                try:
                    done.append(job.result())
                except WeightSyncError as error:
                    if not (error.gone or error.late or server.joined):  # a new one that does not fit ends no run
                        raise
                    self._members.put_off(error)
                    missing.append(error)
            if not done:
                self._remove_all_but(self._last)  # it is tried again every second, maybe for minutes
                texts = [str(gone) for gone in missing]
                for text in [] if texts == self._said else texts:
                    logger.warning("%s", text)
                self._said = texts
                raise next((one for one in missing if one.gone), missing[0])
            for gone in missing:
                logger.warning("%s; the run continues without this server until it is back", gone)
        self._last, self._published = written, (written, str(version))
        self._remove_all_but(written)
        seconds |= slowest(done)
        seconds["total"] = time.perf_counter() - started
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        probes = {update.server.url: update.probe for update in done if update.probe is not None}
        return PublishStats(version, seconds, changed, size, tuple(gone.server for gone in missing), probes)

    def _remove_all_but(self, kept: Path | None) -> None:
        needed = {part for one in (kept, *self._reading.values()) if one is not None for part in self._needed(one)}
        for folder in self.folder.iterdir():
            if folder not in needed:
                shutil.rmtree(folder, ignore_errors=True)

    def behind(self) -> list[str]:
        """Servers that answer, and serve something else than the last publication or stand still; on rank 0."""
        return [server.url for server in self._members.behind(self._published and self._published[1])]

    def catch_up(self, weights: object = None) -> list[str]:
        """Brings the last publication to every server that is `behind`, and returns these.

        So is a server that was started again: it has the weights of its start, and the environment sends it nothing
        until they are named. What fails is logged and left to the next call. The files are on disk, so `weights` is not
        looked at, and only rank 0 has work.
        """
        with together(self.parallel) if self.parallel else nullcontext():
            return [] if self._published is None else self._catch_up(*self._published)

    def _catch_up(self, written: Path, version: str) -> list[str]:
        reached = []
        for server in self._members.behind(version):
            try:
                self._update(server, written, version)
            except WeightSyncError as error:
                logger.warning("%s", error)
                self._members.put_off(error)
                continue
            logger.info("%s has the weights of step %s", server.url, version)
            reached.append(server.url)
        return reached

    def _write(self, tensors: dict[str, torch.Tensor], version: int) -> Path:
        # A publication of the same version again (a resumed run) must not touch what a server may still read.
        target = self.folder / f"version-{version}-{time.time_ns()}"
        partial = self.folder / f".{target.name}.partial"
        try:
            partial.mkdir(parents=True)
            self._save(tensors, partial)
            partial.rename(target)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise WeightSyncError(str(self.folder), "save", f"{error}") from error
        return target

    def _changed_share(self, tensors: Mapping[str, torch.Tensor]) -> float | None:
        if self._last is None:
            return None
        changed = total = 0
        for path in self._files(self._last):
            with safe_open(str(path), framework="pt") as old:
                for name in old.keys():  # noqa: SIM118  (not a mapping)
                    if name in tensors:
                        before = old.get_tensor(name).to(self.dtype)
                        changed += int(torch.count_nonzero(before != tensors[name]))
                        total += before.numel()
        return changed / total if total else None

    def _update(
        self, server: WeightServer, written: Path, version: str, prompt: Sequence[int] | None = None
    ) -> ServerUpdate:
        if server.url not in self._met or server.joined:
            self._met.add(server.url)
            if server.is_paused():  # not by this process: by a trainer that died, maybe in the middle of an update
                self._half_loaded.add(server.url)
        update = ServerUpdate(server, self._half_loaded)
        try:
            update.pause(self.pause_mode)
            self._send(update, written, version, prompt)
        except WeightSyncError as error:
            raise update.given_up(error) from error
        return update


def pause_all(servers: Sequence[WeightServer]) -> None:
    """Pauses every server, running requests kept; one that is gone is left out unless it is the only one."""
    for server in servers:
        try:
            server.post("pause", "/pause?mode=keep")
        except WeightSyncError as error:
            if not error.gone or len(servers) == 1:
                raise
            logger.warning("%s", error)
