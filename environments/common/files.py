"""Files and folders that are whole or absent after a crash: written beside their place, synced, renamed."""

from __future__ import annotations

import os
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Writes or replaces a file in one step; it is on the disk when this returns."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text, encoding="utf-8")
    _sync(beside)
    beside.replace(path)
    _sync(path.parent)


def publish_file(path: Path, data: bytes) -> None:
    """Writes or replaces a file in one step; after a crash it may be the old one."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_bytes(data)
    beside.replace(path)


def ordinary_mode(path: Path) -> None:
    """Gives a file the mode that open() would give a new one here; safetensors writes for the owner alone."""
    path.chmod(0o666 & ~_umask())


def _umask() -> int:
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.partition("\nUmask:")[2].split()[0], 8)
    except (OSError, IndexError, ValueError):  # not Linux, where asking means setting it for a moment
        mask = os.umask(0o077)
        os.umask(mask)
        return mask


def publish_folder(partial: Path, final: Path) -> None:
    """Puts a complete folder in its place; one that was there is moved to a hidden name beside it."""
    for part in (*partial.rglob("*"), partial):
        _sync(part)
    if final.exists():
        final.rename(final.with_name(f".{final.name}-replaced"))
    partial.rename(final)
    _sync(final.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
