"""What happens inside a container: the judge, its test store, and every fault as data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from verifier_app.judge import Judge, JudgeError, TestStore
from verifier_app.judge.protocol import judge_fault

# Below a folder that only root may enter: a program runs under a uid of its own and must not read its hidden tests.
TESTS_DIR = "/root/livecode/tests"


def judge_all(requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """{"verdict"} or {"error": {"kind", "message"}} for each request, in order; plain JSON types, no exception."""
    try:
        store = guarded_store(os.environ.get("VERIFIER_TESTS_DIR", TESTS_DIR))
        with Judge() as judge:
            return [_judge(judge, store, request) for request in requests]
    except Exception as error:
        message = f"the container cannot judge: {type(error).__name__}: {error}"
        return [{"error": {"kind": "sandbox_failed", "message": message}} for _ in requests]


def guarded_store(folder: str) -> TestStore:
    """The store below a folder that nobody but this user may enter."""
    parent = Path(folder).parent
    if parent.is_dir():
        parent.chmod(0o700)
    return TestStore(folder)


def _judge(judge: Judge, store: TestStore, request: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"verdict": judge.verify(request, store)}
    except JudgeError as error:
        fault = error
    except Exception as error:  # of this program alone: the others keep their verdicts
        fault = judge_fault(error)
    return {"error": {"kind": fault.kind, "message": fault.message}}
