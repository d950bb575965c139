"""One GPU in turns: what each phase needs by hand, and one message for what does not fit, whose fix fits."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, PretrainedConfig

from trainer.budget import main
from trainer.config import TrainerConfig
from trainer.planning.fit import DoesNotFitMemory, check_memory, setup
from trainer.planning.shapes import SHAPES
from trainer.planning.timeline import FRAGMENTATION, GIB, RESERVED_GIB, plan
from trainer.planning.turns import ASLEEP_GIB, ENGINE_GIB, Turns, turns, turns_refusal

SERVER = ["--weights.backend", "colocated", "--weights.servers", "http://127.0.0.1:1"]
FLAGS = ["--model", "Qwen3-1.7B", "--gpus", "1", "--batch.context", "4096", "--batch.max_tokens", "4096", *SERVER]
COUNT = 1_720_574_976
"""Numbers of Qwen3-1.7B, its tied head once."""


def qwen3() -> PretrainedConfig:
    return AutoConfig.for_model("qwen3", **SHAPES["Qwen3-1.7B"])


def chosen(share: float = 0.85, context: int = 4096, state: str = "device", level: int = 1) -> TrainerConfig:
    weights = {"backend": "colocated", "servers": ["http://127.0.0.1:1"], "server_share": share, "sleep_level": level}
    return TrainerConfig.model_validate(
        {
            "model": "Qwen3-1.7B",
            "run_dir": "unused",
            "weights": weights,
            "batch": {"context": context, "max_tokens": context},
            "optimizer": {"state": state},
        }
    )


def found(config: TrainerConfig, memory: float) -> Turns:
    return turns(qwen3(), config, plan(qwen3(), setup(config, 1)), memory * GIB)


def test_each_phase_is_what_its_two_processes_hold() -> None:
    config = chosen()
    budget = plan(qwen3(), setup(config, 1))
    is_now = found(config, 79.1)
    assert is_now.training == budget.needed + ASLEEP_GIB * GIB
    assert is_now.served == pytest.approx(2 * COUNT, rel=1e-6)
    assert is_now.token == 2 * 2 * 28 * 8 * 128
    assert is_now.generation == (0.85 * 79.1 + RESERVED_GIB) * GIB
    assert is_now.cache == pytest.approx((0.85 * 79.1 - ENGINE_GIB) * GIB - 2 * COUNT, rel=1e-6)
    publish = next(moment.total for moment in budget.phases if moment.phase == "publish")
    assert is_now.publication == pytest.approx(
        publish * (1 + FRAGMENTATION) + (RESERVED_GIB + ASLEEP_GIB) * GIB + 2 * COUNT + 2 * 151_936 * 2048, rel=1e-6
    )
    assert is_now.host == pytest.approx(12 * COUNT + 2 * COUNT, rel=1e-6)
    assert is_now.host_asleep == pytest.approx(2 * COUNT, rel=1e-6)
    assert found(chosen(level=2), 79.1).host_asleep == 0.0


def test_moments_in_host_memory_are_there_in_every_phase() -> None:
    assert found(chosen(state="cpu"), 79.1).host == pytest.approx(14 * COUNT, rel=0.01)
    assert found(chosen(), 79.1).publication - found(chosen(state="cpu"), 79.1).publication > 8 * COUNT


def fixed(config: TrainerConfig, memory: float, expected: str) -> str:
    message = turns_refusal(qwen3(), config, plan(qwen3(), setup(config, 1)), memory * GIB)
    assert message is not None
    assert expected in message
    return message


def test_a_step_that_does_not_fit_beside_a_sleeping_vllm_is_refused() -> None:
    message = fixed(chosen(), 28.0, "training does not fit beside a sleeping vLLM, which keeps 2.0 of 28 GiB")
    assert "26 there" in message


def test_a_share_that_leaves_the_trainers_process_nothing_is_refused_with_one_that_does() -> None:
    message = fixed(chosen(share=0.98), 79.1, "weights.server_share 0.98 of 79.1 GiB leaves the trainer's process less")
    most = float(re.findall(r"gpu_memory_utilization to ([\d.]+) or less", message)[0])
    config = chosen(share=most)
    assert turns_refusal(qwen3(), config, plan(qwen3(), setup(config, 1)), 79.1 * GIB) is None


def test_a_share_without_room_for_one_sequence_is_refused_with_one_that_has_it() -> None:
    message = fixed(chosen(share=0.06, context=8192), 79.1, "leave no cache for one sequence of batch.context 8192")
    least = float(re.findall(r"gpu_memory_utilization to ([\d.]+) or more", message)[0])
    config = chosen(share=least, context=8192)
    assert turns_refusal(qwen3(), config, plan(qwen3(), setup(config, 1)), 79.1 * GIB) is None
    assert found(config, 79.1).cache < 1.5 * 8192 * found(config, 79.1).token


def test_the_command_shows_all_phases_and_ends_with_one_where_one_does_not_fit(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(FLAGS) == 0
    printed = capsys.readouterr().out
    assert all(re.search(rf"^  {phase} +\d", printed, re.M) for phase in ("training", "publication", "generation"))
    assert main([*FLAGS, "--memory_gib", "20"]) == 1
    assert "beside a sleeping vLLM" in capsys.readouterr().err
    assert main([*FLAGS, "--gpus", "2"]) == 2
    assert "set gpus: 1" in capsys.readouterr().err


def test_the_trainer_refuses_it_before_it_reads_the_model(models: dict[str, Path]) -> None:
    config = chosen().model_copy(update={"model": models["llama"], "memory_gib": 2.0})
    with pytest.raises(
        DoesNotFitMemory, match=r"weights\.backend colocated: .*memory_gib: 0 begins without this check"
    ):
        check_memory(config, 1, torch.device("cpu"))
