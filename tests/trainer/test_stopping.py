"""A rank ends with the torchrun that started it, also where that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

RANK = """
import os, pathlib, sys, time
from trainer.process.signals import end_with_launcher
end_with_launcher()
pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))
time.sleep(120)
"""


@pytest.mark.timeout(180)
def test_no_rank_outlives_a_torchrun_that_is_killed(tmp_path: Path) -> None:
    program, ready = tmp_path / "rank.py", tmp_path / "ready"
    program.write_text(RANK)
    torchrun = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", program, ready],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    try:
        while not ready.exists() or not ready.read_text():
            assert torchrun.poll() is None
            time.sleep(0.05)
        rank = psutil.Process(int(ready.read_text()))
        assert rank.is_running()
    finally:
        os.kill(torchrun.pid, signal.SIGKILL)
        torchrun.wait()
    rank.wait(30)
