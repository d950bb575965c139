"""The program in a model's answer, by LiveCodeBench's own rule."""

from __future__ import annotations

FENCE = "```"
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"


def answer_part(text: str, reasoning_open: bool = False) -> str:
    """The text after the reasoning; empty when the reasoning was never closed.

    Args:
        text: a completion, special tokens removed.
        reasoning_open: the prompt already opened the reasoning, so the completion starts inside it.
    """
    if not reasoning_open and not text.lstrip().startswith(THINK_OPEN):
        return text
    return text.partition(THINK_CLOSE)[2]  # the first one: the answer, or its program, may say the word again


def reasoning_closed(text: str) -> bool:
    """Whether an answer holds the end of a reasoning that somebody else opened, and not just its program the word."""
    before, mark, after = text.partition(THINK_CLOSE)
    alone = not before.rpartition("\n")[2].strip() and not after.partition("\n")[0].strip()
    return bool(mark) and (alone or sum(FENCE in line for line in before.split("\n")) % 2 == 0)


def extract_code(text: str, reasoning_open: bool = False) -> str | None:
    """The text between the last two lines that contain three backticks; None where there is no code.

    The language after the opening backticks does not matter, and neither does text after the block. An answer
    whose last block is not closed gives what is between the last two such lines, as the benchmark does.
    """
    lines = answer_part(text, reasoning_open).split("\n")
    fences = [number for number, line in enumerate(lines) if FENCE in line]
    if len(fences) < 2:
        return None
    code = "\n".join(lines[fences[-2] + 1 : fences[-1]])
    return code if code.strip() else None
