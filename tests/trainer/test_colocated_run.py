"""A whole run in turns: the trainer's process, the real API, a stand-in for vLLM; killed while vLLM sleeps."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.forked import Forked, forked
from tests.support.policy_server import Engine
from tests.trainer.test_colocated import UPDATE, Recorded
from tests.trainer.test_run import STEPS, api_server, post_groups, trainer_words

SLEEP = "/sleep?level=2&mode=keep"
WEIGHTS = "/wake_up?tags=weights"
PROBE = "/inference/v1/generate"
AWAKE = ["/wake_up?tags=kv_cache", "/resume"]


def run(words: list[str]) -> None:
    from trainer.main import main

    sys.exit(main(words))


def until(condition: Callable[[], object], trainer: Forked) -> None:
    end = time.monotonic() + 200
    while not condition():
        assert trainer.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_run_takes_turns_and_one_killed_while_vllm_sleeps_wakes_it_at_its_next_start(
    models: dict[str, Path], tmp_path: Path
) -> None:
    model, run_dir = models["qwen3"], tmp_path / "run"
    vllm = Recorded(Engine(model, token_s=0.002))
    with api_server(tmp_path) as url:
        options = {"backend": "colocated", "servers": vllm.url, "dtype": "float32", "sleep_level": 2, "verify_every": 1}
        flags = [word for name, value in options.items() for word in (f"--weights.{name}", str(value))]
        words = trainer_words(url, model, run_dir, *flags)
        trainer = forked(run, words)
        try:
            until(lambda: "/resume" in vllm.calls, trainer)
            begun = [WEIGHTS, SLEEP, WEIGHTS, "/init_weight_transfer_engine", *UPDATE, PROBE, *AWAKE]
            assert vllm.taken() == begun
            assert (vllm.engine.version, vllm.engine.paused) == ("0", False)
            vllm.lost = "/wake_up"
            post_groups(url, model, 0, 2)
            until(lambda: WEIGHTS in vllm.calls, trainer)
            trainer.kill()
            trainer.join()
            vllm.lost = None
            assert vllm.taken() == [SLEEP, WEIGHTS]
            assert vllm.engine.asleep == {"weights", "kv_cache"}

            post_groups(url, model, 2, 2 * STEPS)
            trainer = forked(run, words)
            trainer.join(200)
            assert trainer.returncode == 0
        finally:
            trainer.kill()
            vllm.served.stop()
    calls = vllm.taken()
    assert calls[: len(UPDATE) + 5] == [WEIGHTS, "/init_weight_transfer_engine", *UPDATE, PROBE, *AWAKE]
    turn = [SLEEP, WEIGHTS, *UPDATE, PROBE, *AWAKE]
    assert calls[len(UPDATE) + 5 :] == turn * STEPS
    assert (vllm.engine.version, vllm.engine.paused, vllm.engine.asleep) == (str(STEPS), False, set())
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(row["sync_difference_max"] < 1e-3 and row["seconds_turns"] > 0 for row in rows)
    assert (run_dir / "checkpoints" / "latest").read_text().strip() == f"step-{STEPS:08d}"
