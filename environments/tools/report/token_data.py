"""Tokens of recorded rollouts for the page: packed as the records hold them, and unpacked when one is looked at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from environments.common.packed import IDS, unpacked
from environments.common.record_lines import tolerant
from environments.common.trained_records import TrainedTokens
from environments.livecode.records.schema import RolloutRecord
from environments.tools.report.values import Row, Rows, text
from environments.tools.report.vocabulary import texts

MOST_BYTES = 16 * 2**20
"""Of packed tokens in one page: the newest rollouts' are kept. 300 answers of 10,000 tokens fit."""
FOLDER = "trained_tokens"


def of_record(record: RolloutRecord) -> Row | None:
    """{ids, logprobs}, packed, of a rollout's record; None where it holds none."""
    if not record.token_ids or not record.logprobs:
        return None
    return {"ids": record.token_ids, "logprobs": record.logprobs}


def key_of(group: object, index: object) -> str:
    """What a rollout's tokens are kept under."""
    return f"{group}/{index}"


def trained(row: Row) -> Row | None:
    """What the trainer says of a rollout's tokens: {step, advantage, ratio, old, change, flags}; None: damaged."""
    found = tolerant(row, TrainedTokens)
    if found is None or not (found.old and found.change and found.flags):
        return None
    kept = {name: getattr(found, name) for name in ("old", "change", "flags", "step", "advantage", "ratio")}
    return {name: value for name, value in kept.items() if value is not None}


def read_trained(
    run: Path, read: Callable[[Path, Counter[str]], Rows], wanted: Collection[str], damaged: Counter[str]
) -> dict[str, Row]:
    """The trainer's records of the wanted rollouts, by `key_of`; of a rollout that was trained on again the last."""
    found: dict[str, Row] = {}
    for path in sorted((run / FOLDER).glob("*.jsonl")) if wanted else ():
        for row in read(path, damaged):
            key = key_of(row.get("group_id"), row.get("index"))
            if key in wanted and (one := trained(row)):
                found[key] = one
    return found


def split(rollouts: Rows, known: dict[str, Row], most: int = MOST_BYTES) -> tuple[Rows, dict[str, Row]]:
    """The rollouts without their packed tokens, and those by `key_of`: the newest ones', as many as `most` bytes hold.

    known: `read_trained`'s. What is shown of a rollout is in its `tokens`: here, or left out for room.
    """
    shown: Rows = []
    kept: dict[str, Row] = {}
    left = most
    for one in reversed(rollouts):
        packed = one.get("packed")
        row = {key: value for key, value in one.items() if key != "packed"}
        if packed:
            key = key_of(one["group"], one["index"])
            whole = packed | ({"trained": known[key]} if key in known else {})
            left -= _size(whole)
            row["tokens"] = "here" if left >= 0 else "left out"
            if left >= 0:
                kept[key] = whole
        shown.append(row)
    return shown[::-1], kept


def forget_tokens(rollouts: Rows, most: int = MOST_BYTES) -> None:
    """Lets go of the packed tokens of older rollouts than `split` would keep."""
    left = most
    for one in reversed(rollouts):
        if one["packed"]:
            left -= _size(one["packed"])
            if left < 0:
                one["packed"] = None


def vocabulary(kept: Iterable[Row], folder: str | None) -> dict[int, str]:
    """The texts of the tokens that occur: {id: bytes, one a character}; empty where there is no tokenizer."""
    if folder is None:
        return {}
    used: set[int] = set()
    for one in kept:
        try:
            used.update(np.unique(unpacked(one["ids"], IDS)).tolist())
        except ValueError:
            continue
    return texts(Path(folder), used)


def tokenizer_folder(environment: Row, trainer: Row) -> str | None:
    """The folder whose tokenizer made the tokens, as the run's options name it; None where none is on this machine."""
    env: Any = environment.get("env")
    given = (environment.get("tokenizer"), environment.get("model"), trainer.get("model"))
    named = [env.get("tokenizer_name") if isinstance(env, dict) else None]
    for folder in (*given, *named):
        if text(folder) and (found := cached(str(folder))):
            return found
    return None


def cached(model: str) -> str | None:
    """The folder of a model that is on this machine, by its path or its name on the hub; nothing is downloaded."""
    if (Path(model) / "tokenizer.json").is_file():
        return model
    from environments.common.hub import is_hub_name

    if not is_hub_name(model):
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, "tokenizer.json")
    return str(Path(found).parent) if isinstance(found, str) else None


def _size(packed: Row) -> int:
    parts = [*packed.values(), *(packed.get("trained") or {}).values()]
    return sum(len(part) for part in parts if isinstance(part, str))
