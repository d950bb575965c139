"""A kernel with control groups of version 2: it counts a test's memory itself, and a roof holds between two looks."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.uml import needs_uml, run_inside

RIGHT = "print(int(input()) * 2)"
# each child shows by a byte that its memory is touched, and leaves when all of them hold theirs
TOGETHER = """
import mmap, os
def touch(held):
    for at in range(0, len(held), 4096): held[at] = 1
def together(count, action):
    ready, tell = os.pipe()
    wait, go = os.pipe()
    for _ in range(count):
        if os.fork() == 0:
            os.close(go)
            held = action()
            os.write(tell, b"1")
            os.read(wait, 1)
            os._exit(0)
    for _ in range(count): os.read(ready, 1)
    os.close(go)
    for _ in range(count): os.wait()
"""
MANY = TOGETHER + "together(6, lambda: [held := bytearray(30 << 20), touch(held)])\nprint(6)"
FREED = f"""{TOGETHER}
def freed():
    held = mmap.mmap(-1, 40 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    touch(held)
    held.madvise(8)  # MADV_FREE: the kernel may take the pages, until they are written to again
    touch(held)
    return held
together(3, freed)
print(6)"""
PIPES = """
import os
held = bytearray(b"1" * (40 << 20))  # fits
for _ in range(450):
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True: os.write(writer, bytes(65536))
    except BlockingIOError: pass
import time
time.sleep(1)
print(6)"""
READER = """
import os, time
read = 0
for folder, _, names in os.walk("/usr/lib"):
    for name in names:
        try:
            with open(os.path.join(folder, name), "rb") as file:
                while piece := file.read(1 << 20): read += len(piece)
        except OSError: pass
    if read > 200 << 20: break
time.sleep(0.3)
print(6)"""
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "right": ("accepted", {"code": RIGHT}),
    "many": ("memory_limit_exceeded", {"code": MANY}),
    "after_many": ("accepted", {"code": RIGHT}),
    "many_between_two_looks": ("memory_limit_exceeded", {"code": MANY, "unwatched": True}),
    "after_the_roof": ("accepted", {"code": RIGHT}),
    "memory_marked_as_free": ("memory_limit_exceeded", {"code": FREED}),
    "pipes": ("memory_limit_exceeded", {"code": PIPES}),
    "files_that_are_read": ("accepted", {"code": READER}),
    "right_in_outer": ("accepted", {"code": RIGHT, "group": "outer"}),
    # 256 MB are allowed, 150 MB are there: no fault of the program's
    "outer_group_is_full": (
        "sandbox_failed",
        {"code": MANY, "group": "outer", "memory_limit_mb": 256, "unwatched": True},
    ),
    "after_outer_is_full": ("accepted", {"code": RIGHT, "group": "outer"}),
}


@needs_uml
@pytest.mark.slow(reason="a kernel starts, and all that runs in it is some fifty times as slow")
def test_the_kernels_count_and_roof_decide_and_only_the_programs_own_excess_is_its_verdict(tmp_path: Path) -> None:
    default = {"tests": [{"input": "3", "output": "6"}], "memory_limit_mb": 64, "time_limit_s": 60.0, "group": "root"}
    requests = {name: default | request for name, (_, request) in CASES.items()}
    (tmp_path / "requests").write_text(json.dumps(requests))
    command = [sys.executable, "-B", "-m", "tests.uml.judged_inside", "/srv/requests", "/srv/answers"]
    output = run_inside(tmp_path, command, timeout_s=280)
    assert (tmp_path / "answers").exists(), output
    found = json.loads((tmp_path / "answers").read_text())
    statuses = {name: verdict["status"] for name, verdict in found["verdicts"].items()}
    assert statuses == {name: status for name, (status, _) in CASES.items()}, found
    assert "cgroup2" in found["verdicts"]["right"]["isolation"]["layers"]
    assert found["left"] == []
