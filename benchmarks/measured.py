"""The environment as `atropos run-env livecode serve` runs it, with a heartbeat in its event loop.

    python -m benchmarks.measured OUT.json --config FILE [--env.option value ...]

The product is unchanged: its coroutine runs beside one that sleeps for ten milliseconds at a time. How much later than
asked it wakes is the time in which the loop did not turn. Other processes on the machine steal from that: `loop_thread`
is the part of it for which the loop's thread used CPU time, `own` that of all threads of this process (one that holds
the interpreter in C code blocks the loop; one that compresses does not, and is in it too). Lags count from the first
group that begins. A thread looks every 20 ms, and notes where the loop's thread is while a turn takes longer than a
tenth of a second. With WITH_REFERENCE=FILE.json in its environment it also asks the environment's own verifier for the
verdict on that request every few seconds, and looks at no stacks. OUT.json is written when the environment ends.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import resource
import sys
import threading
import time
from array import array
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import FrameType
from typing import Any

from environments.livecode import command, equipment
from environments.livecode.config import LivecodeEnvConfig, RunConfig
from environments.livecode.environment import LivecodeEnv
from environments.livecode.recovery.progress import OpenGroup
from environments.livecode.serving import Serving
from environments.livecode.verification.base import Verifier, VerifierError

PERIOD_S = 0.01
REFERENCE_S = 5.0
LONG_S = 0.1
HOME = str(Path(__file__).resolve().parents[1]) + os.sep


def rss_mb(pid: int | str = "self") -> float:
    """Resident memory of a process; 0 for one that is gone."""
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize() / 1e6
    except (FileNotFoundError, ProcessLookupError):
        return 0.0


def open_files(pid: int | str = "self") -> int:
    """Open descriptors of a process; 0 for one that is gone."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except (FileNotFoundError, ProcessLookupError):
        return 0


class Heartbeat:
    """Lags of the loop that `beat` runs in, in seconds; memory and files once a second."""

    def __init__(self, *, stacks: bool = True) -> None:
        """stacks: notes where the loop is while it is late; not for hours, frames of a running thread are frail."""
        self._stacks = stacks
        self.lags, self.own, self.thread = array("d"), array("d"), array("d")
        self.series: list[tuple[float, float, int]] = []
        self.where: Counter[str] = Counter()
        self.collections = array("d")
        self.started = time.monotonic()
        self.in_flight = False  # nothing is late before the first group begins
        self.worst: list[tuple[float, float, float]] = []
        self.references: list[tuple[float, float, float]] = []
        self._due = float("inf")
        self._loop_thread = 0
        self._collecting = 0.0

    async def beat(self) -> None:
        """Until it is cancelled."""
        self._loop_thread = threading.get_ident()
        gc.callbacks.append(self._collected)
        threading.Thread(target=self._watch, daemon=True).start()
        while True:
            wall, thread, process = time.monotonic(), time.thread_time(), time.process_time()
            self._due = wall + PERIOD_S
            await asyncio.sleep(PERIOD_S)
            lag = time.monotonic() - self._due
            if not self.in_flight:
                continue
            self.lags.append(lag)
            self.own.append(min(lag, time.process_time() - process))
            self.worst = sorted([*self.worst, (self.own[-1], lag, wall - self.started)])[-5:]
            self.thread.append(min(lag, time.thread_time() - thread))

    async def refer(self, verifier: Verifier, request: dict[str, Any]) -> None:
        """Verdicts on one request, one after the other: (seconds from the start, seconds it took, CPU of its tests)."""
        while True:
            await asyncio.sleep(REFERENCE_S)
            began = time.monotonic()
            try:
                verdict = await verifier.verify(request)
            except VerifierError:  # a loaded host: the next one is as good
                continue
            took = time.monotonic() - began
            cpu = sum(test["cpu_s"] for test in verdict["tests"])
            self.references.append((round(began - self.started, 1), round(took, 4), round(cpu, 4)))

    def _collected(self, phase: str, info: dict[str, int]) -> None:
        if info["generation"] == 2 and self.in_flight:
            if phase == "start":
                self._collecting = time.thread_time()
            else:
                self.collections.append(time.thread_time() - (self._collecting or time.thread_time()))

    def _watch(self) -> None:
        next_sample = time.monotonic()
        while True:
            time.sleep(0.02)
            now = time.monotonic()
            if self._stacks and self.in_flight and now - self._due > LONG_S:
                frames = sys._current_frames()
                self.where[place(frames.get(self._loop_thread))] += 1
                for thread, frame in frames.items():
                    if thread not in (self._loop_thread, threading.get_ident()) and (there := place(frame, False)):
                        self.where[f"meanwhile in a thread: {there}"] += 1
            if now >= next_sample:
                next_sample = now + 1.0
                self.series.append((round(now - self.started, 1), round(rss_mb(), 1), open_files()))

    def result(self) -> dict[str, Any]:
        """Figures for the whole run; seconds and MB."""
        return {
            "heartbeats": len(self.lags),
            "lag_s": spread(self.lags),
            "own_lag_s": spread(self.own),
            "loop_thread_lag_s": spread(self.thread),
            "worst": [
                {"own_s": round(own, 4), "lag_s": round(lag, 4), "at_s": round(at)} for own, lag, at in self.worst
            ],
            "full_collections": len(self.collections),
            "longest_collection_cpu_s": round(max(self.collections, default=0.0), 4),
            "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6, 1),
            "cpu_s": round(time.process_time(), 1),
            "samples_while_blocked": dict(self.where.most_common(12)),
            "series": self.series,
            "references": self.references,
        }


