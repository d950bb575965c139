"""Time is counted fairly: a busy host is no fault of the program's, and a slow program is none of the host's."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

import psutil
import pytest

from verifier_app.judge import Judge, JudgeError
from verifier_app.judge import watchdog as watch_module
from verifier_app.judge.pool import JudgePool
from verifier_app.judge.process_tree import ProcessTreeSample, TooManyProcesses, proportional_bytes
from verifier_app.judge.watchdog import Heartbeat, Watchdog


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """So many processes that take what they get of the cores."""
    loops = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def burn(cpu_s: float) -> str:
    """A program that takes this much CPU time."""
    return f"import time\nwhile time.process_time() < {cpu_s}: pass\nprint(1)"


TESTS = [{"input": "", "output": "1"}]


def test_waiting_for_a_core_is_not_the_programs_time() -> None:
    with Judge() as judge, busy_loops(6):
        verdict = judge.verify({"code": burn(0.8), "tests": TESTS, "time_limit_s": 1.2})
    assert verdict["status"] == "accepted", verdict["message"]
    assert verdict["tests"][0]["wall_s"] > verdict["tests"][0]["cpu_s"]


def test_sleeping_is_the_programs_time_on_a_busy_host_too() -> None:
    with Judge() as judge, busy_loops(4):
        verdict = judge.verify({"code": "import time; time.sleep(9)", "tests": TESTS, "time_limit_s": 0.5})
    assert verdict["status"] == "time_limit_exceeded"


def test_many_busy_processes_exceed_the_limit_by_their_sum() -> None:
    code = "import os\nfor _ in range(3): os.fork()\nwhile True: pass"
    with Judge() as judge:
        verdict = judge.verify({"code": code, "tests": TESTS, "time_limit_s": 1})
    assert verdict["status"] == "time_limit_exceeded"


def test_a_test_beyond_the_hosts_patience_is_an_error_and_never_a_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "PATIENCE", 0.1)  # far too little, so that it needs no starving host
    with Judge() as judge, pytest.raises(JudgeError) as caught:
        judge.verify({"code": burn(1.4), "tests": TESTS, "time_limit_s": 3})
    assert caught.value.kind == "host_overloaded"


def interval(monkeypatch: pytest.MonkeyPatch, seen: ProcessTreeSample, share: float = 0.0, there: bool = True) -> float:
    """What one look adds to the starved time of a watch that started a second ago, its test seen before or not."""
    monkeypatch.setattr(watch_module, "look", lambda *_: seen)
    monkeypatch.setattr(Heartbeat, "_spin", staticmethod(lambda: 1.0))
    monkeypatch.setattr(watch_module, "_heartbeat", Heartbeat())
    monkeypatch.setattr(Heartbeat, "starved_share", lambda _: share)
    watch = Watchdog(-1, 1, False, 100, 1 << 40)
    watch.start = watch.last = time.monotonic() - 1
    watch.there = there
    assert watch.check() is None
    return watch.starved_s


def test_time_before_the_test_is_there_and_after_it_is_gone_is_not_the_programs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert interval(monkeypatch, ProcessTreeSample(), there=False) == pytest.approx(1.0, abs=0.1)
    assert interval(monkeypatch, ProcessTreeSample(pids=[2]), there=False) == pytest.approx(1.0, abs=0.1)
    assert interval(monkeypatch, ProcessTreeSample(pids=[2])) == 0
    assert interval(monkeypatch, ProcessTreeSample()) == pytest.approx(1.0, abs=0.1)


def test_waiting_tasks_count_once_however_many_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    many = ProcessTreeSample(pids=[2], waited_ns={str(task): 900_000_000 for task in range(50)})
    assert interval(monkeypatch, many) == pytest.approx(1.0, abs=0.2)
    assert interval(monkeypatch, ProcessTreeSample(pids=[2], waited_ns={"2": 300_000_000})) == pytest.approx(0.3)


def test_what_the_judge_waits_for_a_core_is_not_the_programs_time(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = [5_000_000_000, 5_250_000_000, 5_250_000_000]
    monkeypatch.setattr(watch_module, "own_wait_ns", lambda: waits.pop(0))
    assert interval(monkeypatch, ProcessTreeSample(pids=[2], waited_ns={"2": 300_000_000})) == pytest.approx(0.55)


def test_a_look_that_comes_late_is_not_the_programs_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "look", lambda *_: ProcessTreeSample(pids=[2], waited_ns={"2": 0}))
    watch = Watchdog(-1, 1, False, 1.0, 1 << 40)
    watch.there = True
    watch.start -= 7
    watch.next_look = time.monotonic() - 6.5
    assert watch.check() is None
    assert watch.starved_s == pytest.approx(6.5, abs=0.2)


def wait_for_program(judge: psutil.Process) -> None:
    """Until there is a process below template and zygote."""
    while True:
        time.sleep(0.02)
        with suppress(psutil.NoSuchProcess):
            if any(one.ppid() != judge.pid and one.parents()[2] == judge for one in judge.children(recursive=True)):
                return


async def test_a_judge_that_stood_still_does_not_cost_the_program_its_test() -> None:
    # The program waits for someone to take its output, longer than its limit.
    code = "import time\ntime.sleep(0.3)\nprint('x' * 1_000_000)"
    request = {"code": code, "tests": [{"input": "", "output": "x" * 1_000_000}], "time_limit_s": 1.0}
    async with JudgePool(workers=1) as pool:
        await pool.verify(request)
        (judge,) = (one for one in psutil.Process().children(True) if "verifier_app.judge.worker" in one.cmdline())
        verifying = asyncio.create_task(pool.verify(request))
        await asyncio.to_thread(wait_for_program, judge)
        judge.suspend()
        await asyncio.sleep(2.0)
        judge.resume()
        verdict = await verifying
    assert (verdict["status"], verdict["tests"][0]["wall_s"] > 1.5) == ("accepted", True), verdict


def test_the_kernel_counts_what_the_judge_waits_for_a_core() -> None:
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        with busy_loops(2):  # on the same core, as children of this thread
            before, since = watch_module.own_wait_ns(), time.monotonic()
            end = time.thread_time() + 0.3
            while time.thread_time() < end:
                pass
            waited, passed = watch_module.own_wait_ns() - before, time.monotonic() - since
    finally:
        os.sched_setaffinity(0, cores)
    assert 0 < waited / 1e9 < passed


def test_a_crowd_is_stopped_without_a_look_at_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def shares(*_: object) -> None:
        raise AssertionError("the shares of a fork bomb are long to read")

    crowd = ProcessTreeSample(pids=list(range(2, 200)), rss_bytes=1 << 40)
    monkeypatch.setattr(watch_module, "look", lambda *_: crowd)
    monkeypatch.setattr(watch_module, "proportional_bytes", shares)
    assert Watchdog(-1, 1, False, 1.0, 1 << 30).check() == "too_many_processes"


@pytest.mark.parametrize(("count", "ended"), [(3, False), (140, True), (140, False)])
def test_processes_that_become_a_crowd_while_their_memory_is_read_are_stopped(count: int, ended: bool) -> None:
    started = [subprocess.Popen(["sleep", "60"]) for _ in range(count)]
    proc = os.open("/proc", os.O_RDONLY)
    try:
        if ended:  # zombies are no crowd
            for one in started[1:]:
                one.kill()
                os.waitid(os.P_PID, one.pid, os.WEXITED | os.WNOWAIT)
        read = partial(proportional_bytes, proc, os.getpid(), False, [started[0].pid])
        if count > 100 and not ended:
            with pytest.raises(TooManyProcesses):
                read(1 << 40)
        else:
            found = read(1 << 40)
            assert found is not None
            assert 0 < found < 100 << 20
        enough = read(1)
        assert enough is not None
        assert enough > 0  # as much as is enough, whoever else is there
    finally:
        os.close(proc)
        for one in started:
            one.kill()
            one.wait()


def test_a_long_wait_that_is_booked_late_counts_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = [
        ProcessTreeSample(pids=[2], waited_ns={"2": 0}, runnable=True),
        ProcessTreeSample(pids=[2], waited_ns={"2": 900_000_000}),
    ]
    monkeypatch.setattr(watch_module, "look", lambda *_: looks.pop(0))
    monkeypatch.setattr(watch_module, "own_wait_ns", lambda: 0)  # this process waits for a core as it happens
    watch = Watchdog(-1, 1, False, 100, 1 << 40)
    watch.there = True
    watch.start -= 1
    for _ in range(2):
        watch.next_look = time.monotonic() + 3600  # nor is it late
        watch.check()
    assert watch.starved_s == pytest.approx(0.9)


def test_a_wait_that_still_lasts_is_not_the_programs_time(monkeypatch: pytest.MonkeyPatch) -> None:
    for runnable, verdict in ((True, None), (False, "time_limit_exceeded")):
        seen = ProcessTreeSample(pids=[2], waited_ns={"2": 5}, ran_ns=7, runnable=runnable)
        monkeypatch.setattr(watch_module, "look", lambda *_, seen=seen: seen)
        watch = Watchdog(-1, 1, False, 1.0, 1 << 40)
        watch.there = True
        watch.progress, watch.waited_ns = (7, 5), {"2": 5}
        watch.start = watch.moved = time.monotonic() - 1.5
        assert watch.check() == verdict


def test_without_schedstat_the_heartbeat_and_idle_runnable_time_count(monkeypatch: pytest.MonkeyPatch) -> None:
    assert interval(monkeypatch, ProcessTreeSample(pids=[2]), share=0.5) == pytest.approx(0.5, abs=0.1)
    assert interval(monkeypatch, ProcessTreeSample(pids=[2], cpu_s=0.25, runnable=True)) == pytest.approx(0.75, abs=0.1)
    assert interval(monkeypatch, ProcessTreeSample(pids=[2])) == 0


@pytest.mark.slow(reason="200 programs of 3 to 5 s beside eight busy loops: about 40 minutes on two cores")
@pytest.mark.timeout(7200)
async def test_no_honest_program_exceeds_its_limit_beside_eight_busy_loops() -> None:
    requests = [{"code": burn(3 + 2 * (n % 11) / 10), "tests": TESTS, "time_limit_s": 6} for n in range(200)]
    with busy_loops(8):
        async with JudgePool(workers=2) as pool:
            verdicts = await asyncio.gather(*map(pool.verify, requests))
    assert [verdict["status"] for verdict in verdicts] == ["accepted"] * 200
