"""Run inside user-mode Linux by the tests: judges the requests of one JSON file, writes verdicts to another.

Each request names the group that its judge is in: the hierarchy's root, or one in an outer group with 150 MB.
`unwatched`: the watch does not look, so that what ends a test is the kernel's roof.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

from verifier_app.judge import Judge, JudgeError

GROUPS = Path("/sys/fs/cgroup")


def outer_group() -> Path:
    """A group with a limit, and in it one for a judge."""
    outer = GROUPS / "outer"
    if not outer.exists():
        (outer / "own").mkdir(parents=True)
        (outer / "cgroup.subtree_control").write_text("+memory")
        (outer / "memory.max").write_text(str(150 << 20))
    return outer / "own"


def judged(judge: Judge, request: dict[str, Any]) -> dict[str, Any]:
    never = 1000.0 if request.pop("unwatched", False) else 0.05
    with (
        mock.patch("verifier_app.judge.watchdog.FIRST_LOOK_S", never),
        mock.patch("verifier_app.judge.watchdog.LOOK_EVERY_S", never),
    ):
        try:
            return dict(judge.verify(request))
        except JudgeError as error:
            return {"status": error.kind, "message": error.message}


def main(requests: str, answers: str) -> None:
    found: dict[str, Any] = {}
    for place in ("root", "outer"):
        with open(requests) as file:
            here = {name: request for name, request in json.load(file).items() if request.pop("group") == place}
        (outer_group() if place == "outer" else GROUPS).joinpath("cgroup.procs").write_text(str(os.getpid()))
        with Judge("strong") as judge:
            found |= {name: judged(judge, request) for name, request in here.items()}
    left = [folder for folder, _, _ in os.walk(GROUPS) if "judge-" in folder]
    with open(answers, "w") as file:
        json.dump({"verdicts": found, "left": left}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
