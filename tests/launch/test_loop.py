"""A run's processes, with small stand-ins for trainer and environment that are real processes."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from environments.common.settings import ConfigError
from environments.launch.course import WEIGHTS
from environments.launch.display import Screen, duration
from environments.launch.process_loop import (
    Interrupted,
    JsonLines,
    Loop,
    Process,
    run_to_end_or_signal,
    trainer_command,
)
from environments.launch.processes import ProcessError
from environments.launch.train import alone, left, step_of_latest

ROW = {
    "clip_low_tokens": 0.0, "clip_high_tokens": 0.0, "groups": 2, "tokens_trained": 10, "mismatch_abs": 0.0,
    "staleness": 0.0, "seconds_step": 30.0, "seconds_wait": 1.0, "seconds_train": 1.0, "seconds_sync": 1.0,
}  # fmt: skip
GROUP = {"scores": [1.0, -1.0], "verdicts": ["accepted", "wrong_answer"], "lengths": [5, 5], "dropped": None}

# Takes a step every time the file "go" is there; on SIGTERM it saves and ends, after a while.
TRAINER = """
import json, os, pathlib, signal, sys, time
run, first, last, deaf = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "deaf"
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
(run / "config").mkdir(parents=True, exist_ok=True)
(run / "config/trainer.yaml").write_text("x")
(run / "checkpoints").mkdir(exist_ok=True)
row = json.loads(sys.argv[5])
for step in range(first + 1, last + 1):
    while not (run / f"go-{step}").exists():
        if asked and not deaf:
            sys.exit(0)
        time.sleep(0.01)
    with (run / "metrics.jsonl").open("a") as out:
        out.write(json.dumps(row | {"step": step}) + "\\n")
    (run / "checkpoints/latest").write_text(f"step-{step:08d}")
"""
ENVIRONMENT = """
import json, pathlib, sys, time
run, group = pathlib.Path(sys.argv[1]), sys.argv[2]
(run / "config").mkdir(parents=True, exist_ok=True)
(run / "config/environment.yaml").write_text("x")
with (run / "environment.jsonl").open("a") as out:
    out.write(group + "\\n")
