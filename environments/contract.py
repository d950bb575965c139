"""What trainer and environment must agree on; each says its side to the API server, which refuses both on a difference.

Atropos' registration carries neither model nor context nor baseline: a run whose sides differ in one of them trains on
numbers that mean something else, and looks like a noisy run.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any


def terms(
    *,
    model: Path,
    context: int,
    group_size: int,
    overlong_baseline: str,
    steps: int | None,
    sends_weights: bool | None = None,
) -> dict[str, Any]:
    """One side's terms; those that only one side knows are not compared.

    model: folder with the tokenizer. context: longest prompt and completion, in tokens. steps: batches of the run;
    None: as the other side says. sends_weights: whether the trainer puts its weights into vLLM servers; None: the
    environment, which does not know.
    """
    said: dict[str, Any] = {"context": context, "group_size": group_size, "overlong_baseline": overlong_baseline}
    if steps is not None:
        said["steps"] = steps
    if sends_weights is not None:
        said["sends_weights"] = sends_weights
    if (model / "tokenizer.json").is_file():
        said["vocabulary"] = vocabulary(model / "tokenizer.json")
    return said


def vocabulary(path: Path) -> str:
    """Digest of the pairs of token and id: the same however the file was written."""
    from tokenizers import Tokenizer

    pairs = sorted(Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True).items())
    return hashlib.sha256(repr(pairs).encode()).hexdigest()[:16]
