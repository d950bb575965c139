"""A tiny Qwen3 that knows two programs, so that the recipe's own files can be rehearsed on two cores.

Random weights would never pass a test, and dynamic sampling would wait for a group with a signal for ever. This one is
taught for a minute to answer every prompt with one of two programs, each half of the time; one of them is right.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from environments.livecode.problems.load import save_problems
from environments.livecode.problems.problem import Problem, TestCase
from environments.livecode.problems.prompts import PromptBuilder
from tests.livecode.conftest import TEMPLATE

ANSWERS = ("```python\nprint(0)\n```", "```python\nprint(1)\n```")
ORIGINAL, LONGEST = 1024, 1280
"""Positions of Qwen3-14B, 32,768 before YaRN and 40,960 in all, divided by 32."""


def problem(name: str) -> Problem:
    """A problem that `print(1)` solves."""
    tests = [TestCase(input=f"{number}\n", output="1\n") for number in range(3)]
    return Problem(id=name, source="rehearsal", kind="stdin", statement=f"Print 1. ({name})", tests=tests)


def write_splits(folder: Path) -> None:
    """train.jsonl, validation.jsonl and test.jsonl."""
    for split, count in (("train", 8), ("validation", 3), ("test", 2)):
        save_problems([problem(f"{split}-{number}") for number in range(count)], folder / f"{split}.jsonl")


def _tokenizer(folder: Path) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    # As Qwen3's: reasoning is what the model does by itself, and can be switched off.
    tokenizer.chat_template = TEMPLATE + "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
    tokenizer.save_pretrained(folder)
    return tokenizer


def make(folder: Path, *, deadline_s: float = 600.0) -> None:
    """Writes the model's folder: weights, configuration, tokenizer."""
    torch.manual_seed(0)
    tokenizer = _tokenizer(folder)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "original_max_position_embeddings": ORIGINAL}
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
    }
    model = Qwen3ForCausalLM(
        Qwen3Config(
            **sizes,
            **heads,
            max_position_embeddings=LONGEST,
            tie_word_embeddings=False,
            rope_parameters=rope,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    _teach(model, tokenizer, deadline_s)
    model.save_pretrained(folder)


def _teach(model: Any, tokenizer: Any, deadline_s: float) -> None:
    builder = PromptBuilder(tokenizer, scaffold="nouscoder", thinking=True, limit=LONGEST)
    prompts = [builder(problem(f"train-{number}")).ids for number in range(2)]
    answers = [[*tokenizer.encode(answer), tokenizer.eos_token_id] for answer in ANSWERS]
    assert len({len(prompt) for prompt in prompts}) == len({len(answer) for answer in answers}) == 1
    length = len(answers[0])
    rows = torch.tensor([[*prompt, *answer] for prompt in prompts for answer in answers])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    until = time.monotonic() + deadline_s
    wanted = math.log(2) / length + 0.01  # the digit is a coin's throw, all else is certain
    while True:
        logits = model(rows).logits[:, -length - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, -length:].flatten())
        if loss < wanted:
            return
        assert time.monotonic() < until, f"not taught within {deadline_s:g} s: loss {loss:.3f}, wanted {wanted:.3f}"
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