print("feeding", flush=True)
time.sleep(60)
"""


def trainer(run: Path, first: int, last: int, kind: str = "soft") -> Process:
    words = (str(run), str(first), str(last), kind, json.dumps(ROW))
    return Process((sys.executable, "-S", "-c", TRAINER, *words), "config/trainer.yaml")


def environment(run: Path, group: dict[str, Any] = GROUP) -> Process:
    return Process((sys.executable, "-S", "-c", ENVIRONMENT, str(run), json.dumps(group)), "config/environment.yaml")


class Watched:
    """A loop whose screen is a file, and whose signals are sent when what it waits for is there."""

    def __init__(
        self, run: Path, steps: int, done: int = 0, saves: bool = True, terminal: bool = False, evaluated_every: int = 0
    ) -> None:
        self.text = (run / "screen").open("w+")
        console = Console(file=self.text, width=250, force_terminal=terminal)
        self.loop = Loop(run, Screen(console), steps=steps, done=done, saves=saves, evaluated_every=evaluated_every)
        self.run = run

    @property
    def shown(self) -> str:
        return (self.run / "screen").read_text()

    def when(self, condition: Callable[[], bool], action: Callable[[], object]) -> None:
        def wait() -> None:
            end = time.monotonic() + 60
            while not condition():
                if time.monotonic() > end:
                    return
                time.sleep(0.02)
            action()

        threading.Thread(target=wait, daemon=True).start()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.fixture
def watched(run: Path) -> Iterator[Callable[..., Watched]]:
    made: list[Watched] = []

    def make(*args: Any, **kwargs: Any) -> Watched:
        made.append(Watched(run, *args, **kwargs))
        return made[-1]

    yield make
    for one in made:
        one.loop.stop()
        one.text.close()


def ready(run: Path, name: str) -> bool:
    return (run / "config" / f"{name}.yaml").exists()


def test_each_step_has_a_row_with_the_time_that_is_left(run: Path, watched: Callable[..., Watched]) -> None:
    for step in (1, 2, 3):
        (run / f"go-{step}").touch()
    one = watched(3)
    assert one.loop.train(trainer(run, 0, 3), environment(run)) == 3
    rows = [line for line in one.shown.splitlines() if "left" in line or " 3 " in line[:5]]
    assert [line.split()[0] for line in rows] == ["1", "2", "3"]
    assert rows[0].endswith("60 s left")
    assert rows[1].endswith("30 s left")
    assert not rows[2].endswith("left")
    assert [child.name for child in one.loop.family.children if child.returncode is None] == []


def test_groups_of_every_environment_count_and_all_end_with_the_training(
    run: Path, watched: Callable[..., Watched]
) -> None:
    one = watched(1)
    beside = run / "shards" / "1-of-2"
    second = Process(environment(beside).argv, "shards/1-of-2/config/environment.yaml")
    one.when(lambda: (beside / "environment.jsonl").exists() and ready(run, "environment"), (run / "go-1").touch)
    assert one.loop.train(trainer(run, 0, 1), environment(run), others=[second]) == 1
    (line,) = [line for line in one.shown.splitlines() if line[:5].strip() == "1"]
    assert "2/2" in line or " 2 " in line
    assert {child.name for child in one.loop.family.children} == {"trainer"}


def test_in_a_terminal_a_bar_shows_the_step_and_the_time_that_is_left(
    run: Path, watched: Callable[..., Watched]
) -> None:
    for step in (1, 2):
        (run / f"go-{step}").touch()
    one = watched(2, terminal=True)
    assert one.loop.train(trainer(run, 0, 2), environment(run)) == 2
    one.text.flush()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", one.shown)
    bars = [part for part in re.split(r"[\r\n]", plain) if "━" in part]
    assert any("step 1/2" in bar and "30 s left" in bar for bar in bars)
    assert "step 2/2" in bars[-1]
    assert "100 %" in bars[-1]
    assert "left" not in bars[-1]


def test_the_last_evaluation_counts_into_what_is_left(run: Path, watched: Callable[..., Watched]) -> None:
    (run / "go-1").touch()
    one = watched(1, evaluated_every=1)
    record = {"set": "warmup:new_instances", "greedy": True, "pass_at_1": 0.5, "ci95": [0, 1], "correct": 1, "total": 2}
    ending = ENVIRONMENT.replace(
        "time.sleep(60)", "time.sleep(1)\nopen(run / 'evaluations.jsonl', 'w').write(sys.argv[3])"
    )
    words = (str(run), json.dumps(GROUP), json.dumps(record | {"step": 1}) + "\n")
    feeding = Process((sys.executable, "-S", "-c", ending, *words), "config/environment.yaml")
    one.loop.train(trainer(run, 0, 1), feeding)
    rest = WEIGHTS["evaluation"] * ROW["seconds_step"] / WEIGHTS["step"]
    assert f"{rest:.0f} s left" in next(line for line in one.shown.splitlines() if line.startswith("   1 "))
    assert "evaluating the last weights, " in one.shown
    assert "held-out, step 1" in one.shown
    assert one.loop.course.left_s() == 0


def test_the_first_signal_has_the_trainer_save_and_nothing_else_end_before(
    run: Path, watched: Callable[..., Watched]
) -> None:
    (run / "go-1").touch()
    one = watched(9)
    one.when(lambda: step_of_latest(run) == 1, lambda: one.loop.interrupt(signal.SIGINT, None))
    assert one.loop.train(trainer(run, 0, 9), environment(run)) == 1
    assert "SIGINT: the trainer ends its step and saves" in one.shown
    assert "Traceback" not in (run / "logs/trainer.log").read_text()


def test_the_second_signal_ends_everything_at_once(run: Path, watched: Callable[..., Watched]) -> None:
    one = watched(9)
    one.when(lambda: ready(run, "trainer"), lambda: one.loop.interrupt(signal.SIGINT, None))
    one.when(lambda: "saves" in one.shown, lambda: one.loop.interrupt(signal.SIGINT, None))
    with pytest.raises(Interrupted):
        one.loop.train(trainer(run, 0, 9, "deaf"), environment(run))
    pids = [child.process.pid for child in one.loop.family.children]
    one.loop.family.children[0].stop(grace_s=0.2)
    one.loop.stop()
    assert len(pids) == 2
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_a_signal_before_training_ends_everything_at_once(run: Path, watched: Callable[..., Watched]) -> None:
    one = watched(9)
    one.loop.interrupt(signal.SIGTERM, None)
    with pytest.raises(Interrupted, match="SIGTERM"):
        one.loop.begin_and_wait("api", environment(run), "a server")


def test_a_run_that_goes_on_shows_its_own_steps_only(run: Path, watched: Callable[..., Watched]) -> None:
    (run / "metrics.jsonl").write_text(json.dumps(ROW | {"step": 1}) + "\n")
    (run / "environment.jsonl").write_text(json.dumps(GROUP) + "\n")
    (run / "go-2").touch()
    one = watched(2, done=1)
    assert one.loop.train(trainer(run, 1, 2), environment(run)) == 2
    rows = [line for line in one.shown.splitlines() if line[:5].strip().isdigit()]
    assert [line.split()[0] for line in rows] == ["2"]


def test_a_trainer_that_fails_before_it_is_ready_ends_a_run_that_goes_on_too(
    run: Path, watched: Callable[..., Watched]
) -> None:
    (run / "config").mkdir()
    (run / "config/trainer.yaml").write_text("of an earlier start")
    bad = Process((sys.executable, "-S", "-c", "print('no such tensor'); raise SystemExit(1)"), "config/trainer.yaml")
    one = watched(2, done=1)
    with pytest.raises(ProcessError, match=r"trainer ended with exit code 1[\s\S]*no such tensor") as caught:
        one.loop.train(bad, environment(run))
    assert "restart" not in one.shown
    assert str(run / "logs/trainer.log") in str(caught.value)


def test_a_step_that_finds_no_signal_says_so(
    run: Path, watched: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("environments.launch.process_loop._NO_SIGNAL", 3)
    flat = json.dumps(GROUP | {"dropped": "all_fail", "scores": [-1.0, -1.0]})
    (run / "environment.jsonl").write_text("")
    one = watched(1)

    def more() -> None:
        with (run / "environment.jsonl").open("a") as out:
            out.write((flat + "\n") * 4)

    one.when(lambda: ready(run, "environment"), more)
    one.when(lambda: "with a signal" in one.shown, lambda: (run / "go-1").touch())
    one.loop.train(trainer(run, 0, 1), environment(run, json.loads(flat)))
    assert "groups generated for this step, 0 with a signal" in one.shown


def test_signals_end_the_work_with_their_code_and_what_was_started(run: Path, watched: Callable[..., Watched]) -> None:
    one = watched(1)
    said: list[str] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    one.when(lambda: ready(run, "environment"), lambda: os.kill(os.getpid(), signal.SIGTERM))

    def work() -> int:
        child = one.loop.begin("environment", environment(run))
        while child.returncode is None:
            one.loop.check()
            time.sleep(0.02)
        return 0

    try:
        assert run_to_end_or_signal(one.loop, work, said.append) == 130
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert said == ["SIGTERM"]
    assert one.loop.family.children == []


def test_one_rank_needs_no_launcher() -> None:
    assert [Path(word).name for word in trainer_command(1, ["--x", "1"])[1:]] == ["main.py", "--x", "1"]
    several = trainer_command(3, ["--x", "1"])
    assert several[1:] == ("-m", "trainer.launch", "--nproc-per-node", "3", "--x", "1")


@pytest.mark.parametrize("code", [143, -15])
def test_a_launcher_that_ends_by_the_signal_it_was_sent_has_not_failed(
    run: Path, watched: Callable[..., Watched], code: int
) -> None:
    handled = "signal.signal(15, lambda *_: os._exit(143)); " if code == 143 else ""
    quiet = f"import os, signal, sys, time; {handled}open(sys.argv[1], 'w').close(); time.sleep(60)"
    ready_file = run / "config" / "trainer.yaml"
    ready_file.parent.mkdir()
    ranks = Process((sys.executable, "-S", "-c", quiet, str(ready_file)), "config/trainer.yaml")
    one = watched(9)
    one.when(ready_file.exists, lambda: one.loop.interrupt(signal.SIGTERM, None))
    assert one.loop.train(ranks, environment(run)) == 0


def test_a_run_that_was_ended_says_what_is_saved_and_how_it_goes_on(run: Path) -> None:
    assert left(run, 9, "atropos train x.yaml") == (
        "Ended before there was anything to save. `atropos train x.yaml` begins at step 0."
    )
    (run / "checkpoints").mkdir()
    (run / "checkpoints/latest").write_text("step-00000004\n")
    assert left(run, 9, "atropos train x.yaml") == ("Saved after step 4 of 9. `atropos train x.yaml` resumes there.")


def test_two_runs_in_one_folder_are_refused(run: Path) -> None:
    with alone(run), pytest.raises(ConfigError, match="another `atropos train` runs in it"):
        alone(run)
    with alone(run):  # free again
        pass


def test_lines_are_read_once_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    lines, late = JsonLines(path), JsonLines(path, skip=True)
    assert lines.new() == [{"a": 1}, {"a": 2}]
    assert lines.new() == []
    with path.open("a") as out:
        out.write(": 3}\n")
    assert lines.new() == [{"a": 3}]
    path.write_text(path.read_text() + '{"a": 4}\n')
    assert late.path == path


@pytest.mark.parametrize(("seconds", "words"), [(12, "12 s"), (600, "10 min"), (7200, "2.0 h")])
def test_durations_are_short(seconds: float, words: str) -> None:
    assert duration(seconds) == words
