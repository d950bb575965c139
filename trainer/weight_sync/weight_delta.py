"""Weights as a whole checkpoint and what changed since, bit for bit: written by the trainer, read by vLLM's workers.

    version-4-<time>/    model.safetensors                 all weights
    version-5-<time>/    delta.safetensors, delta.json     the numbers that differ from version 4's
    version-6-<time>/    delta.safetensors, delta.json     the numbers that differ from version 5's

delta.json names the whole checkpoint and every delta up to its own, each with its checksum. So a folder is all that a
server needs, whatever it had before: it reads the checkpoint, which the machine has in its page cache from the time
before, lays the deltas over it, and loads everything.

A changed number is its distance from the changed one before, in bytes (255: 255 places further, and not there yet), and
its new value: three bytes in bf16, a little more where fewer than one in 255 changed. A tensor that would take more
than whole is whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from environments.common.files import ordinary_mode
from trainer.model.weight_files import checkpoint_files

FILE = "delta.safetensors"
INFO = "delta.json"
FORMAT = 1
_FAR = 255
_CHUNK = 1 << 24
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Change(NamedTuple):
    """How a tensor differs from an earlier one of its shape and type."""

    values: Tensor
    """The changed numbers in their order, [n]; or all of them, in the tensor's shape."""
    gaps: Tensor | None
    """uint8: the changed numbers' distances; None: `values` is the tensor."""
    changed: int
    """Numbers that differ."""


class DeltaError(ValueError):
    """A delta that is torn, was changed, or lacks what it is a delta of."""


@dataclass(frozen=True)
class Chain:
    """A whole checkpoint, and the deltas that lead from it to a version."""

    base: Path
    deltas: tuple[Path, ...] = ()
    """Their folders, the oldest first."""

    @property
    def folders(self) -> tuple[Path, ...]:
        """All that a server reads."""
        return self.base, *self.deltas


def difference(before: Tensor, now: Tensor) -> Change | None:
    """What makes `now` of `before`, CPU tensors of one shape and type; None where every bit is the same."""
    # By numpy, which finds places several times as fast as torch on a CPU.
    old, new = (tensor.contiguous().view(-1).view(_BITS[tensor.element_size()]).numpy() for tensor in (before, now))
    starts = range(0, new.size, _CHUNK)  # a place takes eight bytes
    count = sum(int(np.count_nonzero(old[at : at + _CHUNK] != new[at : at + _CHUNK])) for at in starts)
    if not count:
        return None
    if count * (1 + now.element_size()) >= now.nbytes:
        return Change(now.contiguous(), None, count)
    places = np.concatenate([np.flatnonzero(old[at : at + _CHUNK] != new[at : at + _CHUNK]) + at for at in starts])
    steps = np.diff(places, prepend=0)
    if int(steps.max()) < _FAR:
        gaps = steps.astype(np.uint8)
    else:
        jumps = steps // _FAR
        gaps = np.full(count + int(jumps.sum()), _FAR, dtype=np.uint8)
        gaps[np.cumsum(jumps + 1) - 1] = steps - jumps * _FAR
    if gaps.nbytes + count * now.element_size() >= now.nbytes:
        return Change(now.contiguous(), None, count)
    return Change(now.contiguous().view(-1)[torch.from_numpy(places)], torch.from_numpy(gaps), count)


def applied(change: Change, tensor: Tensor) -> Tensor:
    """The tensor with the changed numbers; `tensor` itself is changed where it is not replaced. It has to fit."""
    if change.gaps is None:
        return change.values
    places = torch.cumsum(change.gaps, 0, dtype=torch.int64)[change.gaps != _FAR]
    tensor.view(-1)[places] = change.values
    return tensor


def write_delta(folder: Path, changes: Mapping[str, Change], before: Chain) -> int:
    """Writes a delta into a folder beside those that it follows; returns its file's bytes.

    Raises DeltaError, and writes nothing, where what it follows is not there; OSError for a disk that is full.
    """
    base = {path.name: path.stat().st_size for path in checkpoint_files(before.base)}
    if not base:
        raise DeltaError(f"{before.base} is not there")
    earlier = [[delta.name, _info(delta)["sha256"]] for delta in before.deltas]
    stored: dict[str, Tensor] = {}
    for name, change in changes.items():
        stored[f"values:{name}"] = change.values
        if change.gaps is not None:
            stored[f"gaps:{name}"] = change.gaps
    save_file(stored, str(folder / FILE))
    ordinary_mode(folder / FILE)
    info = {
        "format": FORMAT,
        "base": before.base.name,
        "base_files": base,
        "before": earlier,
        "sha256": _checksum(folder / FILE),
    }
    (folder / INFO).write_text(json.dumps(info), encoding="utf-8")
    return (folder / FILE).stat().st_size


