"""The soak in small, and its bounds by value."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.processes import Tracker
from benchmarks.scripted import Script
from benchmarks.soak import broken, drift, soak

SCRIPT = Script(context=4096, mean=120, sigma=0.4, cap=600, tokens_per_s=400, group_size=8, batch=16)


def series(change: Callable[[int, dict[str, Any]], dict[str, Any]] = lambda n, one: {}, count: int = 100) -> Any:
    """A run of `count` samples, flat with noise: 20 ms of the judges' CPU for each of 10 verifications a second."""
    points = []
    for n in range(1, count + 1):
        noise = (n * 7) % 11
        point = {
            "s": 5.0 * n,
            "verifications": 50 * n,
            "judges_cpu_s": 1.0 * n,
            "spin_s": 0.001,
            "processes": 8 + noise % 3,
            "rss_mb": {"environment": 500.0 + noise, "api": 60.0},
            "files": {"environment": 50 + noise % 4, "api": 17},
        }
        points.append(point | change(n, point))
    references = [[point["s"], 2.0, 0.020] for point in points]
    return {"survivors": [], "verifications": 5000, "points": points, "references": references}


def test_a_flat_noisy_run_breaks_no_bound() -> None:
    assert broken(series(), 5000) == []


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda n, one: {"rss_mb": {"environment": 500.0 + n, "api": 60.0}}, "memory of environment: 538 MB, then 588"),
        (lambda n, one: {"files": {"environment": 50, "api": 17 + n // 8}}, "open files of api"),
        (lambda n, one: {"processes": 8 + n // 8}, "processes: 12, then 19"),
        (lambda n, one: {"judges_cpu_s": 0.5 * n * (1 + n / 100)}, "(judges)"),
    ],
    ids=["memory", "files", "processes", "latency"],
)
def test_what_grows_breaks_its_bound_and_no_other(change: Any, word: str) -> None:
    (only,) = broken(series(change), 5000)
    assert word in only


def test_survivors_and_too_few_verifications_are_named() -> None:
    found = broken(series() | {"survivors": ["17 soak-left: "]}, 5001)
    assert len(found) == 2
    assert "17 soak-left" in found[0]
    assert "5000 verifications" in found[1]


def test_a_machine_that_becomes_slower_is_no_drift() -> None:
    def slower(n: int, one: dict[str, Any]) -> dict[str, Any]:
        return {"spin_s": 0.001 if n < 50 else 0.002, "judges_cpu_s": 1.0 * n if n < 50 else 50 + 2.0 * (n - 50)}

    found = series(slower)
    found["references"] = [[s, 2.0, 0.020 if s < 250 else 0.040] for s, _, _ in found["references"]]
    assert drift(found["points"], found["references"]) == {"reference": 1.0, "judges": 1.0, "reference_wall": 1.0}


def test_a_run_too_short_to_show_growth_does_not_pass() -> None:
    assert any("too few" in line for line in broken(series(count=7) | {"verifications": 1}, 1))


def test_a_process_that_left_its_family_is_a_survivor_until_it_is_gone() -> None:
    leave = "import os, ctypes, time\nctypes.CDLL(None).prctl(15, b'left-behind')\nos.setsid()\n"
    leave += "print(flush=True)\ntime.sleep(60)"
    code = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {leave!r}], stdout=-1, stderr=-3); "
    code += "p.stdout.readline(); print(p.pid)"
    pid = int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)
    tracker = Tracker([], "left-behind")
    found = tracker.survivors()
    subprocess.run(["kill", "-9", str(pid)], check=True)
    assert [line.split()[0] for line in found] == [str(pid)]
    while tracker.survivors():
        pass


@pytest.mark.slow  # a run of half a minute; each way to leave a process behind is in tests/adversarial
def test_programs_that_leave_processes_behind_leave_none_after_a_run(tmp_path: Path, smollm2: Path) -> None:
    found = soak(
        tmp_path, SCRIPT, seconds=0, target=200, limit_s=200, model=smollm2, every_s=1.0, rollouts=32, problems=8,
        say=lambda line: None,
    )  # fmt: skip
    assert found["survivors"] == []
    assert found["verifications"] >= 200
    assert found["processes_seen"] > 6  # the run's own four, and judges with what they started
    assert found["dropped"].get("infrastructure", 0) == 0
    assert {"children", "daemon"} <= set(found["served"])
    assert {"accepted", "wrong_answer", "runtime_error"} <= set(found["verdicts"])
