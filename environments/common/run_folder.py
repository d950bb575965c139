"""The form of a run folder: a number in run.json, so that a folder of another version is recognized, not misread."""

from __future__ import annotations

import json
import os
from pathlib import Path

from environments.common.settings import ConfigError

FORMAT = 1
"""Raised whenever a record in a run folder changes its meaning."""

_NAME = "run.json"


def claim(folder: Path) -> None:
    """Marks a folder that is about to be written; made where it is missing.

    Raises:
        ConfigError: it was written by another version.
        OSError: it cannot be written.
    """
    check(folder)
    if not (folder / _NAME).exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{_NAME}.{os.getpid()}.new"  # several processes may claim a folder at the same moment
        part.write_text(json.dumps({"format": FORMAT}) + "\n", encoding="utf-8")
        part.replace(folder / _NAME)


def append_line(path: Path, line: str) -> None:
    """Adds a line to a JSONL file; on a full disk the file is as before, and no later line joins a torn one.

    Raises:
        OSError: it cannot be written.
    """
    # A lone surrogate has no bytes; so escaped it is JSON all the same, and is read as what it was.
    data = line.encode("utf-8", "backslashreplace") + b"\n"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    try:
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":  # a death cut it off
            data = b"\n" + data
        try:
            while data:
                data = data[os.write(fd, data) :]
        except OSError:
            os.ftruncate(fd, size)
            raise
    finally:
        os.close(fd)


def check(folder: Path) -> None:
    """Raises ConfigError where the folder says that another version wrote it; a folder that says nothing passes."""
    path = folder / _NAME
    if not path.is_file():
        return
    try:
        found = json.loads(path.read_bytes())["format"]
    except (ValueError, KeyError, TypeError):
        raise ConfigError(
            f'{path}: damaged, need {{"format": {FORMAT}}}. Restore it, or give another run folder.'
        ) from None
    if found != FORMAT:
        raise ConfigError(
            f"{folder}: a run folder of format {found}, this version reads {FORMAT}. Use the version that wrote it, "
            "or give another folder."
        )
