"""A vLLM server's weight routes, and the error that says where an update went wrong.

One update: pause -> (init) -> start -> update -> finish -> clear the prefix cache -> version -> resume. The pause comes
first since an update under a running forward pass kills vLLM's worker; the cache is cleared, running requests included,
since their keys and values come from the old weights; the version is named before a token is sampled with it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import httpx
import torch

from environments.common.errors import LivecodeError
from environments.common.retry import Retry, RetryLater
from trainer.weight_sync.route_call import RouteCall

logger = logging.getLogger(__name__)

T = TypeVar("T")
PauseMode = Literal["keep", "abort", "wait"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
OPEN = "already active"  # in vLLM's refusal to begin an update while another one is open
UNCHANGED = (
    "the served weights are unchanged"  # in the disk engine's refusals: see trainer/weight_sync/vllm_disk_engine.py
)
INITIAL_VERSIONS = (None, "default")
"""What vLLM calls the weights of its start."""
_BEFORE_A_CHANGE = ("health", "pause")
"""A server that hangs in these is as good as gone: nothing of it was touched."""
_IN_A_CHANGE = ("sleep", "wake", "init", "start", "update", "finish", "reset_cache", "version", "resume")
"""One that hangs in these is late. (Not `verify`: then it serves, and nobody knows what.)"""
_GATEWAY = (httpx.codes.BAD_GATEWAY, httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.GATEWAY_TIMEOUT)
"""vLLM says the second when its engine is dead, the others come from what is in front of it."""
_OTHER_BACKEND = ("Invalid init_info for", "Weight transfer not configured")
PROBE_TOKENS = 16


class WeightSyncError(LivecodeError, RuntimeError):
    """New weights did not reach a server, or are not what it computes with.

    `server` and `phase` say where; `paused` is True when the server was left paused on purpose, since it may
    hold half-loaded weights: restart it. `gone`: nothing listens there, the connection broke, or it hangs before
    anything was changed. `late`: it hangs after that. `stuck`: a thread of this process still waits in a transfer that
    does not end, so the process has to.
    """

    def __init__(
        self,
        server: str,
        phase: str,
        reason: str,
        *,
        paused: bool = False,
        gone: bool = False,
        late: bool = False,
        stuck: bool = False,
    ) -> None:
        state = "; it stays paused, since its weights may be half loaded: restart it" if paused else ""
        super().__init__(f"weights to {server}, phase {phase}: {reason}{state}")
        self.reason = reason
        self.server = server
        self.phase = phase
        self.paused = paused
        self.gone = gone
        self.late = late
        self.stuck = stuck

    def __reduce__(self) -> Any:  # so that it keeps its class on the way to the other ranks
        flags = {"paused": self.paused, "gone": self.gone, "late": self.late, "stuck": self.stuck}
        return _rebuilt, (self.server, self.phase, self.reason, flags)


def _hangs(server: str, phase: str, reason: str) -> WeightSyncError:
    return WeightSyncError(server, phase, reason, gone=phase in _BEFORE_A_CHANGE, late=phase in _IN_A_CHANGE)


def _rebuilt(server: str, phase: str, reason: str, flags: dict[str, bool]) -> WeightSyncError:
    return WeightSyncError(server, phase, reason, **flags)


@dataclass(frozen=True)
class Probe:
    """Tokens that a server sampled after a prompt, its log-probabilities of them, and the weight version's spans."""

    tokens: list[int]
    logprobs: list[float]
    versions: list[tuple[str, int, int]] = field(default_factory=list)


@dataclass(frozen=True)
class PublishStats:
    """What one publication took.

    seconds: by phase (gather, compare, save, pause, init, start, update, finish, reset_cache, version, resume, verify;
    of the slowest server), `paused` (from the pause's answer to the resume's) and `total`.
    missing: servers that were gone or late; they get the weights when they are back (`catch_up`).
    changed_share: share of the served numbers that differ from the last publication's, in the served type; None
    when there is nothing to compare with.
    probes: what each server sampled with the new weights, where a probe was asked for.
    """

    version: int
    seconds: dict[str, float]
    changed_share: float | None
    bytes: int
    missing: tuple[str, ...] = ()
    probes: dict[str, Probe] = field(default_factory=dict)


