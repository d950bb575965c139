"""Ctrl-C: the first ends the step and saves, the second leaves at once; and the launcher ends with the error itself."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.forked import Forked, completed
from tests.trainer.test_run import ROOT, STEPS, api_server, free_port, losses, post_groups
from trainer.launch import OPTIONS, split

# Its clock is the test's: each line says by how much it goes on; the step that is saved lasts until they end.
WAITS = """
import sys
from types import SimpleNamespace
from trainer.process import signals

class Seen(signals.StopRequest):
    def _on_signal(self, number, frame):
        super()._on_signal(number, frame)
        print("seen", flush=True)

now = 0.0
signals.time = SimpleNamespace(monotonic=lambda: now)
with Seen(60) as stop:
    print("ready", flush=True)
    for line in sys.stdin:
        now += float(line)
        print("later", flush=True)
    print("saved" if stop.requested else "not asked", flush=True)
"""
INT, TERM, PAUSE = signal.SIGINT, signal.SIGTERM, 0


@pytest.mark.parametrize(
    ("presses", "code"),
    [
        ([INT], 0),
        ([TERM], 0),
        ([INT, INT], 0),  # one press, handed on by a parent as well
        ([INT, TERM], 0),
        ([TERM, TERM], 0),
        ([INT, PAUSE, INT], 130),
        ([TERM, PAUSE, INT], 130),
    ],
)
def test_the_first_signal_is_a_request_and_a_second_ctrl_c_is_not(presses: list[int], code: int) -> None:
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", WAITS], cwd=ROOT, **pipes) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        said = process.stdout.readline
        assert said() == "ready\n"
        for number, press in enumerate(presses, 1):
            leaves = bool(code) and number == len(presses)
            if press != PAUSE:
                process.send_signal(press)
                # A line, too: a signal just before the read wakes nobody, and is noticed when the read returns.
                with contextlib.suppress(BrokenPipeError):
                    print(0.02, file=process.stdin, flush=True)
                assert said() == ("" if leaves else "seen\n")
            else:
                print(0.6, file=process.stdin, flush=True)
            assert said() == ("" if leaves else "later\n")
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        assert said() == ("" if code else "saved\n")
        assert process.wait(30) == code


def options(url: str, model: Path, run: Path) -> list[str]:
    values = {
        "--model": model, "--run_dir": run, "--steps": STEPS, "--api.url": url, "--batch.rollouts": 8,
        "--batch.group_size": 4, "--batch.context": 64, "--batch.max_tokens": 64, "--checkpoint.every": 0,
        "--checkpoint.export": "false",
    }  # fmt: skip
    return [str(word) for pair in values.items() for word in pair]


def test_ctrl_c_under_supervise_and_the_launcher_saves_and_says_how_to_go_on(
    models: dict[str, Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    launch = [sys.executable, "-m", "trainer.launch", "--nproc-per-node", "1", "--master-port", str(free_port())]
    words = [sys.executable, "-m", "environments.cli", "supervise", "--name", "trainer", "--", *launch]
    with api_server(tmp_path) as url:
        post_groups(url, models["qwen3"], 0, 2)
        command = Forked([*words, *options(url, models["qwen3"], run)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        try:
            while not (run / "metrics.jsonl").exists():
                assert command.poll() is None, command.communicate()[1]
                time.sleep(0.1)
            os.killpg(command.pid, signal.SIGINT)  # as a terminal does
            errors = command.communicate(timeout=120)[1]
        finally:
            command.kill()
        post_groups(url, models["qwen3"], 2, 6)
        done = completed([sys.executable, "trainer/main.py", *options(url, models["qwen3"], run)])
    assert "Ctrl-C: ending the step and saving, at most 600 s; Ctrl-C again leaves at once" in errors
    assert "saved after step 1 of 3; the same command resumes" in errors.splitlines()[-1], errors
    assert "Traceback" not in errors
    assert done.returncode == 0, done.stderr
    assert "resumed after step 1" in done.stderr
    assert "step 3 of 3: reward " in done.stderr
    assert [path.name for path in sorted((run / "checkpoints").glob("step-*"))] == ["step-00000001", "step-00000003"]
    assert len(losses(run)) == STEPS


@pytest.mark.parametrize(
    ("flags", "code", "last"),
    [
        (["--steps", "0"], 2, "error --steps: steps = '0': Input should be greater than or equal to 1"),
        (["--model", "elsewhere"], 2, "error model elsewhere: no model there (no config.json)"),
    ],
)
def test_the_launchers_last_line_is_the_error_and_its_code_the_ranks(
    models: dict[str, Path], tmp_path: Path, flags: list[str], code: int, last: str
) -> None:
    words = ["--nproc_per_node=1", *options("http://127.0.0.1:9", models["llama"], tmp_path / "run"), *flags]
    done = completed([sys.executable, "-m", "trainer.launch", *words])
    lines = done.stderr.splitlines()
    assert done.returncode == code, done.stderr
    assert lines[-1].startswith(last)
    assert sum(line.startswith("error ") for line in lines) == 1


def test_torchruns_own_summary_closes_with_the_error(models: dict[str, Path], tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    words = [*options("http://127.0.0.1:9", models["llama"], tmp_path / "run"), "--model", "elsewhere"]
    done = completed([*torchrun, "trainer/main.py", *words])
    assert done.returncode == 1
    assert done.stderr.splitlines()[-2].startswith("  traceback : error model elsewhere: no model there")


def test_the_launcher_hands_on_options_that_torchrun_knows() -> None:
    from torch.distributed.run import get_args_parser

    known = get_args_parser()._option_string_actions
    assert all(f"--{option}" in known and known[f"--{option}"].nargs != 0 for option in OPTIONS)
    assert split(["--nproc_per_node", "2", "--steps=3", "--rdzv-endpoint=a:1", "--optimizer.lr", "0.1"]) == (
        ["--nproc-per-node=2", "--rdzv-endpoint=a:1"],
        ["--steps=3", "--optimizer.lr", "0.1"],
    )
