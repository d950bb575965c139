"""New weights into running vLLM servers, through vLLM's own routes; proven by log-probabilities, not by a status.

    publisher = DiskPublisher(["http://127.0.0.1:8001"], run_dir / "weights")
    stats = publisher.publish(policy.model.state_dict(), version=step)

One update: pause -> start -> update -> finish -> clear the prefix cache -> version -> resume. The pause comes first
since an update under a running forward pass kills vLLM's worker; the cache is cleared, running requests included,
since their keys and values come from the old weights.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import httpx
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

logger = logging.getLogger(__name__)

PauseMode = Literal["keep", "abort", "wait"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_UNCHANGED = "the served weights are unchanged"  # in the disk engine's refusals: see trainer/vllm_disk_engine.py
_OPEN = "already active"  # in vLLM's refusal to begin an update while another one is open
_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "module.")


class WeightSyncError(RuntimeError):
    """New weights did not reach a server, or are not what it computes with.

    `server` and `phase` say where; `paused` is True when the server was left paused on purpose, since it may
    hold half-loaded weights: restart it. `gone`: nothing listens there, the connection broke, or it hangs before
    anything was changed.
    """

    def __init__(self, server: str, phase: str, reason: str, *, paused: bool = False, gone: bool = False) -> None:
        state = "; it stays paused, since its weights may be half loaded: restart it" if paused else ""
        super().__init__(f"weights to {server}, phase {phase}: {reason}{state}")
        self.reason = reason
        self.server = server
        self.phase = phase
        self.paused = paused
        self.gone = gone


@dataclass(frozen=True)
class PublishStats:
    """What one publication took.

    seconds: by phase (gather, compare, save, pause, start, update, finish, reset_cache, version, resume; of the
    slowest server), `paused` (from the pause's answer to the resume's) and `total`.
    missing: servers that were gone; they get the weights when they are back (`catch_up`).
    changed_share: share of the served numbers that differ from the last publication's, in the served type; None
    when there is nothing to compare with.
    """

    version: int
    seconds: dict[str, float]
    changed_share: float | None
    bytes: int
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Probe:
    """Tokens that a server sampled after a prompt, its log-probabilities of them, and the weight version's spans."""

    tokens: list[int]
    logprobs: list[float]
    versions: list[tuple[str, int, int]] = field(default_factory=list)


class WeightPublisher(Protocol):
    """Brings the policy's weights into the servers that sample from it."""

    def check(self) -> None:
        """Ask every server for its health; raises WeightSyncError for one that does not answer."""
        ...

    def publish(self, weights: Mapping[str, torch.Tensor] | torch.nn.Module, version: int) -> PublishStats:
        """Send the weights (Hugging Face names) as `version`; raises WeightSyncError."""
        ...

    def pause(self) -> None:
        """Stop generation until the next publication."""
        ...

    def catch_up(self) -> list[str]:
        """Bring the last publication to servers that came back without it; those that have it now."""
        ...


def make_publisher(backend: str, servers: Sequence[str], folder: Path, **options: Any) -> WeightPublisher:
    """The publisher for a backend's name."""
    if backend == "disk":
        return DiskPublisher(servers, folder, **options)
    raise ValueError(f"weights.backend = {backend!r} is not built yet: use disk (a folder that trainer and vLLM share)")