class WeightServer:
    """The control routes of the vLLM server at `url`; every call ends within `deadline_s`.

    adapter: the name of the adapter that is probed; None: the model.
    """

    def __init__(self, url: str, deadline_s: float, adapter: str | None = None) -> None:
        self.url = url.rstrip("/")
        self.adapter = adapter
        self.deadline_s = deadline_s
        self.joined = False
        """Whether it came in mid-run and has not taken weights yet; what it calls its own may be another run's."""
        self.not_before = 0.0
        # A connection for each call: vLLM closes them after errors and when idle, and a call must not be sent twice.
        limits = httpx.Limits(max_keepalive_connections=0)
        self._http = httpx.Client(base_url=self.url, timeout=deadline_s, trust_env=False, limits=limits)

    def check(self) -> None:
        """Raises WeightSyncError (phase "health") unless a vLLM server answers at the address."""
        try:
            answer = self._http.get("/health")
        except httpx.HTTPError as error:
            reason = f"{type(error).__name__}: {error}; correct weights.servers, or start vLLM there first"
            raise WeightSyncError(self.url, "health", reason, gone=True) from error
        if answer.status_code in _GATEWAY:
            reason = f"HTTP {answer.status_code}: vLLM is not ready there, or its engine is dead: see its log"
            raise WeightSyncError(self.url, "health", reason, gone=True)
        if answer.status_code != httpx.codes.OK:
            reason = f"HTTP {answer.status_code}: weights.servers names something else than a vLLM server"
            raise WeightSyncError(self.url, "health", reason)
        self._check_adapter()

    def _check_adapter(self) -> None:
        """A server takes adapters or whole weights, by how it was started; WeightSyncError for the wrong kind."""
        try:
            entries = self._http.get("/v1/models").json()["data"]
            served = {entry["id"] for entry in entries}
            adapters = [entry["id"] for entry in entries if entry.get("parent")]
        except (httpx.HTTPError, ValueError, LookupError, TypeError, AttributeError):
            return  # the environment's check is the one that says what is wrong with this route
        if self.adapter is not None and self.adapter not in served:
            reason = (
                "adapter.rank is set, and the server has no adapter to load over: start it by `atropos serve-model "
                "--max_lora_rank N` with adapter.rank as N, or set adapter.rank: 0"
            )
            raise WeightSyncError(self.url, "health", reason)
        if self.adapter is None and adapters:
            reason = (
                f"it serves the adapter {adapters[0]}, and adapter.rank is 0: whole weights do not fit a server with "
                "--enable-lora; start it without max_lora_rank, or set adapter.rank"
            )
            raise WeightSyncError(self.url, "health", reason)

    def ask(self, phase: str, path: str, timeout: float | None = None) -> dict[str, Any]:
        """A GET route's answer."""
        return self._sent(phase, lambda: self._http.get(path, timeout=timeout or self.deadline_s))

    def post(
        self,
        phase: str,
        path: str,
        body: Any = None,
        *,
        sent: threading.Event | None = None,
        longer_s: float = 0.0,
    ) -> dict[str, Any]:
        """A POST route's answer. sent: is set when the request is out. longer_s: added to the deadline."""

        def trace(event: str, info: Any) -> None:
            if sent is not None and event.endswith("send_request_body.complete"):
                sent.set()

        limit = self.deadline_s + longer_s
        return self._sent(phase, lambda: self._http.post(path, json=body, timeout=limit, extensions={"trace": trace}))

    def _sent(self, phase: str, send: Callable[[], httpx.Response]) -> dict[str, Any]:
        try:
            answer = send()
        except (httpx.ReadTimeout, httpx.WriteTimeout, httpx.PoolTimeout) as error:
            reason = f"no answer within {self.deadline_s:g} s"
            raise _hangs(self.url, phase, reason) from error
        except httpx.TransportError as error:
            raise WeightSyncError(self.url, phase, f"{type(error).__name__}: {error}", gone=True) from error
        if answer.status_code == httpx.codes.OK:
            # The route that loads adapters answers in plain words.
            found: dict[str, Any] = {} if answer.text.startswith("Success") else answer.json()
            return found
        reason = f"HTTP {answer.status_code}: {answer.text[:600]}"
        if phase == "init" and any(words in answer.text for words in _OTHER_BACKEND):
            reason = (
                "the server was started with another weight transfer backend than weights.backend: start it with "
                f"`atropos serve-model --weight_transfer` and the same name ({reason})"
            )
        dead = phase in _BEFORE_A_CHANGE and answer.status_code >= 500 and self._is_dead()
        raise WeightSyncError(self.url, phase, reason, gone=dead)

    def _is_dead(self) -> bool:
        """Whether what answers there has no engine any more."""
        try:
            self.check()
        except WeightSyncError as error:
            return error.gone
        return False

    def within(self, call: RouteCall[T], phase: str, until: float | None = None) -> T:
        """A call's result; WeightSyncError for `phase` when it is not there at `until` (time.monotonic())."""
        seconds = self.deadline_s if until is None else until - time.monotonic()
        try:
            return call.result(seconds)
        except TimeoutError:
            reason = f"no answer within {self.deadline_s:g} s"
            raise _hangs(self.url, phase, reason) from None

    def label(self, timeout: float | None = None) -> str | None:
        """What the server calls its weights: the version of the last publication that it got, or one of UNNAMED."""
        return self.ask("health", "/weight_info", timeout).get("weight_version")

    def was_started_again(self) -> bool:
        """Whether its weights have no name of ours: then it has no transfer engine of ours either."""
        try:
            return self.label() in INITIAL_VERSIONS
        except (WeightSyncError, ValueError):
            return False

    def is_behind(self, version: str) -> bool:
        """Whether the server answers, and serves other weights than `version` or hangs after an update."""
        try:
            if self.label(timeout=5.0) != version or self.joined:
                return True
        except (WeightSyncError, ValueError):
            return False
        return self.is_paused()

    def is_paused(self) -> bool:
        """Whether the server says that it generates nothing at the moment."""
        try:
            return bool(self.ask("health", "/is_paused", timeout=5.0).get("is_paused"))
        except (WeightSyncError, ValueError):
            return False

    def probe(
        self,
        prompt: Sequence[int],
        *,
        tokens: int = PROBE_TOKENS,
        temperature: float = 0.0,
        seed: int | None = None,
        priority: int = 0,
        phase: str = "probe",
        sent: threading.Event | None = None,
    ) -> Probe:
        """Has the server sample `tokens` tokens; log-probabilities are those after the temperature.

        With temperature 0 (greedy) vLLM gives them at temperature 1. priority: of the lowest first, where the server
        has `--scheduling-policy priority`; ignored otherwise.
        """
        sampling = {"temperature": temperature, "max_tokens": tokens, "logprobs": 0, "ignore_eos": True}
        if seed is not None:
            sampling["seed"] = seed
        body = {"token_ids": list(prompt), "sampling_params": sampling, "priority": priority}
        if self.adapter is not None:
            body["model"] = self.adapter
        choice = self.post(phase, "/inference/v1/generate", body, sent=sent)["choices"][0]
        return Probe(
            tokens=choice["token_ids"],
            logprobs=[entry["logprob"] for entry in choice["logprobs"]["content"]],
            versions=[(span["version"], span["start"], span["end"]) for span in choice["weight_versions"] or []],
        )

    def try_resume(self, attempts: int = 3) -> None:
        """Resumes after a failure, without raising; a few seconds at most."""

        def resume() -> None:
            try:
                self._http.post("/resume", timeout=2.0)
            except httpx.TransportError as error:
                raise RetryLater(f"resume of {self.url} after a failed update: {error}") from error

        try:
            Retry(0.2, 1.0, give_up=lambda failure: failure.tries >= attempts).call(resume)
        except RetryLater as error:
            logger.warning("%s; given up after %d tries", error, error.tries)


