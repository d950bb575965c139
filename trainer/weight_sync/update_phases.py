"""Updates of servers: one server's way through the phases, and all of them in step."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from trainer.weight_sync.route_call import RouteCall
from trainer.weight_sync.vllm_routes import OPEN, UNCHANGED, PauseMode, Probe, WeightServer, WeightSyncError

T = TypeVar("T")
_FIRST = -1  # the probe's priority; rollouts have 0
_BEFORE_RESUME_S = 0.1  # for vLLM to queue what has been sent
_RESUME_S = 3.0


class ServerUpdate:
    """One server's way through one update: what each phase took.

    `unsafe` from the start of the transfer to the new name: weights may be half loaded, or the cache is the old ones'.

    Args:
        half_loaded: addresses of the servers that are unsafe, kept by the publisher: what one update leaves so the next
            one finds so, and must not resume it before its weights are whole. (Not even where they have no name: a
            server that was started again looks like one whose first update broke off.)
    """

    def __init__(self, server: WeightServer, half_loaded: set[str] | None = None) -> None:
        self.server = server
        self.seconds: dict[str, float] = {}
        self._half_loaded = set() if half_loaded is None else half_loaded
        self._was_unsafe = self.unsafe
        self.probe: Probe | None = None
        self._paused_at: float | None = None

    @property
    def unsafe(self) -> bool:
        """Whether nothing may be sampled from it."""
        return self.server.url in self._half_loaded

    @unsafe.setter
    def unsafe(self, value: bool) -> None:
        (self._half_loaded.add if value else self._half_loaded.discard)(self.server.url)

    def phase(self, name: str, path: str, body: Any = None, longer_s: float = 0.0) -> dict[str, Any]:
        """A POST route, timed as phase `name`. longer_s: see WeightServer.post."""
        started = time.perf_counter()
        answer = self.server.post(name, path, body, longer_s=longer_s)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
        return answer

    def pause(self, mode: PauseMode) -> None:
        """Stops generation; what runs is kept, aborted or waited for."""
        self.phase("pause", f"/pause?mode={mode}")
        self._paused_at = time.perf_counter()

    def sleep(self, level: int) -> None:
        """Stops generation, requests kept, and takes the server's memory; nothing may be sampled until `resume`."""
        self.unsafe = True
        self.phase("sleep", f"/sleep?level={level}&mode=keep")
        self._paused_at = time.perf_counter()

    def start(self) -> None:
        """Opens the update; from then on the weights may be half loaded."""
        try:
            self.phase("start", "/start_weight_update", {})
        except WeightSyncError as error:
            if OPEN not in error.reason:
                raise
            # A trainer died within an update. Everything is paused, and every weight is sent again.
            self.unsafe = self._was_unsafe = True
            self.phase("finish", "/finish_weight_update", {})
            self.phase("start", "/start_weight_update", {})
        self.unsafe = True

    def load_adapter(self, name: str, folder: Path) -> None:
        """Loads an adapter's files over the one of that name; running requests continue with the new one."""
        body = {"lora_name": name, "lora_path": str(folder), "load_inplace": True}
        self.unsafe = True
        try:
            self.phase("update", "/v1/load_lora_adapter", body)
        except WeightSyncError as error:
            if error.gone or error.late:
                raise
            # vLLM reads and checks all of an adapter before it lets go of the old one.
            raise WeightSyncError(error.server, error.phase, f"{error.reason} ({UNCHANGED})") from error

    def finish(self, version: str, prompt: Sequence[int] | None = None, *, opened: bool = True) -> None:
        """What follows a whole transfer: finish, clear the cache, name the version, resume.

        prompt: the server samples greedily after it as soon as it is resumed; the result is in `probe`. opened: whether
        the transfer was begun by `start`, and has to be ended.
        """
        self.name(version, opened=opened)
        self.resume(prompt)

    def name(self, version: str, *, opened: bool = True) -> None:
        """Finish, clear the cache, name the version."""
        if opened:
            self.phase("finish", "/finish_weight_update", {"weight_version": version})
        if not self.phase("reset_cache", "/reset_prefix_cache?reset_running_requests=true")["success"]:
            raise WeightSyncError(self.server.url, "reset_cache", "vLLM kept the old weights' cache")
        self.phase("version", "/update_weight_version", {"new_version": version})

    def resume(self, prompt: Sequence[int] | None = None, wake: Callable[[], None] | None = None) -> None:
        """Resumes; with a prompt the server's answer to it is in `probe`. wake: brings back its memory before."""
        asked: RouteCall[Probe] | None = None
        if prompt is not None:
            # Sent while the server is paused: clearing the cache has put every running request back into the queue,
            # so that the probe, of a higher priority, is the first to be computed. Sent later it would wait for a
            # sequence to end, which takes minutes at 32k tokens. A server without `--scheduling-policy priority`
            # (`atropos serve-model` sets it) computes it in its turn.
            sent = threading.Event()
            asked = RouteCall(lambda: self.server.probe(prompt, priority=_FIRST, phase="verify", sent=sent))
            until = time.monotonic() + self.server.deadline_s
            while not sent.wait(_BEFORE_RESUME_S) and not asked.done and time.monotonic() < until:
                pass
            asked.wait(_BEFORE_RESUME_S)
        if wake is not None:
            wake()
        self.unsafe = False
        self.phase("resume", "/resume")
        self.server.joined = False
        if self._paused_at is not None:
            self.seconds["paused"] = time.perf_counter() - self._paused_at
        if asked is not None:
            started = time.perf_counter()
            self.probe = self.server.within(asked, "verify")
            self.seconds["verify"] = time.perf_counter() - started

    def given_up(self, error: WeightSyncError) -> WeightSyncError:
        """The error as it is to be raised; a server whose weights are whole and old keeps serving them."""
        if UNCHANGED in error.reason and not self._was_unsafe:
            self.unsafe = False
        safe = not self.unsafe
        if safe and not error.gone:
            self.server.try_resume()
        paused = not safe and not error.gone
        flags = {"paused": paused, "gone": error.gone, "late": error.late, "stuck": error.stuck}
        return WeightSyncError(error.server, error.phase, error.reason, **flags)


