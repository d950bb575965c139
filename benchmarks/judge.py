"""The judge against a fresh interpreter per test and against exec in the judge's own process, in one run.

    python benchmarks/judge.py [--rounds 3] [--out FILE.json]

CPU time of this process and of everything it started, wall time beside it. Every figure is the median of its rounds,
taken in turns, so that a change of the machine's load meets all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import multiprocessing
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from verifier_app.judge import Judge
from verifier_app.judge.compare import output_difference
from verifier_app.judge.languages.python.prelude import make_module
from verifier_app.judge.pool import JudgePool

CODE = "a, b = map(int, input().split())\nprint(a + b)\n"
USUAL_IMPORTS = (
    "import string, re, datetime, collections, heapq, bisect, copy, math, random, statistics, itertools, functools, "
    "operator, io, sys, json, typing\n"
)
BIG_MB = 5


def tests(count: int) -> list[dict[str, str]]:
    """Trivial tests."""
    return [{"input": f"{n} {n}\n", "output": f"{2 * n}\n"} for n in range(count)]


def cpu_of_tree(root: int) -> float:
    """CPU seconds of a process, its living descendants, and those they waited for."""
    parents: dict[int, tuple[int, float]] = {}
    tick = os.sysconf("SC_CLK_TCK")
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            parents[int(stat.parent.name)] = int(fields[1]), sum(map(int, fields[11:15])) / tick
    total, queue = 0.0, [root]
    while queue:
        pid = queue.pop()
        total += parents.get(pid, (0, 0.0))[1]
        queue += [child for child, (parent, _) in parents.items() if parent == pid]
    return total


def measure(action: Callable[[], Any]) -> tuple[float, float]:
    """(CPU seconds, wall seconds)."""
    cpu, wall = cpu_of_tree(os.getpid()), time.perf_counter()
    action()
    return cpu_of_tree(os.getpid()) - cpu, time.perf_counter() - wall


def fresh_interpreters(count: int) -> None:
    """(a) A new interpreter with the usual imports for every test."""
    source = USUAL_IMPORTS + CODE
    for test in tests(count):
        command = [sys.executable, "-I", "-c", source]
        done = subprocess.run(command, input=test["input"], capture_output=True, text=True, check=True)
        assert done.stdout == test["output"]


def in_process(count: int) -> None:
    """(b) In the manner of LiveCodeBench's checker: a process a rollout, a manager for its result; the program,
    compiled once, runs in that process with open and sys.stdin mocked for every test. No isolation."""
    with multiprocessing.Manager() as manager:
        result = manager.list()
        process = multiprocessing.get_context("fork").Process(target=_checker, args=(tests(count), result))
        process.start()
        process.join()
        assert list(result[0]) == [True] * count


def in_processes(count: int, times: int) -> None:
    """(b) so many times."""
    for _ in range(times):
        in_process(count)


def _checker(cases: list[dict[str, str]], result: Any) -> None:
    module = make_module("solution")
    body = "".join(f"    {line}\n" for line in CODE.splitlines())
    exec(compile(f"def wrapped():\n{body}", "solution.py", "exec"), module.__dict__)
    passed = []
    for case in cases:
        signal.alarm(15)
        text, out = case["input"], io.StringIO()
        lines = iter(text.split("\n"))
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.redirect_stdout(out))
            stack.enter_context(mock.patch("builtins.open", mock.mock_open(read_data=text)))
            stack.enter_context(mock.patch("sys.stdin", io.StringIO(text)))
            for name, answer in (
                ("readline", lambda *_, at=lines: next(at)),
                ("readlines", lambda *_, all_of=text: all_of.split("\n")),
                ("read", lambda *_, all_of=text: all_of),
            ):
                stack.enter_context(mock.patch(f"sys.stdin.{name}", answer))
            module.__dict__["wrapped"]()
        signal.alarm(0)
        passed.append(output_difference(out.getvalue(), case["output"]) is None)
    result.append(passed)


def rollouts(judge: Judge, count: int, times: int) -> None:
    """The judge, all layers on."""
    for _ in range(times):
        verdict = judge.verify({"code": CODE, "tests": tests(count)})
        assert verdict["status"] == "accepted", verdict


FLOOR = """
import gc, os, resource, sys
sys.path.insert(0, sys.argv[1])
from verifier_app.judge.languages.python.prelude import make_module
module = make_module("__main__")
gc.collect(); gc.freeze()
def used(): return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
start = used()
for _ in range(200):
    if os.fork() == 0: os._exit(0)
    os.wait()