def checkpoint_tensors(
    weights: Mapping[str, torch.Tensor] | torch.nn.Module, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Full CPU tensors of `dtype` under Hugging Face names: wrappers' prefixes and a tied output head left out.

    Shards (DTensor) are gathered, so under FSDP every rank has to call this.
    """
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
        servers: addresses of the vLLM servers.
        folder: exchange folder under a path that servers and trainer share; at most two versions lie in it.
        dtype: the type that is served. Small updates of fp32 masters round away in bf16: watch `changed_share`.
        pause_mode: keep (running requests go on with the new weights), abort or wait.
        deadline_s: longest time of one phase, in seconds.
        initial: model folder that the servers started with, to count the first publication's changed share.
    """

    def __init__(
        self,
        servers: Sequence[str],
        folder: Path,
        *,
        dtype: str = "float32",
        pause_mode: PauseMode = "keep",
        deadline_s: float = 120.0,
        initial: Path | None = None,
    ) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"weights.dtype = {dtype!r}: choose one of {', '.join(DTYPES)}")
        self.servers = [server.rstrip("/") for server in servers]
        self.folder = folder.resolve()
        self.dtype = DTYPES[dtype]
        self.pause_mode = pause_mode
        self.deadline_s = deadline_s
        self._last = initial
        self._initialised: set[str] = set()
        self._published: tuple[Path, str] | None = None

    def check(self) -> None:
        """Ask every server for its health; raises WeightSyncError (phase "health")."""
        for server in self.servers:
            check_server(server, self.deadline_s)

    def pause(self) -> None:
        """Stop generation on every server until the next `publish`, running requests kept; raises WeightSyncError."""
        for server in self.servers:
            with httpx.Client(base_url=server, timeout=self.deadline_s, trust_env=False) as client:
                try:
                    _post(client, server, "pause", "/pause?mode=keep")
                except WeightSyncError as error:
                    if not error.gone or len(self.servers) == 1:
                        raise
                    logger.warning("%s", error)

    def publish(self, weights: Mapping[str, torch.Tensor] | torch.nn.Module, version: int) -> PublishStats:
        """Write the weights and load them into every server; their tokens then carry `str(version)`.

        A server that is gone is left out, said and counted, as long as another one has got the weights. Raises
        WeightSyncError with the first that fails otherwise; the others have finished their own update by then.
        """
        started = time.perf_counter()
        tensors = checkpoint_tensors(weights, self.dtype)
        gathered = time.perf_counter()
        changed = self._changed_share(tensors)
        compared = time.perf_counter()
        written = self._write(tensors, version)
        seconds = {"gather": gathered - started, "compare": compared - gathered}
        seconds["save"] = time.perf_counter() - compared
        missing: list[WeightSyncError] = []
        if self.servers:
            with ThreadPoolExecutor(len(self.servers)) as pool:
                jobs = [pool.submit(self._update, server, written, str(version)) for server in self.servers]
            for job in jobs:
                try:
                    taken = job.result()
                except WeightSyncError as error:
                    if not error.gone:
                        raise
                    missing.append(error)
                    continue
                for phase, length in taken.items():
                    seconds[phase] = max(length, seconds.get(phase, 0.0))
            if len(missing) == len(self.servers):
                raise missing[0]
            for gone in missing:
                logger.warning("%s; the run goes on without this server until it is back", gone)
        self._last, self._published = written, (written, str(version))
        for old in self.folder.iterdir():
            if old != written:
                shutil.rmtree(old, ignore_errors=True)
        seconds["total"] = time.perf_counter() - started
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        return PublishStats(version, seconds, changed, size, tuple(gone.server for gone in missing))

    def catch_up(self) -> list[str]:
        """Brings the last publication to every server that answers and serves something else, and returns these.

        So does a server that was started again: it has the weights of its start, and the environment sends it nothing
        until they are named. What fails is said and left to the next call.
        """
        reached: list[str] = []
        if self._published is None:
            return reached
        written, version = self._published
        for server in self.servers:
            try:
                answer = httpx.get(f"{server}/weight_info", timeout=5.0, trust_env=False)
                if answer.status_code != httpx.codes.OK or answer.json().get("weight_version") == version:
                    continue
                self._update(server, written, version)
            except httpx.HTTPError:
                continue
            except WeightSyncError as error:
                logger.warning("%s", error)
                continue
            logger.info("%s is back and has the weights of step %s", server, version)
            reached.append(server)
        return reached

    def _write(self, tensors: dict[str, torch.Tensor], version: int) -> Path:
        # A publication of the same version again (a resumed run) must not touch what a server may still read.
        target = self.folder / f"version-{version}-{time.time_ns()}"
        partial = self.folder / f".{target.name}.partial"
        try:
            partial.mkdir(parents=True)
            save_file(tensors, str(partial / "model.safetensors"))
            partial.rename(target)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise WeightSyncError(str(self.folder), "save", f"{error}") from error
        return target

    def _changed_share(self, tensors: Mapping[str, torch.Tensor]) -> float | None:
        if self._last is None:
            return None
        changed = total = 0
        for path in sorted(self._last.glob("*.safetensors")):
            with safe_open(str(path), framework="pt") as old:
                for name in old.keys():  # noqa: SIM118  (not a mapping)
                    if name in tensors:
                        before = old.get_tensor(name).to(self.dtype)
                        changed += int(torch.count_nonzero(before != tensors[name]))
                        total += before.numel()
        return changed / total if total else None

    def _update(self, server: str, written: Path, version: str) -> dict[str, float]:
        seconds: dict[str, float] = {}
        touched = False
        with httpx.Client(base_url=server, timeout=self.deadline_s, trust_env=False) as client:

            def phase(name: str, path: str, body: Any = None) -> dict[str, Any]:
                started = time.perf_counter()
                answer = _post(client, server, name, path, body)
                seconds[name] = time.perf_counter() - started
                return answer

            try:
                phase("pause", f"/pause?mode={self.pause_mode}")
                paused = time.perf_counter()
                if _was_started_again(client):
                    self._initialised.discard(server)
                if server not in self._initialised:
                    phase("init", "/init_weight_transfer_engine", {"init_info": {}})
                    self._initialised.add(server)
                try:
                    phase("start", "/start_weight_update", {})
                except WeightSyncError as error:
                    if _OPEN not in error.reason:
                        raise
                    # A trainer died within an update. Everything is paused, and every weight comes anew.
                    touched = True
                    phase("finish", "/finish_weight_update", {})
                    phase("start", "/start_weight_update", {})
                touched = True
                phase("update", "/update_weights", {"update_info": {"folder": str(written)}})
                phase("finish", "/finish_weight_update", {"weight_version": version})
                if not phase("reset_cache", "/reset_prefix_cache?reset_running_requests=true")["success"]:
                    raise WeightSyncError(server, "reset_cache", "vLLM kept the old weights' cache")
                phase("version", "/update_weight_version", {"new_version": version})
                phase("resume", "/resume")
            except WeightSyncError as error:
                # Half-loaded weights must not sample: only a server whose weights are whole and old goes on.
                whole = not touched or _UNCHANGED in error.reason
                if whole and not (error.gone and error.phase == "pause"):
                    _try_resume(server)
                raise WeightSyncError(
                    server, error.phase, error.reason, paused=not whole and not error.gone, gone=error.gone
                ) from error
        seconds["paused"] = time.perf_counter() - paused
        return seconds


