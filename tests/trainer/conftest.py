"""Tiny random models and batches that every test of the trainer's tensors uses."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from trainer.data.scored_groups import Rollout, ScoredGroup
from trainer.parallel import Parallel, distributed

VOCABULARY = 61
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    # Large weights make attention sharp, so that a leak is far above rounding.
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def make_model(kind: str) -> PreTrainedModel:
    """A tied Llama or an untied Qwen3 (whose heads are wider than hidden / heads), random with a fixed seed."""
    torch.manual_seed(7)
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True))
    return Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=False))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the two tiny models, saved by transformers."""
    folder = tmp_path_factory.mktemp("models")
    for kind in ("llama", "qwen3"):
        make_model(kind).save_pretrained(folder / kind)
    return {kind: folder / kind for kind in ("llama", "qwen3")}


@pytest.fixture(params=["llama", "qwen3"])
def model_path(request: pytest.FixtureRequest, models: dict[str, Path]) -> Path:
    """Each tiny model's folder in turn."""
    return models[request.param]


@pytest.fixture
def alone() -> Iterator[Parallel]:
    """A world of one CPU process."""
    with distributed(deadline_s=60, device="cpu") as parallel:
        yield parallel


def make_groups(shapes: list[tuple[int, list[int]]], seed: int = 3) -> list[ScoredGroup]:
    """Groups with random tokens: (prompt length, completion lengths) each; every other group at temperature 0.7."""
    rng = random.Random(seed)

    def tokens(length: int) -> list[int]:
        return [rng.randrange(3, VOCABULARY) for _ in range(length)]

    return [
        ScoredGroup(
            group_id=f"g{number}",
            problem_id=f"p{number}",
            temperature=0.7 if number % 2 else 1.0,
            context=256,
            prompt=tokens(prompt),
            rollouts=[
                Rollout(tokens(length), [-1.0 - place / 8] * length, 1.0, False, "stop", [(0, 0, length)])
                for place, length in enumerate(lengths)
            ],
        )
        for number, (prompt, lengths) in enumerate(shapes)
    ]


def beginning_alike(groups: list[ScoredGroup], length: int, seed: int = 5) -> list[ScoredGroup]:
    """The same groups with `length` equal tokens before each prompt, as worked examples are."""
    rng = random.Random(seed)
    first = [rng.randrange(3, VOCABULARY) for _ in range(length)]
    return [replace(group, prompt=[*first, *group.prompt]) for group in groups]


@pytest.fixture
def groups_of() -> Callable[..., list[ScoredGroup]]:
    """`make_groups`."""
    return make_groups


@pytest.fixture(scope="session")
def two_ranks(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    """Rank 0's results of tests/trainer/two_ranks.py, run once by two processes over gloo, and some of rank 1's.

    Before, one rank leaves a checkpoint after two updates in "folder"/by-one, with which the two go on.
    """
    # Imported here: these modules take their groups from this one.
    from tests.support.forked import Ranks
    from tests.trainer import two_ranks as program
    from trainer.checkpoints import Checkpoints

    folder = tmp_path_factory.mktemp("two-ranks")
    with distributed(deadline_s=60, device="cpu") as parallel:
        policy, optimizer = program.start(models["llama"], parallel)
        program.train(policy, optimizer, parallel, 2)
        checkpoints = Checkpoints(folder / "by-one", parallel)
        checkpoints.save(policy, optimizer, 2)
        checkpoints.wait()
        policy, optimizer = program.start(models["llama"], parallel, program.ADAPTER)
        program.train(policy, optimizer, parallel, 3)
        adapter_alone = policy.adapter_state()
    Ranks(2, folder, program.main, models["llama"].parent, folder).wait()
    first, second = (torch.load(folder / f"results-{rank}.pt") for rank in range(2))
    return {
        **first,
        "folder": folder,
        ("adapter", "alone"): adapter_alone,
        "barrier": (folder / "barrier-0.txt").read_text(),
        **{f"{name} of rank 1": second[name] for name in ("broadcast", "full", "missing", "durable", "together")},
    }
