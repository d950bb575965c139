"""Where a run begins: its folder, taken by one process, and what the weights are read from. Rank 0's work, no torch.

checkpoint.resume   the folder has checkpoints     it has none
auto (the default)  the newest one                 init_from, or the model
empty               refused: it would start over   init_from, or the model
latest, best, ...   that one                       refused
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from environments.common.errors import ConfigError, LivecodeError
from environments.common.run_folder import claim
from environments.common.settings import read_yaml, write_yaml
from trainer.checkpoint_folder import complete_checkpoints, find_checkpoint, read_meta
from trainer.config import TrainerConfig

log = logging.getLogger(__name__)

LOCK = "trainer.lock"
RELEASED_WITHIN_S = 5.0
"""A trainer that was killed holds its folder until the kernel has taken its memory back."""


class RecordError(LivecodeError, RuntimeError):
    """What was trained on cannot be written down, so it must not count."""


@dataclass(frozen=True)
class RunStart:
    """What a run begins with. `checkpoint` None: the model. `resumed`: the run's own state, its step included."""

    checkpoint: Path | None
    resumed: bool
    step: int


@contextmanager
def taken(config: TrainerConfig) -> Iterator[RunStart]:
    """Holds run_dir for this process and decides what the run begins with.

    Raises:
        ConfigError: another trainer runs there, it is of another format, it cannot be made, or beginning there would
            lose what it holds.
        CheckpointError: the checkpoint that was named is not there.
    """
    folder = config.run_dir
    try:
        claim(folder)
        lock = (folder / LOCK).open("a")
    except OSError as error:
        raise cannot_write(folder, error) from None
    with lock:
        _lock(lock.fileno(), folder)
        found = beginning(config)
        try:
            _say_what_changed(config, found)
            write_yaml(config, folder / "config" / "trainer.yaml")
        except OSError as error:
            raise cannot_write(folder, error) from None
        yield found


def _lock(file: int, folder: Path) -> None:
    until = time.monotonic() + RELEASED_WITHIN_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= until:
                raise ConfigError(
                    f"run_dir {folder}: another trainer is running there; stop it, or give another folder"
                ) from None
        except OSError as error:  # a file system without locks
            log.warning("run_dir %s cannot be locked (%s): start no second trainer there", folder, error.strerror)
            return
        time.sleep(0.2)


def cannot_write(folder: Path, error: OSError) -> LivecodeError:
    """A full disk may be emptied before the next start; anything else is the setting's."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RecordError(f"run_dir {folder}: {error.strerror}; free space on that disk and start again")
    return ConfigError(f"run_dir {folder}: cannot be written ({error.strerror}); give another folder")


def beginning(config: TrainerConfig) -> RunStart:
    """What `checkpoint.resume` and `init_from` mean for this folder; see the table above."""
    folder, resume, stage = config.run_dir / "checkpoints", config.checkpoint.resume, config.init_from
    own = complete_checkpoints(folder)
    if resume == "auto" and own:
        return _resumed(_newest(folder, own))
    if resume not in (None, "auto"):
        path = find_checkpoint(folder, resume)
        if own and path.resolve().parent != folder.resolve():
            raise ConfigError(
                f"checkpoint.resume {resume}: a checkpoint of another run, and run_dir {config.run_dir} holds "
                f"{own[-1].name} of its own, which would be lost. Give --checkpoint.resume auto to resume after that "
                "one, or an empty --run_dir"
            )
        return _resumed(path)
    if resume is None:
        _refuse_to_start_over(config, own)
    elif (config.run_dir / "metrics.jsonl").exists():
        log.warning("run_dir %s: no checkpoint there, so the run begins again at step 0", config.run_dir)
    if stage.run is not None:
        return RunStart(find_checkpoint(stage.run / "checkpoints", stage.select), resumed=False, step=0)
    return RunStart(None, resumed=False, step=0)


def _refuse_to_start_over(config: TrainerConfig, own: list[Path]) -> None:
    used = own[-1].name if own else next(
        (name for name in ("metrics.jsonl", "trained.jsonl") if (config.run_dir / name).exists()), None
    )  # fmt: skip
    if used is not None:
        raise ConfigError(
            f"run_dir {config.run_dir} holds {used} of an earlier start, which starting over would destroy. Give "
            "--checkpoint.resume auto to resume that run, or --run_dir and another folder to start over"
        )


def _newest(folder: Path, own: list[Path]) -> Path:
    """What `latest` names. (It may be missing or stale where a process died between two renames.)"""
    pointer = folder / "latest"
    name = pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else ""
    return folder / name if name in {path.name for path in own} else own[-1]


def _resumed(path: Path) -> RunStart:
    return RunStart(path, resumed=True, step=int(read_meta(path)["step"]))


def _say_what_changed(config: TrainerConfig, found: RunStart) -> None:
    """A run resumed with other options than before says which: a folder is easily given twice."""
    before = config.run_dir / "config" / "trainer.yaml"
    if not found.resumed:
        return
    log.info("resuming after step %d of %d, with %s", found.step, config.steps, found.checkpoint)
    if found.step >= config.steps:
        log.warning(
            "all %d steps are done: a higher --steps trains further, another --run_dir starts over", config.steps
        )
    try:
        old = _flat(read_yaml(before)) if before.is_file() else {}
    except ConfigError:  # truncated; nothing depends on it
        return
    new = _flat(config.model_dump(mode="json"))
    for name in sorted(old.keys() & new.keys()):
        if old[name] != new[name]:
            log.warning("option %s is now %s; the run began with %s", name, *(json.dumps(x[name]) for x in (new, old)))


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
