"""As many judges as cores behind an asyncio interface: a crash of one takes no other rollout down.

async with JudgePool(workers=2) as pool:
    verdict = await pool.verify(request)
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

from verifier_app.judge.default_limits import TIME_LIMIT_S
from verifier_app.judge.protocol import MAX_TESTS, MAX_TIME_LIMIT_S, JudgeError
from verifier_app.judge.verdict import Verdict
from verifier_app.judge.watchdog import PATIENCE
from verifier_app.judge.worker import HEADER, frame

STOP_TIMEOUT_S = 10.0
GRACE_S = 240.0  # beyond what a rollout's tests may take: starting, compiling (150 s where no core is free), comparing
QUEUE_PER_WORKER = 16
HOME = str(Path(__file__).resolve().parents[2])


class _Died(Exception):
    """The judge process ended under a request."""


class _Worker:
    """One judge process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def ask(self, payload: bytes) -> dict[str, Any]:
        """One request, one answer; _Died when the process ends before."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            if self.process.stdin.is_closing():
                raise _Died
            self.process.stdin.write(payload)
            await self.process.stdin.drain()
            header = await self.process.stdout.readexactly(HEADER)
            body = await self.process.stdout.readexactly(int.from_bytes(header, "big"))
        except (ConnectionError, asyncio.IncompleteReadError):
            raise _Died from None
        answer: dict[str, Any] = json.loads(body)
        return answer

    async def stop(self) -> None:
        """End it with its processes, whatever it is doing; by force when it does not answer."""
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        assert self.process.stdin is not None
        with contextlib.suppress(RuntimeError):  # uvloop, where the pipe is gone already
            self.process.stdin.close()
        try:
            await asyncio.wait_for(self.process.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            self.process.kill()  # its template sees the end of its socket and ends the rest
            await self.process.wait()


class JudgePool:
    """A pool of judge processes.

    workers: how many (None: the cores this process may use). queue: how many requests may wait with their data in
    memory; further callers wait at the door. tests_dir: the store for tests_ref (None: VERIFIER_TESTS_DIR).
    require_isolation: "any" or "strong". deny: as in Judge.
    """

    def __init__(
        self,
        workers: int | None = None,
        queue: int | None = None,
        tests_dir: str | os.PathLike[str] | None = None,
        require_isolation: str | None = None,
        deny: tuple[str, ...] = (),
    ) -> None:
        count = workers if workers is not None else len(os.sched_getaffinity(0))
        if count < 1:
            raise ValueError(f"workers is {count}: give at least 1")
        if queue is not None and queue < 0:
            raise ValueError(f"queue is {queue}: give 0 or more")
        self.workers = count
        self.busy_s = 0.0
        """Time that judges had a request, summed over the judges; a request counts when it ends."""
        self._door = asyncio.Semaphore(count + (QUEUE_PER_WORKER * count if queue is None else queue))
        self._config = json.dumps(
            {
                "tests_dir": None if tests_dir is None else str(Path(tests_dir).resolve()),
                "require_isolation": require_isolation,
                "deny": list(deny),
            }
        )
        self._idle: asyncio.Queue[_Worker | None] = asyncio.Queue()
        self._all: set[_Worker] = set()
        self._open = False
        self._cleanup: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> JudgePool:
        for _ in range(self.workers):
            self._idle.put_nowait(None)  # started at first use
        self._open = True
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End every judge; running rollouts end with JudgeError closed. Nothing survives."""
        self._open = False
        workers, self._all = list(self._all), set()
        await asyncio.gather(*(worker.stop() for worker in workers))
        await asyncio.gather(*self._cleanup)

    async def verify(self, request: dict[str, Any]) -> Verdict:
        """The verdict of one rollout. JudgeError for faults on our side; a judge that dies is replaced, the request
        retried once. A cancelled call stops its judge, which is replaced too."""
        async with self._door:
            return await self._verify(request)

    async def _verify(self, request: dict[str, Any]) -> Verdict:
        try:
            payload = await asyncio.to_thread(frame, {"request": request})
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise JudgeError("bad_request", f"request: is not plain JSON ({error}); give plain types") from None
        for _ in range(2):
            slot = await self._idle.get()
            worker = None
            try:
                if not self._open:
                    raise JudgeError("closed", "the pool was closed")
                worker = slot or await self._start()
                started = time.monotonic()
                try:
                    answer = await asyncio.wait_for(worker.ask(payload), longest(request))
                finally:
                    self.busy_s += time.monotonic() - started
            except (_Died, TimeoutError):
                self._discard(worker)
                worker = None
                if not self._open:
                    raise JudgeError("closed", "the pool was closed under this request") from None
                continue
            except BaseException:  # a judge that may still be answering this request takes no other one
                self._discard(worker)
                worker = None
                raise
            finally:
                self._idle.put_nowait(worker)
            if "error" in answer:
                raise JudgeError(answer["error"]["kind"], answer["error"]["message"])
            verdict: Verdict = answer["verdict"]
            return verdict
        raise JudgeError("judge_died", "two judge processes ended under this request")

    def _discard(self, worker: _Worker | None) -> None:
        """Stop a worker in the background; its slot is empty from now on."""
        if worker is not None and worker in self._all:
            self._all.discard(worker)
            task = asyncio.create_task(worker.stop())
            self._cleanup.add(task)
            task.add_done_callback(self._cleanup.discard)

    async def _start(self) -> _Worker:
        path = os.pathsep.join(part for part in (HOME, os.environ.get("PYTHONPATH")) if part)
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "verifier_app.judge.worker"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": path, "VERIFIER_JUDGE_WORKER": self._config},
                start_new_session=True,
            )
        except OSError as error:
            raise JudgeError("sandbox_failed", f"a judge process does not start: {error}") from None
        worker = _Worker(process)
        self._all.add(worker)
        return worker


def longest(request: dict[str, Any]) -> float | None:
    """Seconds after which an answer cannot come any more by the request's own limits."""
    limit, tests = request.get("time_limit_s", TIME_LIMIT_S), request.get("tests") or request.get("tests_ref")
    count = tests.get("count", 1) if isinstance(tests, dict) else len(tests) if isinstance(tests, list) else 1
    if not isinstance(limit, (int, float)) or not isinstance(count, int):
        return GRACE_S
    # What no request may ask for is refused by the judge: until then any time will do.
    limit, count = min(max(limit, 0), MAX_TIME_LIMIT_S), min(max(count, 0), MAX_TESTS)
    return GRACE_S if math.isnan(limit) else limit * PATIENCE * count + GRACE_S
