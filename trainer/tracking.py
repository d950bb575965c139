"""Weights & Biases beside metrics.jsonl: one run there for one run folder, however often it is started again."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from environments.common.errors import ConfigError, LivecodeError
from environments.common.files import write_text
from trainer.config import TrainerConfig

PROJECT = "atropos-livecode"
_ID = "wandb-id"


class TrackerError(LivecodeError, RuntimeError):
    """Weights & Biases cannot be reached."""


class Tracker:
    """A W&B run to which each step's row goes."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, row: Mapping[str, Any]) -> None:
        """Adds one row. Its `step` is the horizontal axis: W&B's own count takes no row of a step that comes again."""
        self._run.log({f"train/{name}": value for name, value in row.items()})


@contextmanager
def tracking(config: TrainerConfig) -> Iterator[Tracker | None]:
    """The run's tracker; None without `use_wandb`.

    Raises:
        ConfigError: W&B is not installed, or has no key.
        TrackerError: it cannot be reached.
    """
    if not config.use_wandb:
        yield None
        return
    run = _open(config)
    failed = True
    try:
        run.define_metric("train/*", step_metric="train/step")
        yield Tracker(run)
        failed = False
    finally:
        run.finish(exit_code=int(failed))


def run_id(folder: Path) -> str:
    """The folder's W&B id, made at the first start and kept in it."""
    path = folder / _ID
    if not path.is_file() or not path.read_text(encoding="utf-8").strip():
        write_text(path, uuid.uuid4().hex[:12] + "\n")
    return path.read_text(encoding="utf-8").strip()


def _open(config: TrainerConfig) -> Any:
    try:
        import wandb
    except ImportError:
        raise ConfigError(
            "use_wandb true: the package wandb is not installed; install it, or set it to false"
        ) from None
    if wandb.setup().settings.mode in ("online", "shared") and not _has_key(wandb):
        raise ConfigError(
            "use_wandb true: no API key for Weights & Biases. Run `wandb login`, set WANDB_API_KEY, set "
            "WANDB_MODE=offline to keep the run on this machine, or set use_wandb to false"
        )
    try:
        return wandb.init(
            project=PROJECT,
            group=config.run_dir.name,
            config=config.model_dump(mode="json"),
            dir=str(config.run_dir),
            id=run_id(config.run_dir),
            resume="allow",
        )
    except (wandb.errors.UsageError, wandb.errors.AuthenticationError) as error:
        raise ConfigError(f"use_wandb true: {error}; mend it, or set use_wandb to false") from None
    except wandb.errors.Error as error:
        raise TrackerError(
            f"use_wandb true: Weights & Biases cannot be reached ({error}); WANDB_MODE=offline goes on without it"
        ) from None


def _has_key(wandb: Any) -> bool:
    """Whether there is a key; without one W&B would ask for it on the terminal, or end the process."""
    try:
        return bool(wandb.login(prompt=False))
    except wandb.errors.Error as error:
        raise ConfigError(f"use_wandb true: {error}; correct the key, or set use_wandb to false") from None
