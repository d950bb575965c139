"""Models whose long sequences a pack cannot compute are refused before their weights are read; the others are exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from environments.common.errors import ConfigError
from tests.trainer.conftest import SIZES, make_groups
from trainer.model.attention import UnsupportedAttention
from trainer.model.loading import UnsupportedModel
from trainer.model.packing import pack
from trainer.model.policy import Policy
from trainer.parallel import Parallel

LENGTH = 24
"""Positions that the models were pre-trained for."""
ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": LENGTH},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": LENGTH,
    },
    "dynamic": {"factor": 2.0},
    "longrope": {
        "factor": 4.0,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [2.0, 2.5, 3.0, 4.0],
        "original_max_position_embeddings": LENGTH,
    },
}


def rope_model(folder: Path, kind: str) -> Path:
    torch.manual_seed(7)
    sizes = SIZES | {"max_position_embeddings": LENGTH if kind == "dynamic" else 4 * LENGTH}
    config = LlamaConfig(**sizes, rope_parameters={"rope_type": kind, "rope_theta": 10_000.0, **ROPES[kind]})
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def largest_difference(path: Path, policy: Policy, shapes: list[tuple[int, list[int]]]) -> float:
    """Between the packed policy and transformers on each rollout alone, in nats."""
    groups = make_groups(shapes)
    [micro] = pack(groups, [[1.0] * len(group.rollouts) for group in groups], 1000)
    with torch.no_grad():
        ours = policy.logprobs(micro)[0].split(micro.length.tolist())
    away = []
    for (number, place), mine in zip(micro.origin, ours, strict=True):
        group = groups[number]
        completion = group.rollouts[place].completion
        plain = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)  # fresh: dynamic keeps what it saw
        ids = torch.tensor([group.prompt + completion])
        with torch.no_grad():
            table = (plain(ids, use_cache=False).logits[0, :-1] / group.temperature).log_softmax(-1)
        theirs = table.gather(1, ids[0, 1:, None])[-len(completion) :, 0]
        away.append(float((mine - theirs).abs().max()))
    return max(away)


@pytest.mark.parametrize("kind", ROPES)
def test_every_rope_type_is_computed_as_transformers_does_within_its_length(
    tmp_path: Path, alone: Parallel, kind: str
) -> None:
    path = rope_model(tmp_path, kind)
    policy = Policy(path, alone, context=LENGTH)
    assert largest_difference(path, policy, [(9, [4, 15]), (3, [8, 2])]) < 1e-4


@pytest.mark.parametrize("kind", ["default", "linear", "yarn", "llama3"])
def test_fixed_frequencies_are_computed_as_transformers_does_beyond_it(
    tmp_path: Path, alone: Parallel, kind: str
) -> None:
    path = rope_model(tmp_path, kind)
    policy = Policy(path, alone, context=3 * LENGTH)
    assert largest_difference(path, policy, [(9, [4, 50]), (3, [8, 2])]) < 1e-4


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_frequencies_of_a_sequences_length_are_refused_beyond_it(tmp_path: Path, alone: Parallel, kind: str) -> None:
    path = rope_model(tmp_path, kind)
    with pytest.raises(UnsupportedModel, match=rf"'{kind}' makes frequencies by .* set batch.context to {LENGTH} or"):
        Policy(path, alone, context=LENGTH + 1)


def window_model(folder: Path, *, window: int) -> Path:
    config = Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=window, max_window_layers=1)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


def test_a_sliding_window_is_refused_before_the_weights_are_read(tmp_path: Path, alone: Parallel) -> None:
    """The window is the second layer's only."""
    path = window_model(tmp_path, window=32)
    Policy(path, alone, context=32)
    with pytest.raises(UnsupportedAttention, match=r"batch.context 33: sliding_window 32 < context 33") as caught:
        Policy(path, alone, context=33)
    assert isinstance(caught.value, ConfigError)
    assert caught.value.exit_code == 2