def slowest(updates: Sequence[ServerUpdate]) -> dict[str, float]:
    """Seconds of each phase of the server that took longest in it."""
    seconds: dict[str, float] = {}
    for update in updates:
        for phase, length in update.seconds.items():
            seconds[phase] = max(length, seconds.get(phase, 0.0))
    return seconds


def each(
    updates: Sequence[ServerUpdate],
    phase: str,
    work: Callable[[ServerUpdate], T],
    missing: list[WeightSyncError] | None = None,
    phases: int = 1,
) -> dict[str, T]:
    """`work` for every server at the same time; what it returned, by address.

    phases: how many deadlines it may take. A server that is gone is added to `missing`, where that is given; else its
    error is raised, as every other is, when all have ended or are late.
    """
    calls = [(update, RouteCall(partial(work, update))) for update in updates]
    started = time.monotonic()
    found: dict[str, T] = {}
    failed: WeightSyncError | None = None
    for update, call in calls:
        try:
            late = started + phases * update.server.deadline_s + 1.0
            found[update.server.url] = update.server.within(call, phase, late)
        except WeightSyncError as error:
            if missing is not None and error.gone:
                missing.append(error)
            else:
                failed = failed or error
    if failed is not None:
        raise failed
    return found


def without(missing: Sequence[WeightSyncError], updates: Sequence[ServerUpdate]) -> list[ServerUpdate]:
    """Those whose servers are not missing."""
    gone = {error.server for error in missing}
    return [update for update in updates if update.server.url not in gone]


def given_up(updates: Sequence[ServerUpdate], error: WeightSyncError) -> WeightSyncError:
    """The error of one server as it is to be raised, when servers are updated in step.

    Those whose weights are whole continue; the others stay paused and are named too. Where it cannot be known which one
    a collective waited for, `error.server` has them all.
    """
    named = error.server.split(", ")
    gone = named if error.gone else []
    safe = [update.server for update in updates if not update.unsafe and update.server.url not in gone]
    resumed = [RouteCall(server.try_resume) for server in safe]
    for call in resumed:
        call.wait(_RESUME_S / max(len(resumed), 1))
    paused = [update.server.url for update in updates if update.unsafe]
    others = [url for url in paused if url not in named]
    reason = error.reason + (f"; half-loaded and paused as well, restart them: {', '.join(others)}" if others else "")
    return WeightSyncError(
        error.server,
        error.phase,
        reason,
        paused=not error.gone and any(url in paused for url in named),
        gone=error.gone,
        late=error.late,
        stuck=error.stuck,
    )
