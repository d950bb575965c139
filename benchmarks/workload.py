"""What the trainer's benchmarks train on: random models of published shapes, and groups with the lengths of RL on code.

Lengths are drawn, not recorded: a completion is log-normal with its median at a quarter of the context, sigma 0.5
between problems (hard ones are answered at length by every rollout) and 0.6 within one, cut at the context (about
4 % are, and count as overlong). Prompts are uniform from 300 to 1,500 tokens, or from an eighth to a quarter of a
context that is too short for that.
"""

from __future__ import annotations

import math
import platform
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers import Qwen3Config, Qwen3ForCausalLM

from trainer.data.scored_groups import Rollout, ScoredGroup
from trainer.model.layout import AttentionLayout, Span
from trainer.planning.shapes import SHAPES as PUBLISHED

BETWEEN, WITHIN = 0.5, 0.6
MEDIAN = 0.25
"""Median completion over context."""


def _small(layers: int, hidden: int, heads: int, width: int, vocabulary: int, spread: float) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "head_dim": width,
        "tie_word_embeddings": True,
        "max_position_embeddings": 40_960,
        # Large weights make attention sharp, so that a leak is far above rounding.
        "initializer_range": spread,
    }


SMALL = {"tiny": _small(2, 32, 4, 16, 512, 0.3), "small": _small(6, 256, 8, 64, 16_384, 0.1)}
"""For tests, and for a measurement on a CPU: Qwen3's proportions and a vocabulary that two cores can multiply by."""
SHAPES: dict[str, dict[str, Any]] = {**SMALL, **PUBLISHED}
"""Arguments of Qwen3Config by the name that `--shape` takes."""


class Lengths(NamedTuple):
    """One group: its prompt's length, and each completion's, in tokens."""

    prompt: int
    completions: tuple[int, ...]


def draw_lengths(groups: int, group_size: int, context: int, seed: int) -> list[Lengths]:
    """Lengths of `groups` groups; see the module's words. Equal for equal arguments."""
    draw = random.Random(seed)
    low, high = min(300, context // 8), min(1500, context // 4)
    median = math.log(MEDIAN * context)
    found: list[Lengths] = []
    while len(found) < groups:
        prompt, problem = draw.randint(low, high), draw.gauss(median, BETWEEN)
        drawn = [round(math.exp(draw.gauss(problem, WITHIN))) for _ in range(group_size)]
        lengths = Lengths(prompt, tuple(min(max(length, 1), context - prompt) for length in drawn))
        if prompt + min(lengths.completions) < context:  # the trainer drops a group that is overlong as a whole
            found.append(lengths)
    return found


def make_groups(lengths: Sequence[Lengths], context: int, vocabulary: int, seed: int) -> list[ScoredGroup]:
    """Groups of random tokens with these lengths; rewards of finished ones alternate, so no group is flat.

    A sampler's log-probability is that of a uniform choice, which a random model is close to.
    """
    draw = torch.Generator().manual_seed(seed)

    def tokens(count: int) -> list[int]:
        return torch.randint(vocabulary, (count,), generator=draw).tolist()

    found = []
    for number, (prompt, completions) in enumerate(lengths):
        finished = [place for place, length in enumerate(completions) if prompt + length < context]
        rollouts = []
        for place, length in enumerate(completions):
            score = 1.0 if place in finished[::2] else -1.0
            overlong = place not in finished
            reason = "length" if overlong else "stop"
            sampled = [-math.log(vocabulary)] * length
            rollouts.append(Rollout(tokens(length), sampled, score, overlong, reason, [(0, 0, length)]))
        found.append(ScoredGroup(f"g{number}", f"p{number}", 1.0, context, tokens(prompt), rollouts))
    return found


def useful(lengths: Sequence[Lengths]) -> tuple[AttentionLayout, int]:
    """The least that has to be computed, and the trained tokens: each prompt once, no padding, no last token.

    Both loops' FLOPs are counted on it, so that the quotient of two MFUs is the quotient of two speeds.
    """
    spans, position = [], 0
    for prompt, completions in lengths:
        spans.append(Span(position, prompt, tuple(length - 1 for length in completions if length > 1)))
        position = spans[-1].end
    return AttentionLayout(tuple(spans)), sum(sum(group.completions) for group in lengths)


def padded_batches(rows: Sequence[int], max_tokens: int, fixed: int | None = None) -> list[list[int]]:
    """Indices of rows (given by their lengths), in order, each batch padded to its longest row.

    fixed: rows to a batch; None: as many as fit into max_tokens with the padding, at least one.
    """
    batches: list[list[int]] = []
    longest = 0
    for index, length in enumerate(rows):
        count = len(batches[-1]) if batches else 0
        room = count < fixed if fixed else max(longest, length) * (count + 1) <= max_tokens
        if count and room:
            batches[-1].append(index)
            longest = max(longest, length)
        else:
            batches.append([index])
            longest = length
    return batches


def padded_share(rows: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    """Share of the computed positions that are padding."""
    computed = sum(len(batch) * max(rows[index] for index in batch) for batch in batches)
    return 1 - sum(rows[index] for batch in batches for index in batch) / computed


def write_model(shape: str, folder: Path, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Path:
    """A folder with a Qwen3 of this shape, random weights with a fixed seed, as transformers saves it."""
    if (folder / "config.json").is_file():
        return folder
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = Qwen3ForCausalLM(Qwen3Config(**SHAPES[shape]))
    finally:
        torch.set_default_dtype(before)
    model.save_pretrained(folder)
    return folder


def machine(device: torch.device) -> str:
    """The processor or GPU that was measured on, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    names = [line for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if "model name" in line]
    name = names[0].partition(":")[2].strip() if names else platform.machine()
    return f"{len(names)} CPU cores ({name}, {platform.machine()})"


def command(module: str, arguments: Sequence[str]) -> str:
    """The command that measured, without the place of its file."""
    kept = list(arguments)
    if "--out" in kept:
        place = kept.index("--out")
        del kept[place : place + 2]
    return " ".join(["python -m", module, *kept])


def versions() -> dict[str, str]:
    """Versions that a timing depends on."""
    found = {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}
    return found | ({"cuda": str(torch.version.cuda)} if torch.version.cuda else {})
