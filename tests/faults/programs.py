"""A tiny model whose tokens are whole programs, and problems that a random one of them solves half of the time.

A random model never writes a program. Here every token is a fenced block with a complete one, and the last block of an
answer is the program, as in any answer; so rewards differ within a group, and they are the real judge's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PROGRAMS = [
    *(f"print(int(input()) + {number % 2})" for number in range(22)),
    "n = int(input())\nprint(n + 1 if n < 100 else n)",  # fails one of its two tests, or none
    "print(max(int(input()), 100))",
    "print(1 // 0)",
    "print(int(input()) +",
    "import sys\nsys.exit(3)",
    "print(len(list(map(int, input().split()))))",
]
"""Right for `n` or for `n + 1`, or for neither; some end in an error or do not compile."""

ENDS = 6
"""Tokens that end an answer: about one in six, so that most answers end by themselves."""

TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"


def write_model(folder: Path) -> Path:
    """A random Qwen3 of two layers with its tokenizer; vLLM loads it as well."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    special = ["<pad>", "<unk>", *(f"<end-{number}>" for number in range(ENDS))]
    blocks = [f"\n```python\n# {number}\n{code}\n```\n" for number, code in enumerate(PROGRAMS)]
    words = ["add", "nothing", "one", "to", "the", "number"]
    vocabulary = {text: number for number, text in enumerate([*special, *blocks, *words])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", pad_token="<pad>", eos_token="<end-0>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": special[3:]})
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(7)
    config = Qwen3Config(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=512,
        initializer_range=0.08,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=list(range(2, 2 + ENDS)),
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


def write_problems(path: Path) -> Path:
    """Two kinds of problem in the project's form, several of each, in a JSONL file."""
    rows: list[dict[str, Any]] = []
    for number in range(12):
        added = number % 2
        tests = [{"input": f"{value}\n", "output": f"{value + added}\n"} for value in (number, 200 + number)]
        rows.append(
            {
                "id": f"add-{number}",
                "source": "faults",
                "kind": "stdin",
                "statement": f"add {('nothing', 'one')[added]} to the number",
                "tests": tests,
            }
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
