"""What a run says: each step in one line, why it waits, what it will write; and which options the sides differ in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from environments.common.agreement import OPTIONS, differences
from environments.common.settings import load, option_names
from tests.trainer.conftest import make_groups
from tests.trainer.test_run import api_server
from trainer.checkpoints import Checkpoints
from trainer.config import OptimizerConfig, TrainerConfig
from trainer.console import StepLines, Waiting, duration
from trainer.data.api_client import AtroposClient
from trainer.model.export import save_hf
from trainer.model.loading import stored_shapes
from trainer.model.packing import pack
from trainer.model.policy import Policy
from trainer.optimizer import PolicyOptimizer
from trainer.parallel import Parallel
from trainer.planning import disk_use
from trainer.weight_sync.disk import DiskPublisher


def row(step: int, seconds: float, **changed: float | None) -> dict[str, Any]:
    values: dict[str, Any] = {
        "step": step, "seconds_step": seconds, "tokens_trained": 4800, "reward": -0.25, "pass_at_1": 0.375,
        "loss": 0.04309, "grad_norm": 3.89, "groups": 8,
    }  # fmt: skip
    return values | changed


def test_a_steps_line_has_reward_pass_rate_time_speed_and_what_is_left() -> None:
    progress = StepLines(10)
    assert progress.line(row(1, 20.0)) == (
        "step 1 of 10: reward -0.250, pass@1 37.5%, loss 0.04309, grad norm 3.89, 8 groups, 4,800 tokens (240/s), "
        "20 s, 3 min 0 s left"
    )
    assert progress.line(row(2, 10.0)).endswith("10 s, 2 min 0 s left")  # eight more of 15 s
    empty = progress.line(row(10, 9.0, loss=None, grad_norm=None, reward=None, tokens_trained=0))
    assert empty == (
        "step 10 of 10: reward none, pass@1 37.5%, loss none, grad norm none, 8 groups, 0 tokens (0/s), 9.0 s"
    )


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.04, "0.0 s"), (9.4, "9.4 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_durations_are_said_as_a_person_does(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_wait_is_said_with_its_reason_at_growing_intervals() -> None:
    now = 0.0
    said: list[str] = []
    asked: list[float] = []

    def reason() -> str:
        asked.append(now)
        return "nothing there"

    waiting = Waiting(said.append, lambda: now)
    for second in range(2500):
        now = float(second)
        waiting.look("a batch", reason)
    assert asked == [10, 30, 60, 120, 300, 600, 1200, 1800, 2400]
    assert said[0] == "waiting for a batch, 10 s: nothing there"
    waiting.begin()
    waiting.look("a batch", reason)
    assert len(said) == 9


def test_the_reason_is_what_the_api_server_has(tmp_path: Path) -> None:
    with api_server(tmp_path) as url, AtroposClient(url) as client:
        client.register(batch_size=8, max_token_len=-1, starting_step=0, num_steps=1)
        assert client.why_no_batch().startswith(f"no group waits at {url}, and a batch takes 8 rollouts")
    with AtroposClient(url) as client:
        assert client.why_no_batch() == f"{url} does not say its state (ConnectError)"


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_run_keeps_to_the_bound_that_is_said_at_its_start(alone: Parallel, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    model, run = tmp_path / "model", tmp_path / "run"
    LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=4000, tie_word_embeddings=True)).save_pretrained(model)
    (model / "tokenizer.json").write_text("{}")
    flags = ["--model", str(model), "--run_dir", str(run), "--checkpoint.every", "1", "--checkpoint.keep_last", "2"]
    config = load(TrainerConfig, [*flags, "--weights.servers", '["http://127.0.0.1:1"]'])
    use = disk_use.disk_use(config, stored_shapes(model))
    policy = Policy(model, alone)
    optimizer = PolicyOptimizer(policy, OptimizerConfig())
    (micro,) = pack(make_groups([(6, [4, 5])]), [[1.0, -1.0]], 64, device=policy.device)
    policy.logprobs(micro)[0].sum().backward()
    optimizer.step()
    checkpoints = Checkpoints(run / "checkpoints", alone, keep_last=config.checkpoint.keep_last)
    publisher = DiskPublisher([], run / "weights", dtype=config.weights.dtype)
    largest = 0
    for step in range(1, 6):
        path = checkpoints.save(policy, optimizer, step)
        checkpoints.wait()
        if step == 1:
            (run / "checkpoints" / "best").write_text(path.name + "\n")
        publisher.publish(policy, step)
        largest = max(largest, bytes_in(run))
    checkpoints.close()
    export = save_hf(policy, run / "export", model)
    assert bytes_in(path) == pytest.approx(use.checkpoint, rel=0.03)
    assert bytes_in(run / "weights") == pytest.approx(use.weights, rel=0.03)
    assert bytes_in(export) == pytest.approx(use.export / 2, rel=0.03)
    assert len(list((run / "checkpoints").glob("step-*"))) == 3  # two, and the best
    assert use.checkpoints == 4
    assert 3 * use.checkpoint < largest < bytes_in(run) < use.total
    said = disk_use.line(use, tmp_path)
    assert said.startswith(f"{tmp_path} takes at most ")
    assert "4 checkpoints of " in said
    assert "may not be enough" not in said
    assert "lower checkpoint.keep_last" in disk_use.line(disk_use.DiskUse(2**60, 4, 0, 0), tmp_path)


def test_sides_that_differ_are_told_by_the_options_of_both() -> None:
    sides = {"trainer": {"steps": 2, "context": 640}, "environment": {"steps": 1000, "context": 1024}}
    assert differences(["context", "steps"], sides) == (
        "the sides differ in context, steps: the trainer's batch.context is 640, the environment's env.context is "
        "1024; the trainer's steps is 2, the environment's env.total_steps is 1000. Give both the same"
    )


def test_the_options_named_in_it_exist() -> None:
    from environments.livecode.config import RunConfig

    assert {ours for ours, _ in OPTIONS.values()} <= set(option_names(TrainerConfig))
    assert {theirs for _, theirs in OPTIONS.values()} <= set(option_names(RunConfig))
