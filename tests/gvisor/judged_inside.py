"""Run inside gVisor by the tests: judges the requests of one JSON file, writes verdicts to another.

Beside it, an open Unix socket in /run: who connects is counted. So are the processes that are left in the end.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from typing import Any

from verifier_app.judge import Judge, JudgeError


def main(requests: str, answers: str) -> None:
    door = socket.socket(socket.AF_UNIX)
    door.bind("/run/open")
    os.chmod("/run/open", 0o777)
    door.listen()
    visitors: list[str] = []

    def answer() -> None:
        while True:
            guest, _ = door.accept()
            visitors.append("one")
            guest.sendall(b"welcome")
            guest.close()

    threading.Thread(target=answer, daemon=True).start()
    found: dict[str, Any] = {}
    with open(requests) as file, Judge("strong") as judge:
        for name, request in json.load(file).items():
            try:
                found[name] = judge.verify(request)
            except JudgeError as error:
                found[name] = {"status": f"{error.kind}: {error.message}"}
        left = left_over(judge)
    with open(answers, "w") as file:
        json.dump({"verdicts": found, "visitors": len(visitors), "left": left}, file)


def left_over(judge: Judge) -> int:
    """Processes beside this one and the templates; this kernel takes seconds to end hundreds of them."""
    give_up = time.monotonic() + 60
    while True:
        left = sum(name.isdigit() for name in os.listdir("/proc")) - 1 - len(judge._templates)
        if not left or time.monotonic() > give_up:
            return left
        time.sleep(0.1)


if __name__ == "__main__":
    main(*sys.argv[1:])
