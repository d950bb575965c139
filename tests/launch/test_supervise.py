"""What dies is started again, ever later, a limited number of times; what ends well or is asked to stop is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from environments.common.settings import BAD_INPUT_NOTE
from environments.launch.supervise import Restarts, Stop, supervise
from tests.support.forked import completed

COUNT = "import pathlib, sys; p = pathlib.Path(sys.argv[1]); p.write_text(p.read_text() + 'x' if p.exists() else 'x');"


def program(path: Path, then: str) -> list[str]:
    """Leaves an x for each start, then does something."""
    return [sys.executable, "-c", f"{COUNT} {then}", str(path)]


def test_a_process_that_dies_is_started_again_up_to_the_limit(tmp_path: Path) -> None:
    said: list[str] = []
    count = tmp_path / "count"
    allowed = Restarts("vllm", 3, said.append, first_pause_s=0.01, longest_pause_s=0.03)
    code = supervise(program(count, "sys.exit(7)"), allowed)
    assert (code, count.read_text()) == (7, "xxxx")
    assert said[:3] == [f"vllm: ended with exit code 7; restart {n} of 3 in {p} s" for n, p in
                        ((1, "0.01"), (2, "0.02"), (3, "0.03"))]  # fmt: skip
    assert said[3].startswith("vllm: ended 4 times in a row, at last with exit code 7; the limit is 3 restarts.")


def test_one_that_ran_long_enough_may_fail_again(tmp_path: Path) -> None:
    said: list[str] = []
    count = tmp_path / "count"
    then = "sys.exit(0 if len(p.read_text()) == 4 else 7)"
    assert supervise(program(count, then), Restarts("env", 1, said.append, first_pause_s=0.01, steady_s=0)) == 0
    assert said == ["env: ended with exit code 7; restart 1 of 1 in 0.01 s"] * 3


def test_one_that_was_killed_comes_back_and_ends_well(tmp_path: Path) -> None:
    said: list[str] = []
    count = tmp_path / "count"
    then = "import os; len(p.read_text()) == 2 or os.kill(os.getpid(), 9)"
    assert supervise(program(count, then), Restarts("api", 1, said.append, first_pause_s=0.01)) == 0
    assert said == ["api: ended with signal SIGKILL; restart 1 of 1 in 0.01 s"]


@pytest.mark.parametrize(
    "then",
    ["sys.exit(2)", f"import os; pathlib.Path(os.environ[{BAD_INPUT_NOTE!r}]).touch(); sys.exit(1)"],
    ids=["its exit code", "a note of a rank below torchrun"],
)
def test_bad_input_is_not_tried_again(tmp_path: Path, then: str) -> None:
    said: list[str] = []
    count = tmp_path / "count"
    assert supervise(program(count, then), Restarts("trainer", 9, said.append)) == 2
    assert count.read_text() == "x"
    assert said == ["trainer: exit code 2: bad input, not started again; its log says what to fix"]


def test_a_stop_in_the_pause_ends_it_without_another_start(tmp_path: Path) -> None:
    stop = Stop()
    count = tmp_path / "count"
    code = supervise(program(count, "sys.exit(7)"), Restarts("env", 3, lambda _: stop.ask(), first_pause_s=60), stop)
    assert (code, count.read_text()) == (7, "x")


def test_a_signal_reaches_the_process_and_nothing_is_left(tmp_path: Path) -> None:
    count = tmp_path / "count"
    then = (
        "import time, signal; signal.signal(15, lambda *_: sys.exit(0)); (p.parent / 'ready').touch(); time.sleep(600)"
    )
    words = ["-m", "environments.cli", "supervise", "--name", "x", "--restarts", "3", "--", *program(count, then)]
    with subprocess.Popen([sys.executable, *words], stderr=subprocess.PIPE, text=True) as command:
        while not (tmp_path / "ready").exists():
            assert command.poll() is None
            time.sleep(0.02)
        (child,) = psutil.Process(command.pid).children()
        os.kill(command.pid, signal.SIGTERM)
        assert command.wait(30) == 0
        assert not child.is_running()
    assert count.read_text() == "x"


def test_a_terminals_ctrl_c_reaches_the_process_once_for_each_press(tmp_path: Path) -> None:
    then = (
        "import signal, time; log = p.parent / 'log'; "
        "signal.signal(2, lambda *_: log.open('a').write('2') and len(log.read_text()) > 1 and sys.exit(0)); "
        "log.touch(); [time.sleep(0.05) for _ in range(2000)]"
    )
    words = ["-m", "environments.cli", "supervise", "--name", "x", "--", *program(tmp_path / "count", then)]
    log = tmp_path / "log"
    with subprocess.Popen([sys.executable, *words], stderr=subprocess.PIPE, start_new_session=True) as command:
        for presses in ("", "2"):
            while not log.exists() or log.read_text() != presses:
                assert command.poll() is None
                time.sleep(0.02)
            time.sleep(0.3)  # a second one for the same press would have come
            assert log.read_text() == presses
            os.killpg(command.pid, signal.SIGINT)
        assert command.wait(30) == 0


@pytest.mark.timeout(120)
def test_a_trainer_with_wrong_options_is_not_tried_again(tmp_path: Path) -> None:
    trainer = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "1", "--standalone",
               "trainer/main.py", "--model", str(tmp_path), "--run_dir", str(tmp_path), "--steps", "0"]  # fmt: skip
    words = ["-m", "environments.cli", "supervise", "--name", "trainer", "--", *trainer]
    done = completed([sys.executable, *words])
    assert done.returncode == 2
    assert "trainer: exit code 2: bad input, not started again" in done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("error ")] == [
        "error --steps: steps = '0': Input should be greater than or equal to 1"
    ]
