"""The names in a folder of checkpoints: which are complete, what `latest` and `best` point to. No torch in here."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from environments.common.errors import ConfigError, LivecodeError
from environments.common.files import write_text

FORMAT = 2
"""Version of a checkpoint's layout; one of another is refused."""

_NAME = re.compile(r"step-\d{8}")


class CheckpointError(LivecodeError, RuntimeError):
    """A checkpoint that was asked for cannot be used, or one could not be written."""


class UnusableCheckpoint(ConfigError, CheckpointError):
    """A checkpoint that the user named is not there, or belongs to another model."""


def complete_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints in a folder, oldest first; none where the folder does not exist."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name) and (path / "meta.json").is_file())


def find_checkpoint(folder: Path, which: str) -> Path:
    """The folder of "latest", "best", a name in `folder`, or a path; CheckpointError unless it is complete."""
    path = Path(which)
    if which in ("latest", "best"):
        name = pointed_to(folder / which)
        if name is None:
            raise UnusableCheckpoint(
                f"checkpoint {which!r}: {folder} has none; give a checkpoint's folder, or "
                "--checkpoint.resume auto to begin without one where there is none"
            )
        path = folder / name
    elif _NAME.fullmatch(which):
        path = folder / which
    if not (path / "meta.json").is_file():
        known = ", ".join(one.name for one in complete_checkpoints(folder)) or "none"
        raise UnusableCheckpoint(f"checkpoint {which!r}: {path} is missing or incomplete; complete ones here: {known}")
    return path


def point_best(folder: Path, name: str) -> None:
    """Has `best` name a complete checkpoint of the folder, which retention then spares; CheckpointError otherwise."""
    write_text(folder / "best", find_checkpoint(folder, name).name + "\n")


def pointed_to(pointer: Path) -> str | None:
    """The name in a pointer file, such as `latest`; None without one."""
    return pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else None


def read_meta(path: Path) -> dict[str, Any]:
    """meta.json of a complete checkpoint; CheckpointError where it is damaged or of another version."""
    try:
        meta: dict[str, Any] = json.loads((path / "meta.json").read_text(encoding="utf-8"))
        version = meta["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnusableCheckpoint(f"checkpoint {path}: meta.json cannot be read ({error}); give an older one") from None
    if version != FORMAT:
        raise UnusableCheckpoint(f"checkpoint {path}: format {version}, this version reads {FORMAT}")
    return meta
