"""What trainer and environment must agree on; each says its side to the API server, which refuses both on a difference.

Atropos' registration carries neither model nor context nor baseline: a run whose sides differ in one of them trains on
numbers that mean something else, and looks like a noisy run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
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


OPTIONS = {
    "context": ("batch.context", "env.context"),
    "group_size": ("batch.group_size", "env.group_size"),
    "overlong_baseline": ("objective.overlong_baseline", "env.overlong_baseline"),
    "steps": ("steps", "env.total_steps"),
    "vocabulary": ("model", "model"),
}
"""Each term's option of the trainer and of the environment."""


def differences(names: Sequence[str], sides: Mapping[str, Mapping[str, Any]]) -> str:
    """In what two sides differ, by the options that say it on each: what a user has to change."""
    parts = []
    for name in names:
        options = dict(zip(("trainer", "environment"), OPTIONS.get(name, (name, name)), strict=True))
        what = " has a tokenizer with digest" if name == "vocabulary" else " is"
        said = [
            f"the {side}'s {options.get(side, name)}{what} {terms[name]}"
            for side, terms in sides.items()
            if name in terms
        ]
        parts.append(", ".join(said))
    return f"the sides differ in {', '.join(names)}: {'; '.join(parts)}. Give both the same"


def vocabulary(path: Path) -> str:
    """Digest of the pairs of token and id: the same however the file was written."""
    from tokenizers import Tokenizer

    pairs = sorted(Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True).items())
    return hashlib.sha256(repr(pairs).encode()).hexdigest()[:16]