def place(frame: FrameType | None, always: bool = True) -> str:
    """The innermost function of this project on a stack, and the innermost of all; empty where none is the project's.

    A frame that its thread leaves meanwhile may have no code any more.
    """
    innermost = ""
    while isinstance(frame, FrameType):
        path, name = frame.f_code.co_filename, frame.f_code.co_name
        innermost = innermost or f"{Path(path).stem}.{name}"
        if path.startswith(HOME) and "site-packages" not in path and Path(path).stem != "measured":
            return f"{Path(path).stem}.{name} ({innermost})"
        frame = frame.f_back
    return innermost if always else ""


def spread(values: array[float]) -> dict[str, float]:
    """Median, 99.9th percentile and maximum."""
    ordered = sorted(values) or [0.0]
    names = {"p50": 0.5, "p999": 0.999, "max": 1.0}
    return {name: round(ordered[int(share * (len(ordered) - 1))], 4) for name, share in names.items()}


Mode = Callable[[type[LivecodeEnv], RunConfig], Awaitable[Any]]


def with_heartbeat(mode: Mode, heart: Heartbeat, out: Path, reference: dict[str, Any] | None = None) -> Mode:
    """The mode, measured."""

    async def measured(env_class: type[LivecodeEnv], config: RunConfig) -> Any:
        tasks = [asyncio.create_task(heart.beat())]
        product: Callable[[LivecodeEnvConfig], Verifier] = vars(equipment)["build_verifier"]

        def kept(config: LivecodeEnvConfig) -> Verifier:
            verifier = product(config)
            if reference is not None:
                tasks.append(asyncio.create_task(heart.refer(verifier, reference)))
            return verifier

        begin = Serving.begin

        def begun(serving: Serving, group: OpenGroup) -> None:
            heart.in_flight = True
            begin(serving, group)

        vars(equipment)["build_verifier"] = kept
        Serving.begin = begun  # type: ignore[method-assign, assignment]
        try:
            return await mode(env_class, config)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.to_thread(out.write_text, json.dumps(heart.result()))

    return measured


def main() -> int:
    """The environment's own exit code."""
    reference = os.environ.get("WITH_REFERENCE")
    request = json.loads(Path(reference).read_text()) if reference else None
    modes: dict[str, Any] = command.MODES
    modes["serve"] = with_heartbeat(modes["serve"], Heartbeat(stacks=request is None), Path(sys.argv[1]), request)
    return command.run_command(LivecodeEnv, "serve", sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
