"""`atropos rejudge` on a run of many programs: seconds, memory, and what a kill in the middle costs.

    python -m benchmarks.rejudge [--programs 10000] [--workers 2] [--out FILE.json]

A run's folder is written by the project's own records: groups of 16 for the warm-up problems, right programs beside
wrong ones, ones that raise and ones that do not compile, each with a comment of its own. Of every 101st program the
recorded verdict is false, so that the answer is known: those change, and no other. The command runs once to its end;
a second one is killed (SIGKILL) halfway, a line of its results is torn, and a third resumes in the second's folder.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from benchmarks.measured import rss_mb
from environments.common.run_folder import append_line, claim
from environments.livecode.generation.completions import Completion
from environments.livecode.pipeline import JudgedGroup, JudgedRollout, pack
from environments.livecode.problems.prompts import Prompt
from environments.livecode.problems.warmup import build
from environments.livecode.records.programs import append_programs
from verifier_app.judge.verdict import Verdict

GROUP = 16
GROUPS_A_STEP = 64
FALSE_EVERY = 101
SUMS = ("groups with", "judged again")
ENDINGS = (
    ("accepted", ""),
    ("wrong_answer", "print('x')\n"),
    ("runtime_error", "raise ValueError('after the answer')\n"),
    ("compile_error", "def\n"),
)
"""Statuses, and what a reference program of standard input needs at its end to get them."""


def recorded_programs(count: int) -> Iterator[tuple[int, str, str]]:
    """(number, recorded status, what follows the reference program) of each program."""
    for number in range(count):
        status, ending = ENDINGS[number % len(ENDINGS)]
        if number % FALSE_EVERY == FALSE_EVERY - 1:
            status = "wrong_answer" if status == "accepted" else "accepted"
        yield number, status, f"{ending}# program {number}\n"


def write_run(folder: Path, count: int) -> None:
    """A run's folder with so many recorded programs."""
    sets = build(0)
    problems = [problem for problem in sets.train if problem.fn_name is None]
    claim(folder)
    (folder / "config").mkdir()
    env = {"problems": "warmup:train", "seed": 0, "group_size": GROUP, "record_programs": True}
    options = {"model": "not-read", "env": env}
    (folder / "config" / "environment.yaml").write_text(yaml.safe_dump(options), encoding="utf-8")
    group: list[JudgedRollout] = []
    for number, status, ending in recorded_programs(count):
        index = number // GROUP
        problem = problems[index % len(problems)]
        sample = Completion(array("i", [1]), array("d", [0.0]), "stop", [(index // GROUPS_A_STEP, 0, 1)], 0.0)
        verdict: Verdict = {"status": status, "passed": 0, "total": 1, "message": ""}
        group.append(JudgedRollout(sample, pack(""), sets.references[problem.id] + ending, verdict, 0.0))
        if len(group) == GROUP or number == count - 1:
            judged = JudgedGroup(problem, Prompt([1], "", False), 0, group_id=f"g{index}", rollouts=group)
            append_programs(folder, judged)
            row = {"group_id": judged.group_id, "overlong": [False] * len(group)}
            append_line(folder / "environment.jsonl", json.dumps(row))
            group = []


def lines(path: Path) -> int:
    """Lines of a file; 0 where it is not there yet."""
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def rejudge(run: Path, out: Path, workers: int, kill_at: int | None = None) -> dict[str, Any]:
    """The command on a run; killed when so many verdicts are on disk.

    Returns:
        exit code, seconds, peak resident MB of the command itself, verdicts on disk when it ended, and of what it
        printed the sums.
    """
    command = [sys.executable, "-m", "environments.cli", "rejudge", str(run), "--out", str(out)]
    started = time.monotonic()
    with tempfile.TemporaryFile() as printed, subprocess.Popen(
        [*command, "--env.verifier_workers", str(workers)], stdout=printed, stderr=subprocess.DEVNULL
    ) as process:  # fmt: skip
        peak, results = 0.0, out / "rejudged.jsonl"
        while process.poll() is None:
            peak = max(peak, rss_mb(process.pid))
            if kill_at is not None and lines(results) >= kill_at:
                process.kill()
            time.sleep(0.1)
        seconds = time.monotonic() - started
        printed.seek(0)
        text = [line for line in printed.read().decode().splitlines() if any(word in line for word in SUMS)]
    return {
        "exit_code": process.returncode,
        "seconds": round(seconds, 1),
        "peak_mb": round(peak),
        "verdicts": lines(results),
        "printed": text,
    }


def changed(out: Path) -> set[str]:
    """The keys of the programs that the command names as changed."""
    return {json.loads(line)["key"] for line in (out / "changed.jsonl").read_text(encoding="utf-8").splitlines()}


def measure(folder: Path, count: int, workers: int) -> dict[str, Any]:
    """All figures. AssertionError where the command's answer is not the known one."""
    run = folder / "run"
    started = time.monotonic()
    write_run(run, count)
    packed = sum(path.stat().st_size for path in (run / "programs").iterdir())
    wrong = {
        f"g{number // GROUP}/{number % GROUP}"
        for number, status, _ in recorded_programs(count)
        if status != ENDINGS[number % len(ENDINGS)][0]
    }
    result: dict[str, Any] = {
        "programs": count, "workers": workers, "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "run_mb": round(packed / 1e6, 2), "written_s": round(time.monotonic() - started, 1),
    }  # fmt: skip
    result["whole"] = rejudge(run, folder / "whole", workers)
    assert changed(folder / "whole") == wrong
    result["killed"] = rejudge(run, folder / "half", workers, kill_at=count // 2)
    with (folder / "half" / "rejudged.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"key": "g0/0", "verd')
    result["continued"] = rejudge(run, folder / "half", workers)
    assert changed(folder / "half") == wrong
    result["judged_twice"] = result["continued"]["verdicts"] - 1 - count  # the torn line is one, too
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), options.programs, options.workers)
    text = json.dumps(result, indent=1) + "\n"
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()
