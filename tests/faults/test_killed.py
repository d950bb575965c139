"""kill -9 of the trainer's ranks and of the API server at drawn moments; the same commands again; then the audit."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from environments.tools.audit import audit
from tests.trainer.conftest import models
from tests.trainer.test_run import api_server, post_groups, start_trainer

__all__ = ["models"]  # the fixture
STEPS = 6


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.01)


def trained(run: Path) -> int:
    path = run / "trained.jsonl"
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def as_made(run: Path, count: int) -> None:
    """What an environment would have recorded of the groups that `post_groups` sends."""
    verdicts = ["accepted", "wrong_answer", "wrong_answer", "accepted"]
    with (run / "environment.jsonl").open("w") as file:
        for number in range(count):
            row = {"group_id": f"g-{number}", "scores": [1.0, -1.0, -1.0, 1.0], "verdicts": verdicts, "sent": True}
            file.write(json.dumps(row | {"dropped": None}) + "\n")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])  # slow: other
# moments of the same deaths
def test_killed_trainers_and_servers_go_on_and_train_each_group_once(
    models: dict[str, Path], tmp_path: Path, seed: int
) -> None:
    draw = random.Random(seed)
    model, run = models["qwen3"], tmp_path / "run"
    run.mkdir()
    flags = ["--steps", str(STEPS), "--checkpoint.every", "2", "--checkpoint.resume", "auto"]
    as_made(run, 2 * STEPS)
    with api_server(run) as url:
        post_groups(url, model, 0, 2 * STEPS)
        trainer = start_trainer(url, model, run, *flags)
        until(lambda: trained(run) >= draw.choice([1, 3]) or trainer.poll() is not None)
        ranks = [child for child in psutil.Process(trainer.pid).children() if child.is_running()]
        victim = draw.choice(ranks).pid if ranks else trainer.pid
        os.kill(victim, signal.SIGKILL)  # torchrun ends the other rank
        trainer.communicate(timeout=240)
        assert trainer.returncode != 0
    # The with block ended the server by kill -9 as well: the journal is all that it leaves.
    with api_server(run) as url:
        again = start_trainer(url, model, run, *flags, ranks=1)
        errors = again.communicate(timeout=180)[1]
        assert again.returncode == 0, errors
    found = audit(run, journal=run / "journal")
    assert found.violations == []
    assert found.counts["groups trained on"] == 2 * STEPS
    assert found.counts["groups waiting at the API server"] == 0
