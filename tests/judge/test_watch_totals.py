"""Running totals of the watch: time that nobody waited for, time in which nothing is seen, memory by readings."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from verifier_app.judge import Judge, JudgeError
from verifier_app.judge import watchdog as watch_module
from verifier_app.judge.host import TemplateHandle
from verifier_app.judge.process_tree import ProcessTreeSample, proportional_bytes
from verifier_app.judge.procfs import listing
from verifier_app.judge.watchdog import CORES, CpuTime, Watchdog


def seen(
    own: dict[int, float], *, children_s: float = 0.0, reaped_s: float = 0.0, running: int = 0
) -> ProcessTreeSample:
    """A look at processes with this CPU time of their own; all of `running` tasks had a core."""
    found = ProcessTreeSample(pids=list(own), cpu_s=sum(own.values()) + children_s)
    found.own_s = {(pid, b"0"): value for pid, value in own.items()}
    found.reaped_s = reaped_s
    found.running = {f"{pid}": 10**9 for pid in list(own)[:running]}
    found.waited_ns = dict.fromkeys(found.running, 0)
    return found


def test_time_of_children_counts_once_whoever_waits_for_them() -> None:
    cpu = CpuTime(before_s=2.0)
    cpu.add(seen({10: 1.0, 11: 0.5}, reaped_s=2.0), 0.05)
    cpu.add(seen({10: 1.0}, children_s=0.5, reaped_s=2.0), 0.05)
    assert cpu.total_s == pytest.approx(1.5)
    cpu.add(seen({}, reaped_s=3.5), 0.05)  # and by the zygote, as an orphan
    assert cpu.total_s == pytest.approx(1.5)


def test_time_of_children_that_nobody_waits_for_is_kept() -> None:
    cpu = CpuTime(before_s=0.0)
    for child in range(20, 30):
        cpu.add(seen({10: 0.1, child: 0.5}), 0.05)
    assert cpu.total_s == pytest.approx(5.1)


def test_children_too_short_to_be_seen_are_told_by_what_runs_at_the_looks() -> None:
    cpu = CpuTime(before_s=0.0)
    for child in range(100, 200):  # each was there for one look, with a fiftieth of the interval
        cpu.add(seen({child: 0.02}, running=1), 1.0)
    assert cpu.total_s == pytest.approx(100.0, rel=0.1)
    honest = CpuTime(before_s=0.0)
    for number in range(100):
        honest.add(seen({10: 0.02 * number}, running=1), 1.0)
    assert honest.total_s == pytest.approx(1.98)


def test_an_empty_list_is_free_only_while_the_zygote_is_awake(monkeypatch: pytest.MonkeyPatch) -> None:
    for awake, verdict in ((True, None), (False, "time_limit_exceeded")):
        monkeypatch.setattr(watch_module, "look", lambda *_, awake=awake: ProcessTreeSample(awake=awake))
        watch = Watchdog(-1, 1, False, 1.0, 1 << 40)
        watch.there = True
        watch.start = watch.last = time.monotonic() - 2
        assert watch.check() == verdict


def test_a_crowd_that_starves_itself_is_not_starved(monkeypatch: pytest.MonkeyPatch) -> None:
    crowd = ProcessTreeSample(pids=[2], cpu_s=3.0 * CORES, waited_ns={"2": 2_900_000_000})
    monkeypatch.setattr(watch_module, "look", lambda *_: crowd)
    watch = Watchdog(-1, 1, False, 100.0, 1 << 40)
    watch.there = True
    watch.start = watch.last = time.monotonic() - 3
    assert watch.check() is None
    assert watch.starved_s == pytest.approx(0.0, abs=0.1)


def test_a_listing_begins_at_its_beginning_wherever_others_left_the_offset() -> None:
    fd = os.open("/proc/self", os.O_RDONLY)
    try:
        os.lseek(fd, 2**31 - 2, 0)
        assert "status" in listing(".", fd)
    finally:
        os.close(fd)


def test_a_process_that_is_gone_holds_nothing() -> None:
    gone = subprocess.Popen([sys.executable, "-S", "-c", ""])
    gone.wait()
    proc = os.open("/proc", os.O_RDONLY)
    try:
        found = proportional_bytes(proc, os.getpid(), False, [gone.pid, os.getpid()], 1 << 40)
    finally:
        os.close(proc)
    assert found is not None
    assert found > 0


def test_a_template_that_did_not_answer_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    request = {"code": "print(1)", "tests": [{"input": "", "output": "1"}]}
    with Judge() as judge:
        assert judge.verify(request)["status"] == "accepted"
        first = judge.template()
        first.broken = True
        assert judge.verify(request)["status"] == "accepted"
        assert judge.template() is not first
        assert isinstance(first, TemplateHandle)
        assert first.process.poll() is not None


@pytest.mark.slow(reason="200 runs of a program that forks with 120 MB: two minutes")
@pytest.mark.timeout(1800)
def test_processes_that_share_memory_and_end_never_exceed_the_limit() -> None:
    code = """
import os, time
shared = bytearray(120 << 20)
for start in range(0, len(shared), 4096): shared[start] = 1
for _ in range(4):
    children = []
    for _ in range(6):
        child = os.fork()
        if child == 0:
            time.sleep(0.03); os._exit(0)
        children.append(child)
    for child in children: os.waitpid(child, 0)
print(1)
"""
    request = {"code": code, "tests": [{"input": "", "output": "1"}], "memory_limit_mb": 400}
    with Judge() as judge:
        assert [judge.verify(request)["status"] for _ in range(200)] == ["accepted"] * 200


@pytest.mark.slow(reason="40 runs of a survivor that stops whatever it may signal")
@pytest.mark.timeout(900)
@pytest.mark.skipif(os.geteuid() != 0, reason="a uid of its own needs root")
@pytest.mark.parametrize("deny", [("unshare",), ("unshare", "landlock")])
def test_a_right_program_with_a_survivor_that_stops_the_sweeper_is_accepted(deny: tuple[str, ...]) -> None:
    code = """
import os, signal
print(1, flush=True)
if os.fork() == 0:
    os.setsid()
    while True:
        try: os.kill(-1, signal.SIGSTOP)
        except OSError: pass
os._exit(0)
"""
    with Judge(deny=deny) as judge:
        for _ in range(40):
            try:
                verdict = judge.verify({"code": code, "tests": [{"input": "", "output": "1"}]})
            except JudgeError as error:
                raise AssertionError(error.message) from error
            assert verdict["status"] == "accepted", verdict["message"]