def check_all(servers: Sequence[WeightServer], *, resumed: bool, wait_s: float = 0.0) -> None:
    """Every server's `check`, side by side; a resumed run does without those that are gone. Where all are it is
    `publish` that waits (see `Served.patiently`).

    wait_s: how long a run that begins waits for servers that do not answer yet; it needs all of them.
    """
    until, said = time.monotonic() + wait_s, False
    while True:
        wrong = _check_each(servers)
        left = until - time.monotonic()
        if resumed or left <= 0 or not wrong or not all(error.gone for error in wrong):
            break
        if not said:
            logger.info("waiting for vLLM, at most %.0f s (weights.wait_s): %s", left, wrong[0])
            said = True
        time.sleep(1.0)
    for error in wrong:
        if not (resumed and error.gone):
            raise error
        logger.warning("%s; the run continues, and sends it the weights when it is back", error)


def _check_each(servers: Sequence[WeightServer]) -> list[WeightSyncError]:
    """What is wrong with them."""
    with ThreadPoolExecutor(max(len(servers), 1)) as pool:  # one that swallows packets takes the whole deadline
        checks = [pool.submit(server.check) for server in servers]
    wrong = []
    for check in checks:
        try:
            check.result()
        except WeightSyncError as error:
            wrong.append(error)
    return wrong