print(used() - start)
"""


def fork_floor() -> float:
    """CPU ms to fork a process with the prelude loaded and end it at once: what no judge by fork can go below."""
    command = [sys.executable, "-I", "-S", "-c", FLOOR, str(Path(__file__).resolve().parents[1])]
    return 1000 * float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) / 200


async def pooled(workers: int, times: int) -> float:
    """Wall seconds for so many 20-test rollouts in a warm pool."""
    request = {"code": CODE, "tests": tests(20)}
    async with JudgePool(workers=workers) as pool:
        await asyncio.gather(*(pool.verify(request) for _ in range(workers * 2)))
        start = time.perf_counter()
        await asyncio.gather(*(pool.verify(request) for _ in range(times)))
        return time.perf_counter() - start


def big_input(judge: Judge) -> float:
    """Wall seconds for one test with 5 MB of input, the fastest program that reads it all."""
    text = ("1234567 " * 8 + "\n") * (BIG_MB * 1_000_000 // 65)
    request = {
        "code": "import sys\nprint(len(sys.stdin.buffer.read()))",
        "tests": [{"input": text, "output": str(len(text))}],
    }
    start = time.perf_counter()
    assert judge.verify(request)["status"] == "accepted"
    return time.perf_counter() - start


def back_after_limit(judge: Judge) -> float:
    """Seconds beyond a limit of 0.5 s until the verdict of a busy loop is there."""
    start = time.perf_counter()
    judge.verify({"code": "while True: pass", "tests": tests(1), "time_limit_s": 0.5})
    return time.perf_counter() - start - 0.5


def idle_memory_mb(judge: Judge) -> tuple[float, float]:
    """(template, zygote): proportional resident memory in MB."""
    template = judge.template()
    zygote = template.spawn({"memory_mb": 4096})
    try:
        pss = []
        for pid in (template.process.pid, zygote.pid):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            pss.append(next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024)
        return pss[0], pss[1]
    finally:
        zygote.close()


def rounds_of(judge: Judge, rounds: int) -> dict[str, float]:
    """Medians over the rounds: CPU and wall ms per test, and seconds."""
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    for _ in range(rounds):
        note("fresh", 1000 * measure(lambda: fresh_interpreters(20))[0] / 20)
        for count in (20, 200):
            times = 200 // count
            note(f"inprocess{count}", 1000 * measure(partial(in_processes, count, times))[0] / 200)
            cpu, wall = measure(partial(rollouts, judge, count, times))
            note(f"judge{count}", 1000 * cpu / 200)
            note(f"judge{count}_wall", 1000 * wall / 200)
        note("floor", fork_floor())
        one, two = asyncio.run(pooled(1, 20)), asyncio.run(pooled(2, 20))
        note("speedup", one / two)
        note("big", big_input(judge))
        note("late", back_after_limit(judge))
    return {name: statistics.median(values) for name, values in found.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with Judge() as judge:
        verdict = judge.verify({"code": CODE, "tests": tests(1)})
        middle = rounds_of(judge, arguments.rounds)
        template_mb, zygote_mb = idle_memory_mb(judge)
    # what each further test costs: 200-test rollouts less the fixed part that 20-test ones show
    fixed = (middle["judge20"] - middle["judge200"]) * 200 / 9
    result = {
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}",
        "isolation": verdict["isolation"],
        "cpu_ms_per_test": {
            name: round(middle[name], 2)
            for name in ("floor", "fresh", "inprocess20", "inprocess200", "judge20", "judge200")
        },
        "wall_ms_per_test": {name: round(middle[f"{name}_wall"], 2) for name in ("judge20", "judge200")},
        "fixed_cpu_ms_per_rollout": round(fixed, 1),
        "ratio_to_fork_floor": round(middle["judge200"] / middle["floor"], 2),
        "ratio_to_in_process_200": round(middle["judge200"] / middle["inprocess200"], 2),
        "ratio_to_in_process_20": round(middle["judge20"] / middle["inprocess20"], 2),
        "times_faster_than_fresh_200": round(middle["fresh"] / middle["judge200"], 1),
        "two_workers_to_one": round(middle["speedup"], 2),
        "seconds_for_5_mb_input": round(middle["big"], 3),
        "seconds_back_after_limit": round(middle["late"], 3),
        "idle_mb": {"template": round(template_mb, 1), "zygote": round(zygote_mb, 1)},
    }
    print(json.dumps(result, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