def chain_of(folder: Path) -> Chain:
    """What a version's folder stands on; a whole checkpoint stands alone. Raises DeltaError for a torn delta.json."""
    if not (folder / INFO).is_file():
        return Chain(folder)
    info = _info(folder)
    try:
        before = [name for name, _ in info["before"]]
        names = [str(info["base"]), *map(str, before)]
    except (KeyError, TypeError, ValueError) as error:
        raise DeltaError(f"{folder / INFO} is damaged ({type(error).__name__}: {error})") from None
    if any(Path(name).name != name for name in names):
        raise DeltaError(f"{folder / INFO} names a folder elsewhere")
    return Chain(folder.parent / names[0], (*(folder.parent / name for name in names[1:]), folder))


def read_deltas(folder: Path) -> tuple[Chain, list[dict[str, Change]]]:
    """A version's chain and its deltas, every byte of which is as it was written.

    Raises DeltaError where a file is missing, was cut short or changed, or the checkpoint is another one.
    """
    chain = chain_of(folder)
    if not chain.deltas:
        return chain, []
    info = _info(folder)
    try:
        sizes = {path.name: path.stat().st_size for path in checkpoint_files(chain.base)}
        if sizes != info["base_files"]:
            raise DeltaError(f"{chain.base} holds {sizes}, the delta is of {info['base_files']}")
        sums = [*(checksum for _, checksum in info["before"]), info["sha256"]]
        for delta, checksum in zip(chain.deltas, sums, strict=True):
            if _checksum(delta / FILE) != checksum:
                raise DeltaError(f"{delta / FILE} is not what was written there: its checksum differs")
        return chain, [_changes(delta / FILE) for delta in chain.deltas]
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise DeltaError(f"{folder} cannot be read ({type(error).__name__}: {error})") from error


def check_fit(deltas: Sequence[Mapping[str, Change]], shapes: Mapping[str, Sequence[int]]) -> None:
    """Raises DeltaError for a change of a tensor that the checkpoint lacks, or beyond its shape."""
    for changes in deltas:
        for name, change in changes.items():
            if name not in shapes:
                raise DeltaError(f"a delta changes {name}, which the checkpoint lacks")
            if change.gaps is None:
                fits = list(change.values.shape) == list(shapes[name])
            else:
                steps = change.gaps.to(torch.int64)
                fits = int(steps.sum()) < prod(shapes[name]) and change.values.numel() == int((steps != _FAR).sum())
            if not fits:
                raise DeltaError(f"a delta does not fit {name} of shape {list(shapes[name])}")


def laid_over(files: list[Path], deltas: list[dict[str, Change]]) -> Iterator[tuple[str, Tensor]]:
    """The checkpoint's tensors by name, with the deltas, the oldest first; one tensor exists at a time."""
    for path in files:
        with safe_open(str(path), framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (not a mapping)
                tensor = file.get_tensor(name)
                found = [changes[name] for changes in deltas if name in changes]
                if found:
                    tensor = tensor.clone()  # at once: written to page by page, the file's map takes twice as long
                for change in found:
                    tensor = applied(change, tensor)
                yield name, tensor


def _changes(path: Path) -> dict[str, Change]:
    stored = load_file(str(path))
    names = [name.removeprefix("values:") for name in stored if name.startswith("values:")]
    return {name: Change(stored[f"values:{name}"], stored.get(f"gaps:{name}"), -1) for name in names}


def _info(folder: Path) -> dict[str, Any]:
    try:
        info = json.loads((folder / INFO).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DeltaError(f"{folder / INFO} cannot be read ({type(error).__name__}: {error})") from error
    if not isinstance(info, dict) or info.get("format") != FORMAT:
        raise DeltaError(f"{folder / INFO} is of another format than {FORMAT}")
    return info


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
