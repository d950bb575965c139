"""What happens inside a container: the judge, its test store, and every fault as data."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from verifier_app.judge import Judge, JudgeError, TestStore
from verifier_app.judge.protocol import judge_fault

# Below a folder that only root may enter: a program runs under a uid of its own and must not read its hidden tests.
TESTS_DIR = "/root/livecode/tests"


CALL_MARGIN_S = 30.0  # of a call's time: for the judge's end and the answer's way


class Clock:
    """The time that Modal gives this call (VERIFIER_TIMEOUT_S in the image), less what its answer needs."""

    def __init__(self) -> None:
        given = os.environ.get("VERIFIER_TIMEOUT_S")
        self.timeout_s = float(given) if given else None
        self._end = None if self.timeout_s is None else time.monotonic() + self.timeout_s - CALL_MARGIN_S

    def left_s(self) -> float:
        return float("inf") if self._end is None else self._end - time.monotonic()


def judge_all(requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """{"verdict"} or {"error": {"kind", "message"}} for each request, in order; plain JSON types, no exception.

    Beside it "timeout_s", after which Modal ends a call. A host that offers less than strong isolation judges nothing.
    """
    clock = Clock()
    try:
        store = guarded_store(os.environ.get("VERIFIER_TESTS_DIR", TESTS_DIR))
        with Judge("strong") as judge:
            answers = [
                _judge(judge, store, request, clock.left_s(), first=not index) for index, request in enumerate(requests)
            ]
    except Exception as error:
        message = f"the container cannot judge: {type(error).__name__}: {error}"
        answers = [_error("sandbox_failed", message) for _ in requests]
    return [answer | {"timeout_s": clock.timeout_s} for answer in answers]


def _error(kind: str, message: str) -> dict[str, Any]:
    return {"error": {"kind": kind, "message": message}}


def guarded_store(folder: str) -> TestStore:
    """The store below a folder that nobody but this user may enter."""
    parent = Path(folder).parent
    if parent.is_dir():
        parent.chmod(0o700)
    return TestStore(folder)


def _judge(judge: Judge, store: TestStore, request: dict[str, Any], left_s: float, *, first: bool) -> dict[str, Any]:
    wanted = request.get("deadline_s")
    short = isinstance(wanted, int | float) and wanted > left_s
    if short and not first:
        return _error("out_of_time", f"{left_s:.0f} s of this call are left, the program may take {wanted:.0f} s")
    if short:
        request = request | {"deadline_s": max(1.0, left_s)}
    try:
        verdict = judge.verify(request, store)
    except JudgeError as error:
        return _error(error.kind, error.message)
    except Exception as error:  # of this program alone: the others keep their verdicts
        fault = judge_fault(error)
        return _error(fault.kind, fault.message)
    # Only the rollout's deadline is a time limit without a test that passed it.
    if short and verdict["status"] == "time_limit_exceeded" and verdict["failed_test"] is None:
        return _error("deadline_too_short", f"the program may take {wanted:.0f} s, a call ends: VERIFIER_TIMEOUT_S")
    return {"verdict": verdict}
