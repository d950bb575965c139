"""A whole run over nccl under torchrun: a server that comes back while a batch is waited for, and a hang."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.weight_receivers import Receiver
from tests.trainer.test_run import ROOT, api_server, post_groups, start_trainer

DEADLINE_S = 60


def until(condition: Callable[[], bool], seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.1)


@pytest.mark.slow  # two ranks under torchrun that import vLLM, and a deadline that has to pass
@pytest.mark.timeout(900)
def test_a_server_that_comes_back_gets_the_weights_and_a_hang_ends_every_rank(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, hang = models["qwen3"], tmp_path / "hang"
    monkeypatch.setenv("HANG_WHEN", str(hang))
    first, second = Receiver(1), Receiver(2)
    with api_server(tmp_path) as url:
        trainer = start_trainer(
            url,
            model,
            tmp_path / "run",
            *("--weights.backend", "nccl", "--weights.servers", f"{first.url},{second.url}"),
            # The stand-in servers have no model to compare.
            *("--weights.verify_every", "0", "--weights.deadline_s", str(DEADLINE_S)),
            program=ROOT / "tests" / "support" / "nccl_trainer.py",
        )
        back = second
        try:
            until(lambda: first.state()["version"] == second.state()["version"] == "0" or trainer.poll() is not None)
            second.kill()
            back = Receiver(2, port=second.port)
            until(lambda: back.state()["version"] == "0" or trainer.poll() is not None)
            (started,) = first.received()
            assert back.received() == [started, started]

            post_groups(url, model, 0, 2)
            until(lambda: back.state()["version"] == "1" or trainer.poll() is not None)
            (trained,) = first.received()
            assert back.received() == [trained, trained]
            assert trained.keys() == started.keys()
            assert all(trained[name] != started[name] for name in trained)

            hang.touch()
            post_groups(url, model, 2, 4)
            errors = trainer.communicate(timeout=240)[1]
        finally:
            trainer.kill()
            for server in (first, second, back):
                server.kill()
    assert trainer.returncode == 1
    assert f"error weights to {first.url}, {back.url}, phase update: not ended by its deadline" in errors, errors
