"""An hour of the environment, judges, API server and a trainer, with programs that misbehave: does anything grow?

    python -m benchmarks.soak [--minutes 60] [--verifications 100000] [--out benchmarks/results/soak.json]

Processes and parts as in benchmarks/load.py, with short answers, so that the judges are never idle. One program in
seven forks, leaves children or daemons in sessions of their own, eats memory, floods its output, crashes or never ends.
Every five seconds: resident memory and open files of every process, the number of processes of the run, the judges'
CPU time, the CPU time of a fixed loop (what this machine's cores are worth at that moment), and, inside the
environment, a reference verification through its own pool. It ends when both the time and the number are
reached, at the latest after three times the time; exit code 1 when a bound is broken (`broken`), 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.load import MODEL, Run, programs, thin
from benchmarks.measured import open_files, rss_mb
from benchmarks.processes import Tracker
from benchmarks.scripted import Program, Script, prepare
from environments.livecode.problems.problem import Problem
from environments.livecode.verification.judge_requests import judge_request

EVERY_S = 5.0
MEMORY_MB, TIME_S = 256, 1.0
MARK = b"soak-left"  # the name that leftover processes give themselves

_NAMED = f"import ctypes, os, time\nctypes.CDLL(None).prctl(15, {MARK!r})\n"
BAD: list[Program] = [
    ("crash", "import os\nos.abort()", 3.0),
    ("error", "raise ValueError(input())", 3.0),
    ("slow", "while True:\n    pass", 0.7),
    ("asleep", "import time\ntime.sleep(1000)", 0.7),
    ("memory", "kept = []\nwhile True:\n    kept.append(bytearray(b'x' * (16 << 20)))", 1.0),
    ("output", "while True:\n    print('x' * 1000000)", 0.3),
    ("forks", _NAMED + "for _ in range(40):\n    if os.fork() == 0:\n        time.sleep(1000)", 1.0),
    ("children", _NAMED + "if os.fork() == 0:\n    os.setsid()\n    time.sleep(1000)\nprint(0)", 3.0),
    (
        "daemon",
        _NAMED + "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        os.close(1)\n"
        "        while True:\n            time.sleep(1)\n    os._exit(0)\nprint(0)",
        2.0,
    ),
]
GOOD = 100 - sum(weight for _, _, weight in BAD)


def mix(limit: int = 200) -> tuple[list[Problem], dict[str, list[Program]]]:
    """Warm-up problems with right and wrong programs, and the bad ones for each."""
    problems, found = programs(limit)
    shares = {"right": GOOD * 0.55, "wrong": GOOD * 0.45}
    return problems, {
        name: [(kind, code, shares[kind]) for kind, code, _ in some] + BAD for name, some in found.items()
    }


def spin() -> float:
    """CPU seconds of a fixed loop: the median of five."""
    took = []
    for _ in range(5):
        began = time.thread_time()
        for _ in range(40_000):
            pass
        took.append(time.thread_time() - began)
    return statistics.median(took)


class Verdicts:
    """Counts of environment.jsonl, which grows."""

    def __init__(self, path: Path) -> None:
        self.path, self._read = path, 0
        self.statuses: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()

    def count(self) -> int:
        """Programs that were judged, of the groups that have ended."""
        if self.path.exists():
            with self.path.open("rb") as file:
                file.seek(self._read)
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._read += len(whole)
            for line in map(json.loads, whole.splitlines()):
                self.statuses.update(status for status in line["verdicts"] if status)
                self.dropped.update([line["dropped"]] if line["dropped"] else [])
        return sum(self.statuses.values()) - self.statuses["no_code"] - self.statuses["overlong"]


def sample(
    run: Run, verdicts: Verdicts, tracker: Tracker, points: list[dict[str, Any]], say: Callable[[str], None],
    *, seconds: float, target: int, every_s: float, limit_s: float,
) -> None:  # fmt: skip
    """Adds a point to `points` every so often, until the run was long enough or its limit."""
    while not verdicts.count():
        run.family.check()
        time.sleep(0.5)
    began, spoke = time.monotonic(), 0.0
    while True:
        time.sleep(every_s)
        run.family.check()
        now, done = time.monotonic() - began, verdicts.count()
        points.append(point(run, tracker, now, done))
        if time.monotonic() - spoke > 15:
            spoke = time.monotonic()
            memory = ", ".join(f"{name} {value:.0f}" for name, value in points[-1]["rss_mb"].items())
            say(f"{now:5.0f} s: {done} verifications, {points[-1]['processes']} processes, MB: {memory}")
        if (now >= seconds and done >= target) or now >= limit_s:
            return


def soak(
    folder: Path, script: Script, *, seconds: float, target: int, model: Path = MODEL, every_s: float = EVERY_S,
    limit_s: float | None = None, rollouts: int = 64, problems: int = 200,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> dict[str, Any]:  # fmt: skip
    """One run, and what is left after it."""
    chosen, answers = mix(problems)
    prepare(folder, model, chosen, answers, script)
    reference = next(problem for problem in chosen if problem.kind == "stdin")
    code = next(code for kind, code, _ in answers[reference.id] if kind == "right")
    request = judge_request(reference, code, time_limit_s=15.0, memory_limit_mb=MEMORY_MB)
    (folder / "reference.json").write_text(json.dumps(request))
    run = Run(
        folder, rollouts, script, variables={"WITH_REFERENCE": str(folder / "reference.json")},
        time_limit_s=TIME_S, memory_limit_mb=MEMORY_MB, max_staleness=4,
    )  # fmt: skip
    verdicts, stopped = Verdicts(folder / "run" / "environment.jsonl"), False
    points: list[dict[str, Any]] = []
    tracker = Tracker([child.process.pid for child in run.family.children], MARK.decode())
    say("starting")
    limits = {"seconds": seconds, "every_s": every_s, "limit_s": limit_s or 3 * seconds}
    try:
        try:
            sample(run, verdicts, tracker, points, say, target=target, **limits)
        except KeyboardInterrupt:
            stopped = True
            say("stopping")
        measured = run.finish()
        served = run.asked()["kinds"]
    finally:
        run.stop()
    time.sleep(1.0)  # what was killed last is gone then
    return {
        "seconds": points[-1]["s"] if points else 0.0,
        "stopped": stopped,
        "verifications": verdicts.count(),
        "served": served,
        "verdicts": dict(verdicts.statuses),
        "dropped": dict(verdicts.dropped),
        "survivors": tracker.survivors(),
        "processes_seen": len(tracker.seen),
        "environment": {name: measured[name] for name in ("lag_s", "own_lag_s", "cpu_s", "peak_rss_mb")},
        "points": points,
        "references": measured["references"],
    }


def point(run: Run, tracker: Tracker, now: float, done: int) -> dict[str, Any]:
    """One sample. Memory and files: of the single processes, and the largest of the judges and templates."""
    tracker.look()
    pids = {child.name: [child.process.pid] for child in run.family.children}
    pids |= {"judges": tracker.workers, "templates": tracker.templates}
    return {
        "s": round(now, 1),
        "verifications": done,
        "judges_cpu_s": round(tracker.cpu_s(), 2),
        "spin_s": round(spin(), 6),
        "processes": tracker.living,
        "rss_mb": {name: round(max(map(rss_mb, some), default=0.0), 1) for name, some in pids.items()},
        "files": {name: max(map(open_files, some), default=0) for name, some in pids.items()},
    }


def drift(points: Sequence[dict[str, Any]], references: Sequence[Sequence[float]]) -> dict[str, float]:
    """Last tenth over first tenth, after the first twentieth (the start); CPU times over the fixed loop's at that time.

    reference: CPU time of the reference program's tests. judges: the judges' CPU time for a verification of the mix.
    """
    if not points or points[-1]["s"] <= 0:
        return {}
    end = points[-1]["s"]
    tenths = ((0.05 * end, 0.15 * end), (0.9 * end, end))
    cpu, per, wall = [], [], []
    for low, high in tenths:
        some = [one for one in points if low <= one["s"] <= high]
        timed = [one for one in references if low <= one[0] <= high]
        if len(some) < 2 or not timed or some[-1]["verifications"] == some[0]["verifications"]:
            return {}
        unit = statistics.median(one["spin_s"] for one in some)
        verified = some[-1]["verifications"] - some[0]["verifications"]
        per.append((some[-1]["judges_cpu_s"] - some[0]["judges_cpu_s"]) / verified / unit)
        cpu.append(statistics.median(one[2] for one in timed) / unit)
        wall.append(statistics.median(one[1] for one in timed))
    ratios = {"reference": cpu, "judges": per, "reference_wall": wall}
    return {name: round(last / first, 3) for name, (first, last) in ratios.items()}


def broken(result: dict[str, Any], target: int) -> list[str]:
    """The bounds that a run breaks, in words.

    Memory of a process: median of the last quarter at most 5 % + 20 MB above the second quarter's. Open files: the most
    of the last quarter at most 4 above the second's, since their number goes up and down with the requests that are in
    flight, and what leaks raises the most as well. The run's processes: medians, at most 4 above. Drift of CPU times:
    at most 1.25. Survivors: none.
    """
    found = [f"{len(result['survivors'])} processes survive: {result['survivors'][:5]}"] if result["survivors"] else []
    if result["verifications"] < target:
        found.append(f"{result['verifications']} verifications, the target is {target}")
    points = result["points"]
    if len(points) < 8:
        return found + [f"{len(points)} samples: too few to see growth, run longer"]
    quarter = len(points) // 4
    second, last = points[quarter : 2 * quarter], points[-quarter:]

    def medians(read: Callable[[dict[str, Any]], float]) -> tuple[float, float]:
        return statistics.median(map(read, second)), statistics.median(map(read, last))

    for name in last[-1]["rss_mb"]:
        before, after = medians(lambda one, name=name: one["rss_mb"].get(name, 0.0))  # type: ignore[misc]
        if after > before * 1.05 + 20:
            found.append(f"memory of {name}: {before:.0f} MB, then {after:.0f} MB")
        before, after = (max(one["files"].get(name, 0) for one in part) for part in (second, last))
        if after > before + 4:
            found.append(f"open files of {name}: at most {before:.0f}, then {after:.0f}")
    before, after = medians(lambda one: one["processes"])
    if after > before + 4:
        found.append(f"processes: {before:.0f}, then {after:.0f}")
    ratios = drift(points, result["references"])
    if not ratios:
        found.append("no latency drift can be computed: run longer")
    for name in ("reference", "judges"):
        if ratios.get(name, 1.0) > 1.25:
            found.append(f"CPU time of a verification ({name}): last tenth over first tenth {ratios[name]}")
    return found


def main() -> int:
    """Run, print, and judge by the bounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--verifications", type=int, default=100_000)
    parser.add_argument("--model", type=Path, default=MODEL, help="folder with a tokenizer")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell starts a job in the background with SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    script = Script(context=4096, mean=200, sigma=0.4, cap=1500, tokens_per_s=400, group_size=8, batch=32)
    with tempfile.TemporaryDirectory() as name:
        found = soak(
            Path(name), script, seconds=60 * options.minutes, target=options.verifications, model=options.model
        )
    failures = broken(found, options.verifications)
    machine = f"{platform.machine()}, {len(os.sched_getaffinity(0))} CPUs, Python {platform.python_version()}"
    result = {"machine": machine, "broken": failures, "drift": drift(found["points"], found["references"]), **found}
    result["points"], result["references"] = thin(result["points"], 200), thin(result["references"], 200)
    text = json.dumps(result)
    print(json.dumps({name: value for name, value in result.items() if name not in ("points", "references")}, indent=1))
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    for failure in failures:
        print(f"BROKEN: {failure}", file=sys.stderr)
    return 130 if found["stopped"] else 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
