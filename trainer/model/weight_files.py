"""Which files of a Hugging Face folder hold its weights. Standard library only: vLLM's processes import it too."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PLACES = 64


def checkpoint_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder in transformers' order: the single file, else those that the index names.

    Any other file is left alone: an older save with more shards, or the same weights under other names. [] where there
    is neither. Raises ValueError for an index that is damaged, names files that are missing, or lie elsewhere.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    index = folder / INDEX
    if not index.is_file():
        return []
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        outside = [name for name in names if Path(name).name != name]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{INDEX} is damaged ({type(error).__name__}: {error}); save the model again") from None
    if outside or not names:
        raise ValueError(f"{INDEX} names {outside[0] if names else 'no file'}; save the model again")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{INDEX} names {missing[0]}, which is not there ({len(missing)} missing); copy all of it")
    return [folder / name for name in names]


def fingerprint(folder: Path) -> str:
    """Tells one model's weights from another's of the same shapes: sizes, headers and a sample of the files' bytes.

    A checkpoint that holds an adapter alone names its base by it. 64 places of 4 KiB in each file are read.
    """
    found = hashlib.sha256()
    for path in checkpoint_files(folder):
        size = path.stat().st_size
        found.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for place in range(_PLACES):
                file.seek(size * place // _PLACES)
                found.update(file.read(4096))
    return found.hexdigest()
