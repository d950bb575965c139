"""Where each step's row goes beside metrics.jsonl: W&B, TensorBoard, MLflow, trackio, or what another package adds.

A tracker has one run for one run folder, however often the trainer is started in it; see docs/how-to/tracker.md.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from environments.common.errors import ConfigError
from environments.common.files import write_text
from environments.common.plugins import find
from trainer.local_trackers import MlflowTracker, TensorBoardTracker, TrackioTracker
from trainer.tracker_interface import PROJECT, Tracker, TrackerError

if TYPE_CHECKING:
    from trainer.config import TrainerConfig

__all__ = ["GROUP", "TRACKERS", "Tracker", "TrackerError", "run_id", "tracking"]

GROUP = "livecode.trackers"


class WandbTracker:
    """A run at Weights & Biases."""

    def __init__(self) -> None:
        self._run: Any = None

    @property
    def id(self) -> str:
        """The run's id at W&B."""
        return str(self._run.id)

    def start(self, config: TrainerConfig, resume_id: str) -> None:
        """Opens the run. ConfigError: W&B is not installed, or has no key; TrackerError: it cannot be reached."""
        self._run = _open(config, resume_id)
        self._run.define_metric("train/*", step_metric="train/step")

    def log(self, step: int, row: Mapping[str, Any]) -> None:
        """Adds one row. Its `step` is the horizontal axis: W&B's own count takes no row of a step that comes again."""
        self._run.log({f"train/{name}": value for name, value in {**row, "step": step}.items()})

    def rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds a W&B table."""
        import wandb

        table = wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
        self._run.log({"train/rollouts": table, "train/step": step})

    def finish(self, failed: bool) -> None:
        """Closes the run with its exit code."""
        self._run.finish(exit_code=int(failed))


TRACKERS: dict[str, Callable[[], Tracker]] = {
    "wandb": WandbTracker,
    "tensorboard": TensorBoardTracker,
    "mlflow": MlflowTracker,
    "trackio": TrackioTracker,
}
"""What makes a tracker, by the name that `trackers` gives."""


@contextmanager
def tracking(config: TrainerConfig) -> Iterator[list[Tracker]]:
    """The run's trackers, started; finished at the end in the opposite order.

    Raises:
        ConfigError: a tracker that is not installed, or that cannot be used as it is set up.
        TrackerError: its service cannot be reached.
    """
    with ExitStack() as opened:
        yield [opened.enter_context(_started(name, config)) for name in config.tracker_names]


@contextmanager
def _started(name: str, config: TrainerConfig) -> Iterator[Tracker]:
    tracker = find(GROUP, TRACKERS, name, "trackers")()
    tracker.start(config, run_id(config.run_dir, name))
    failed = True
    try:
        yield tracker
        failed = False
    finally:
        tracker.finish(failed)


def run_id(folder: Path, name: str = "wandb") -> str:
    """The folder's id for this tracker, made at the first start and kept in it."""
    path = folder / f"{name}-id"
    if not path.is_file() or not path.read_text(encoding="utf-8").strip():
        write_text(path, uuid.uuid4().hex[:12] + "\n")
    return path.read_text(encoding="utf-8").strip()


def _open(config: TrainerConfig, resume_id: str) -> Any:
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
            id=resume_id,
            resume="allow",
        )
    except (wandb.errors.UsageError, wandb.errors.AuthenticationError) as error:
        raise ConfigError(f"use_wandb true: {error}; correct it, or set use_wandb to false") from None
    except wandb.errors.Error as error:
        raise TrackerError(
            f"use_wandb true: Weights & Biases cannot be reached ({error}); WANDB_MODE=offline continues without it"
        ) from None


def _has_key(wandb: Any) -> bool:
    """Whether there is a key; without one W&B would ask for it on the terminal, or end the process."""
    try:
        return bool(wandb.login(prompt=False))
    except wandb.errors.Error as error:
        raise ConfigError(f"use_wandb true: {error}; correct the key, or set use_wandb to false") from None
