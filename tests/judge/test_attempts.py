"""What a program tries and the kernel refuses is counted in its verdict, not forged, and keeps no judge busy."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from verifier_app.judge import Judge
from verifier_app.judge.refusals import ALL_KINDS, MOST
from verifier_app.judge.verdict import Verdict

ANSWER = [{"input": "", "output": "3"}]
REFUSED = """
import ctypes, os, resource, socket
libc = ctypes.CDLL(None, use_errno=True)
def refused(call, number):
    ctypes.set_errno(0)
    assert call() < 0 and ctypes.get_errno() == number, ctypes.get_errno()
for _ in range(3):
    try: socket.socket()
    except PermissionError as error: assert error.errno == 13
for family in (socket.AF_INET, socket.AF_INET6): refused(lambda: libc.socket(family, 1, 0), 13)
refused(lambda: libc.unshare(0x10000000), 1)
refused(lambda: libc.mount(b"a", b"/tmp", b"tmpfs", 0, None), 1)
refused(lambda: libc.ptrace(16, os.getpid(), None, None), 1)
refused(lambda: libc.shmget(5, 4096, 0o1600), 1)
refused(lambda: libc.setpriority(0, 0, 5), 1)
refused(lambda: libc.personality(0), 1)
print(3)
"""
SEEN = {"sockets": 5, "namespaces": 2, "other_processes": 1, "shared_memory": 1, "priorities": 1, "kernel": 1}
HONEST = {
    "plain": "print(3)",
    "threads and pools": """
import asyncio, os
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import Pool, Queue
with ThreadPoolExecutor(8) as threads: assert sum(threads.map(int, "12")) == 3
async def main(): return await asyncio.get_running_loop().run_in_executor(None, int, "3")
assert asyncio.run(main()) == 3
with Pool(2) as pool: print(sum(pool.map(int, "12")))
""",
    "processes": "import subprocess\nprint(subprocess.run(['echo', '3'], capture_output=True, text=True).stdout)",
    "numpy": "import numpy as np\nprint(int((np.ones((3, 3)) @ np.ones(3))[0]))",
    "files": "import tempfile\nwith tempfile.TemporaryFile() as f: f.write(b'3'); f.seek(0); print(int(f.read()))",
}
FLOOD = """
import os, socket, time
begun = time.time()
for _ in range({processes}):
    if os.fork() == 0:
        for _ in range(20_000):
            try: socket.socket()
            except OSError: pass
        os._exit(0)
for _ in range({processes}): os.wait()
print(3)
"""


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with Judge() as judge:
        yield judge


def judged(judge: Judge, code: str, **fields: Any) -> Verdict:
    return judge.verify({"code": code, "tests": ANSWER, **fields})


@pytest.fixture(autouse=True)
def told(judge: Judge) -> None:
    if judged(judge, "print(3)")["attempts"] is None:
        pytest.skip("this kernel tells nobody what its filter refuses")


def test_refused_calls_are_counted_by_kind_and_fail_as_ever(judge: Judge) -> None:
    seen = judged(judge, REFUSED)
    assert (seen["status"], seen["attempts"]) == ("accepted", SEEN), seen["message"]
    assert set(SEEN) < set(ALL_KINDS)


def test_the_counts_of_all_tests_are_added_up_and_begin_again_with_the_next_program(judge: Judge) -> None:
    twice = judge.verify({"code": REFUSED, "tests": ANSWER * 2})
    assert twice["attempts"] == {kind: 2 * count for kind, count in SEEN.items()}
    assert judged(judge, "print(3)")["attempts"] == {}


@pytest.mark.parametrize("code", HONEST.values(), ids=HONEST)
def test_an_honest_program_tries_nothing(judge: Judge, code: str) -> None:
    seen = judged(judge, code)
    assert (seen["status"], seen["attempts"]) == ("accepted", {}), seen["message"]


def test_calls_that_fail_count_as_those_of_a_program_that_passes(judge: Judge) -> None:
    seen = judged(judge, "import socket\nsocket.create_connection(('127.0.0.1', 80))")
    assert (seen["status"], seen["attempts"]) == ("runtime_error", {"sockets": 1})
    looped = judged(
        judge, "import socket\ntry: socket.socket()\nexcept OSError: pass\nwhile True: pass", time_limit_s=0.5
    )
    assert (looped["status"], looped["attempts"]) == ("time_limit_exceeded", {"sockets": 1})


@pytest.mark.parametrize("processes", [1, 8])
def test_a_flood_of_refused_calls_costs_the_judge_little_and_is_a_verdict(judge: Judge, processes: int) -> None:
    before = time.process_time()
    seen = judged(judge, FLOOD.format(processes=processes), time_limit_s=60)
    assert (seen["status"], seen["attempts"]) == ("accepted", {"sockets": MOST}), seen["message"]
    assert time.process_time() - before < 1.0  # 256 answers take a hundredth of it, 20,000 would take more
    assert judged(judge, REFUSED)["attempts"] == SEEN


BOMB = """
import os, time
for _ in range(250):
    if os.fork() == 0:
        time.sleep(30)
        os._exit(0)
time.sleep(30)
"""


def test_a_crowd_that_is_stopped_is_an_attempt(judge: Judge) -> None:
    seen = judged(judge, BOMB)
    assert (seen["status"], seen["attempts"]) == ("runtime_error", {"processes": 1})


def test_a_call_that_waits_when_its_process_dies_disturbs_no_later_test(judge: Judge) -> None:
    code = """
import os, socket, threading
def call():
    while True:
        try: socket.socket()
        except OSError: pass
for _ in range(4): threading.Thread(target=call, daemon=True).start()
print(3, flush=True)
os._exit(0)
"""
    seen = judge.verify({"code": code, "tests": ANSWER * 6})
    assert seen["status"] == "accepted", seen["message"]
    assert judged(judge, REFUSED)["attempts"] == SEEN


def test_what_a_program_prints_of_attempts_is_output(judge: Judge) -> None:
    shown = "import sys\nprint('attempts: {}', file=sys.stderr)\nprint(3)\n" + REFUSED.replace("print(3)", "")
    assert judged(judge, shown)["attempts"] == SEEN


def test_no_listener_is_open_in_a_test(judge: Judge) -> None:
    code = """
import os
for fd in os.listdir("/proc/self/fd"):
    try:
        if "seccomp" in os.readlink(f"/proc/self/fd/{fd}"): print("open")
    except OSError: pass
print(3)
"""
    assert judged(judge, code)["status"] == "accepted"


def test_where_the_kernel_tells_nobody_nothing_is_counted() -> None:
    with Judge(deny=("seccomp",)) as poor:
        assert judged(poor, "print(3)")["attempts"] is None