def probe(
    server: str,
    prompt: Sequence[int],
    *,
    tokens: int = 16,
    temperature: float = 0.0,
    seed: int | None = None,
    deadline_s: float = 120.0,
) -> Probe:
    """Have a server sample `tokens` tokens after a prompt; log-probabilities are those after the temperature.

    With temperature 0 (greedy) vLLM gives them at temperature 1. Raises WeightSyncError (phase "probe").
    """
    sampling: dict[str, Any] = {"temperature": temperature, "max_tokens": tokens, "logprobs": 0, "ignore_eos": True}
    if seed is not None:
        sampling["seed"] = seed
    body = {"token_ids": list(prompt), "sampling_params": sampling}
    with httpx.Client(base_url=server, timeout=deadline_s, trust_env=False) as client:
        choice = _post(client, server, "probe", "/inference/v1/generate", body)["choices"][0]
    return Probe(
        tokens=choice["token_ids"],
        logprobs=[entry["logprob"] for entry in choice["logprobs"]["content"]],
        versions=[(span["version"], span["start"], span["end"]) for span in choice["weight_versions"] or []],
    )


def verify_sync(
    server: str,
    prompt: Sequence[int],
    logprobs: Callable[[list[int], list[int]], Sequence[float]],
    *,
    version: int | None = None,
    tolerance: float = 2e-3,
    tokens: int = 16,
) -> float:
    """Largest difference between the server's log-probabilities and the trainer's on greedy tokens after `prompt`.

    Args:
        logprobs: the trainer's own at temperature 1: (prompt ids, sampled ids) -> one number per sampled id.
        version: the weight version that the tokens must carry; None: any.
        tolerance: largest difference allowed; 2e-3 fits fp32 on both sides, bf16 needs about 0.3.

    Raises WeightSyncError (phase "verify") when the difference exceeds the tolerance or is not a number.
    """
    sampled = probe(server, prompt, tokens=tokens)
    versions = {span[0] for span in sampled.versions}
    if version is not None and versions != {str(version)}:
        raise WeightSyncError(server, "verify", f"tokens carry weight version {sorted(versions)}, expected {version}")
    own = logprobs(list(prompt), sampled.tokens)
    worst = max(abs(a - b) for a, b in zip(sampled.logprobs, own, strict=True))
    if not worst <= tolerance:  # also true for NaN
        raise WeightSyncError(
            server, "verify", f"log-probabilities differ by {worst:.4g} from the trainer's, allowed are {tolerance:g}"
        )
    return worst


def check_server(server: str, deadline_s: float = 120.0) -> None:
    """Raises WeightSyncError (phase "health") unless a vLLM server answers at the address."""
    try:
        answer = httpx.get(f"{server}/health", timeout=deadline_s, trust_env=False)
    except httpx.HTTPError as error:
        raise WeightSyncError(
            server, "health", f"{type(error).__name__}: {error}; correct weights.servers, or start vLLM there first"
        ) from error
    if answer.status_code != httpx.codes.OK:
        raise WeightSyncError(
            server, "health", f"HTTP {answer.status_code}: weights.servers names something else than a vLLM server"
        )


def _was_started_again(client: httpx.Client) -> bool:
    """Whether the server's weights have no name of ours: then it has no transfer engine of ours either."""
    try:
        return client.get("/weight_info").json().get("weight_version") in (None, "default")
    except (httpx.HTTPError, ValueError):
        return False


def _post(client: httpx.Client, server: str, phase: str, path: str, body: Any = None) -> dict[str, Any]:
    try:
        answer = client.post(path, json=body)
    except httpx.TimeoutException as error:
        reason = f"no answer within {client.timeout.read:.0f} s"
        raise WeightSyncError(server, phase, reason, gone=phase == "pause") from error
    except httpx.TransportError as error:
        raise WeightSyncError(server, phase, f"{type(error).__name__}: {error}", gone=True) from error
    if answer.status_code != httpx.codes.OK:
        raise WeightSyncError(server, phase, f"HTTP {answer.status_code}: {answer.text[:600]}")
    return answer.json()


def _try_resume(server: str, attempts: int = 5) -> None:
    # vLLM closes the connection after an error: each attempt opens its own.
    for attempt in range(attempts):
        try:
            httpx.post(f"{server}/resume", timeout=10.0, trust_env=False)
            return
        except httpx.TransportError as error:
            logger.warning("resume of %s after a failed weight update, attempt %d: %s", server, attempt + 1, error)
            time.sleep(0.2 * 2**attempt)
