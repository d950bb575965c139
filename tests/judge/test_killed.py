"""kill -9 of a sandbox's processes, as the kernel does when memory is short: never a verdict against the program."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from verifier_app.judge import JudgeError, loading
from verifier_app.judge.judging import Judge
from verifier_app.judge.verdict import Verdict

RIGHT = "import time\nn = int(input())\ntime.sleep(0.6)\nprint(n + 1)"


def request(code: str) -> dict[str, Any]:
    return {"code": code, "tests": [{"input": "1", "output": "2"}], "time_limit_s": 10.0, "memory_limit_mb": 512}


@pytest.fixture
def judge() -> Iterator[Judge]:
    with Judge() as judge:
        judge.template()
        yield judge


def depth(process: psutil.Process, own: int) -> int:
    """1 for a template, 2 for a zygote, 3 for a program."""
    return [parent.pid for parent in process.parents()].index(own) + 1


def killing(level: int, times: int, then: Callable[[], None]) -> int:
    """Kills the first process of this level while `then` runs, so often; how often it did."""
    me, done, stop = psutil.Process(), 0, threading.Event()

    def look() -> None:
        nonlocal done
        seen: set[int] = set()
        while not stop.is_set() and done < times:
            time.sleep(0.05)
            try:
                family = me.children(recursive=True)
                # Only while a program runs: 3 levels are there.
                if not any(depth(one, me.pid) == 3 for one in family):
                    continue
                for one in family:
                    if depth(one, me.pid) == level and one.pid not in seen and done < times:
                        seen.add(one.pid)
                        one.kill()
                        done += 1
            except (psutil.NoSuchProcess, ValueError):
                continue

    thread = threading.Thread(target=look)
    thread.start()
    try:
        then()
    finally:
        stop.set()
        thread.join()
    return done


@pytest.mark.parametrize("level", [1, 2, 3], ids=["template", "zygote", "program"])
def test_a_right_program_whose_sandbox_is_killed_once_is_accepted(judge: Judge, level: int) -> None:
    found: list[Verdict] = []
    assert killing(level, 1, lambda: found.append(judge.verify(request(RIGHT)))) == 1
    assert found[0]["status"] == "accepted", found


def test_a_sandbox_that_is_killed_again_and_again_is_no_verdict(judge: Judge) -> None:
    level = judge.template().spawn({"memory_mb": 512})
    strong = level.own_namespace
    level.close()
    if not strong:
        pytest.skip("without a pid namespace of its own a program can do this to itself")

    def verify() -> None:
        with pytest.raises(JudgeError, match="the sandbox was killed twice") as raised:
            judge.verify(request(RIGHT))
        assert raised.value.kind == "sandbox_failed"

    assert killing(2, 2, verify) == 2


def test_a_program_that_kills_itself_is_a_runtime_error(judge: Judge) -> None:
    verdict = judge.verify(request("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"))
    assert (verdict["status"], verdict["message"]) == ("runtime_error", "killed by SIGKILL")


def around_loading(
    judge: Judge,
    monkeypatch: pytest.MonkeyPatch,
    before: Callable[[psutil.Process], object] = lambda _: None,
    after: Callable[[psutil.Process], object] = lambda _: None,
) -> None:
    """Does this to every zygote of the template before and after it compiles its program."""
    handle = judge.template()
    spawn = handle.spawn

    def spawned(config: dict[str, Any]) -> Any:
        zygote = spawn(config)
        load = zygote.load

        def between(*arguments: Any) -> Any:
            (process,) = psutil.Process(handle.process.pid).children()
            before(process)
            loaded = load(*arguments)
            after(process)
            return loaded

        monkeypatch.setattr(zygote, "load", between)
        return zygote

    monkeypatch.setattr(handle, "spawn", spawned)


def stand_still(process: psutil.Process, seconds: float) -> None:
    """Stops a process for so long, as a host does that starts or runs it late."""
    process.suspend()
    threading.Timer(seconds, process.resume).start()


def test_a_host_that_takes_longer_than_the_limit_to_start_a_program_does_not_cost_it_the_test(
    judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    around_loading(judge, monkeypatch, after=lambda zygote: stand_still(zygote, 2.0))  # before it forks
    verdict = judge.verify(request("print(int(input()) + 1)") | {"time_limit_s": 1.0})
    assert verdict["status"] == "accepted", verdict


def test_a_sandbox_that_is_killed_while_it_compiles_is_no_compile_error(
    judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    kills = [psutil.Process.kill, lambda _: None]
    around_loading(judge, monkeypatch, lambda zygote: kills.pop(0)(zygote))
    assert judge.verify(request(RIGHT))["status"] == "accepted"
    kills[:] = [psutil.Process.kill] * 2
    with pytest.raises(JudgeError, match="killed twice while it compiled") as raised:
        judge.verify(request(RIGHT))
    assert raised.value.kind == "sandbox_failed"


def test_a_template_that_is_killed_while_its_zygote_compiles_is_no_compile_error(
    judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The new template's zygotes are left alone.
    around_loading(judge, monkeypatch, lambda zygote: zygote.parent().kill())
    assert judge.verify(request(RIGHT))["status"] == "accepted"


def test_compiling_takes_its_cpu_time_and_no_more_of_the_deadline(
    judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "COMPILE_LIMIT_S", 0.3)
    around_loading(judge, monkeypatch, lambda zygote: stand_still(zygote, 1.5))
    two = {"tests": [{"input": "1", "output": "2"}, {"input": "2", "output": "3"}], "deadline_s": 1.0}
    verdict = judge.verify(request("print(int(input()) + 1)") | two)
    assert (verdict["status"], verdict["passed"]) == ("accepted", 2)


def test_a_compiler_that_gets_no_core_is_a_fault_and_one_that_takes_long_a_compile_error(
    judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "COMPILE_LIMIT_S", 0.1)
    long = judge.verify(request("a = 1\n" * 500_000) | {"memory_limit_mb": 4096})
    assert (long["status"], long["message"]) == ("compile_error", "compiling took more than 0.1 s")
    around_loading(judge, monkeypatch, psutil.Process.suspend)
    with pytest.raises(JudgeError, match=r"compiling: \d+ s passed, 0\.\d s of CPU time") as raised:
        judge.verify(request("print(2)"))
    assert raised.value.kind == "host_overloaded"


WITHOUT_A_MAIN_THREAD = """import ctypes, os, platform, threading, time
ready = threading.Event()
def rest():
    {body}
    ready.set()
    time.sleep(60)
threading.Thread(target=rest).start()
ready.wait()
ctypes.CDLL(None).syscall({{"x86_64": 60, "aarch64": 93}}[platform.machine()], 0)
"""


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("pass", "time_limit_exceeded"),
        ("os.fork(); os.fork(); held = bytearray(b'x') * (74 << 20)", "memory_limit_exceeded"),
    ],
)
def test_a_program_whose_main_thread_has_ended_is_still_there(judge: Judge, body: str, status: str) -> None:
    verdict = judge.verify(
        request(WITHOUT_A_MAIN_THREAD.format(body=body)) | {"time_limit_s": 1.5, "memory_limit_mb": 256}
    )
    assert verdict["status"] == status
