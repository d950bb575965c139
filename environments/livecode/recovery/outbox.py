"""Groups on their way to the API: on the disk before they are sent, until the API has confirmed them."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from environments.common.errors import LivecodeError
from environments.livecode.recovery.progress import sync_folder


class OutboxError(LivecodeError, RuntimeError):
    """A group cannot be kept, or a kept one cannot be read; the message names the file."""


class Outbox:
    """A folder with one file per group, each a request body as it is sent (gzipped JSON).

    A group that was sent and not confirmed is sent again after a restart; the API takes a group id once.
    """

    def __init__(self, folder: Path, *, clean: bool = True) -> None:
        """clean: what a death left half written goes; not where another process may be writing."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for unfinished in folder.glob("*.new") if clean else ():
            unfinished.unlink()
        self._next = max((int(path.name.split("-", 1)[0]) for path in folder.glob("*.json.gz")), default=-1) + 1

    def put(self, group_id: str, body: bytes) -> Path:
        """Keeps a group; it is on the disk when this returns. For a thread.

        Raises:
            OutboxError: the disk is full or refuses.
        """
        path = self.folder / f"{self._take_number():08d}-{group_id}.json.gz"
        new = path.with_suffix(".new")
        try:
            with new.open("wb") as file:
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, path)
            sync_folder(self.folder)
        except OSError as error:
            new.unlink(missing_ok=True)
            raise OutboxError(
                f"{path}: a group of {len(body)} bytes cannot be kept ({error.strerror}). Free space on that disk and "
                "start again: what is in the folder is sent then."
            ) from None
        return path

    def sent(self, path: Path) -> None:
        """The API has this group."""
        path.unlink()

    def holds(self, group_id: str) -> bool:
        """Whether the group is kept."""
        return any(self.folder.glob(f"*-{group_id}.json.gz"))

    def _take_number(self) -> int:
        self._next += 1
        return self._next - 1

    def waiting(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """The kept groups in the order they were put.

        Raises:
            OutboxError: a file that is not a group.
        """
        for path in sorted(self.folder.glob("*.json.gz")):
            try:
                group = json.loads(gzip.decompress(path.read_bytes()))
                group["group_overrides"]["group_id"], group["scores"][0]
            except (OSError, EOFError, ValueError, KeyError, IndexError, TypeError) as error:
                raise OutboxError(
                    f"{path}: not a group ({type(error).__name__}: {error}). Restore the file, or remove it to go on "
                    "without that group."
                ) from None
            yield path, group
