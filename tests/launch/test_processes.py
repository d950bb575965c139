"""Children of a run: a death is reported with the log's end, a stop ends the family and nothing else."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from environments.launch.processes import Child, Family, ProcessError, free_port, tail
from environments.launch.supervise import Restarts


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


def gone(pid: int, deadline_s: float = 10.0) -> bool:
    """Whether the process ended (a zombie counts as ended)."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


def test_a_child_that_dies_at_start_is_reported_with_its_last_lines(tmp_path: Path) -> None:
    child = Child("server", python("import sys; print('out of luck'); sys.exit(7)"), tmp_path / "server.log")
    with pytest.raises(ProcessError) as caught:
        child.wait_ready(f"http://127.0.0.1:{free_port()}/health", 20)
    assert "exit code 7" in str(caught.value)
    assert "out of luck" in str(caught.value)
    assert str(tmp_path / "server.log") in str(caught.value)
    child.stop()


def test_a_child_that_never_listens_is_an_error_after_the_deadline(tmp_path: Path) -> None:
    child = Child("server", python("import time; time.sleep(60)"), tmp_path / "server.log")
    with pytest.raises(ProcessError, match="not ready after"):
        child.wait_ready(f"http://127.0.0.1:{free_port()}/health", 0.5)
    child.stop()


def test_stop_ends_grandchildren_too_and_no_stranger(tmp_path: Path) -> None:
    stranger = subprocess.Popen(python("import time; time.sleep(60)"))
    family = Family()
    child = family.start(
        "parent",
        python(
            "import subprocess, sys, time;"
            "p = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(60)']);"
            "print(p.pid, flush=True); time.sleep(60)"
        ),
        tmp_path / "parent.log",
    )
    while not (text := (tmp_path / "parent.log").read_text()).endswith("\n"):
        time.sleep(0.02)
    family.stop()
    assert child.returncode == -signal.SIGTERM
    assert gone(int(text))
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    child = Child(
        "stubborn",
        python(
            "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
            "print('deaf', flush=True); time.sleep(60)"
        ),
        tmp_path / "log",
    )
    while "deaf" not in tail(tmp_path / "log", 3):
        time.sleep(0.02)
    child.stop(grace_s=0.2)
    assert child.returncode == -signal.SIGKILL


def test_children_end_when_the_supervisor_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from environments.launch.processes import Family;"
        f"f = Family(); c = f.start('c', [sys.executable, '-S', '-c', 'import time; time.sleep(60)'],"
        f" Path({str(tmp_path)!r}) / 'log'); print(c.process.pid, flush=True); time.sleep(60)"
    )
    supervisor = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert supervisor.stdout is not None
    with supervisor.stdout as out:
        pid = int(out.readline())
    os.kill(supervisor.pid, signal.SIGKILL)
    supervisor.wait()
    assert gone(pid)


def started(log: Path) -> int:
    return log.read_text().count("started") if log.exists() else 0


def has_started(log: Path, times: int) -> bool:
    return started(log) == times


def until(condition: Callable[[], bool], family: Family | None = None, deadline_s: float = 30) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end
        if family is not None:
            family.check()
        time.sleep(0.02)


def test_a_child_that_was_ready_is_started_again_up_to_the_limit(tmp_path: Path) -> None:
    said: list[str] = []
    family, log, ready = Family(), tmp_path / "log", tmp_path / "ready"
    code = "import sys, time; print('started', flush=True); open(sys.argv[1], 'w'); time.sleep(60)"
    child = family.start(
        "trainer",
        [*python(code), str(ready)],
        log,
        restarts=Restarts("trainer", 2, said.append, first_pause_s=0.01),
        ready=ready,
    )
    for times in (1, 2):
        until(partial(has_started, log, times), family)
        until(ready.exists)
        os.kill(child.process.pid, signal.SIGKILL)
        child.process.wait()
        assert child.returncode is None  # it is to come back
    until(lambda: started(log) == 3, family)
    os.kill(child.process.pid, signal.SIGKILL)
    child.process.wait()
    with pytest.raises(ProcessError, match="trainer ended with exit code -9"):
        family.check()
    assert child.returncode == -signal.SIGKILL
    assert [line.split(";")[0] for line in said] == [
        "trainer: ended with signal SIGKILL", "trainer: ended with signal SIGKILL",
        "trainer: ended 3 times in a row, at last with signal SIGKILL",
    ]  # fmt: skip
    family.stop()


def test_what_a_dead_child_leaves_is_ended_before_it_is_started_again(tmp_path: Path) -> None:
    family, log = Family(), tmp_path / "log"
    inner = "import time; time.sleep(60)"
    code = f"import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-S', '-c', '{inner}']);"
    code += "print('started', p.pid, flush=True); time.sleep(60)"
    restarts = Restarts("vllm", 1, lambda _: None, first_pause_s=0.01)
    child = family.start("vllm", python(code), log, restarts=restarts, ready=tmp_path)
    until(lambda: log.read_text().endswith("\n"))
    left = int(log.read_text().split()[1])
    os.kill(child.process.pid, signal.SIGKILL)
    child.process.wait()
    until(lambda: started(log) == 2, family)
    assert gone(left)
    family.stop()


def test_a_child_that_was_never_ready_is_not_started_again(tmp_path: Path) -> None:
    family, log = Family(), tmp_path / "log"
    restarts = Restarts("trainer", 9, lambda _: None, first_pause_s=0.01)
    child = family.start(
        "trainer", python("print('started'); raise SystemExit(1)"), log, restarts=restarts, ready=tmp_path / "never"
    )
    child.process.wait()
    with pytest.raises(ProcessError, match="ended with exit code 1"):
        family.check()
    assert started(log) == 1
    family.stop()


def test_tail_gives_the_last_lines_and_says_when_there_are_none(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert "no log" in tail(log, 2)
    log.write_text("a\n\nb\nc\n")
    assert tail(log, 2) == "  b\n  c"
