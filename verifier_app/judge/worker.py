"""A judge process of the pool: `python -m verifier_app.judge.worker`.

Frames on stdin and stdout: 4 bytes of length, then JSON. A request is {"request": ...}; an answer is {"verdict": ...}
or {"error": {"kind", "message"}}. The process ends when its stdin does.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any, BinaryIO

from verifier_app.judge.judging import Judge, default_store
from verifier_app.judge.protocol import JudgeError, judge_fault
from verifier_app.judge.store import TestStore

HEADER = 4


def read_frame(stream: BinaryIO) -> bytes | None:
    """The next frame's body, None at the end of the stream."""
    header = stream.read(HEADER)
    if len(header) < HEADER:
        return None
    return stream.read(int.from_bytes(header, "big"))


def frame(value: Any) -> bytes:
    """A value as a frame."""
    body = json.dumps(value).encode()
    return len(body).to_bytes(HEADER, "big") + body


def answer_to(judge: Judge, store: TestStore | None, body: bytes) -> bytes:
    """The answer's frame, whatever happens to this request."""
    try:
        return frame({"verdict": judge.verify(json.loads(body)["request"], store)})
    except JudgeError as error:
        fault = error
    except Exception as error:
        fault = judge_fault(error)
    return frame({"error": {"kind": fault.kind, "message": fault.message}})


def main() -> None:
    """Judge what comes, one after the other."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # leaves through the judge's close, with all its processes
    config = json.loads(os.environ.pop("VERIFIER_JUDGE_WORKER", "{}"))
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    store = TestStore(config["tests_dir"]) if config.get("tests_dir") else default_store()
    with Judge(config.get("require_isolation"), tuple(config.get("deny", ()))) as judge:
        if config.get("require_isolation") == "strong":
            judge.template()
        while (body := read_frame(requests)) is not None:
            answers.write(answer_to(judge, store, body))
            answers.flush()


if __name__ == "__main__":
    main()
