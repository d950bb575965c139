"""Trackers that need no account: TensorBoard's files, MLflow's store, trackio's database. Each package is an extra."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from environments.common.errors import ConfigError
from environments.common.extras import missing
from trainer.tracker_interface import PROJECT, TrackerError

if TYPE_CHECKING:
    from trainer.config import TrainerConfig

_PARAMS_AT_ONCE = 100  # of MLflow's log_batch


def _check_installed(module: str) -> None:
    if find_spec(module) is None:
        raise ConfigError(f"trackers {module!r}: {missing(module)}, or leave it out")


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The row's metrics by the name that trackers show; what nobody observed is left out."""
    return {f"train/{name}": float(value) for name, value in row.items() if value is not None}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _verbatim(text: str) -> str:
    """The text as a code block of Markdown, which indentation makes: no fence in the text can close it."""
    return "\n".join(f"    {line}" for line in text.splitlines())


class TensorBoardTracker:
    """Event files in RUN/tensorboard. A step that comes again replaces itself and what was after it."""

    def __init__(self) -> None:
        self._writer: Any = None
        self._config: TrainerConfig | None = None

    def start(self, config: TrainerConfig, resume_id: str) -> None:
        """Opens nothing yet: the first row says from which step on older events are void."""
        _check_installed("tensorboard")
        self._config = config

    def log(self, step: int, row: Mapping[str, Any]) -> None:
        """Adds one scalar for each metric."""
        writer = self._opened(step)
        for name, value in _numbers(row).items():
            writer.add_scalar(name, value, step)
        writer.flush()

    def rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds one text for each rollout, under the tags rollouts/1, rollouts/2 and so on."""
        writer = self._opened(step)
        for number, row in enumerate(rows, 1):
            about = ", ".join(f"{name} {value}" for name, value in row.items() if name not in ("prompt", "completion"))
            texts = (f"**{name}**\n\n{_verbatim(row[name])}" for name in ("prompt", "completion"))
            writer.add_text(f"rollouts/{number}", "\n\n".join([about, *texts]), step)
        writer.flush()

    def _opened(self, step: int) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            assert self._config is not None
            self._writer = SummaryWriter(str(self._config.run_dir / "tensorboard"), purge_step=step)
        return self._writer

    def finish(self, failed: bool) -> None:
        """Closes the file."""
        if self._writer is not None:
            self._writer.close()


class MlflowTracker:
    """A run of MLflow: at MLFLOW_TRACKING_URI, or in the file RUN/mlflow.db."""

    def __init__(self) -> None:
        self._client: Any = None
        self.id = ""

    def start(self, config: TrainerConfig, resume_id: str) -> None:
        """Opens the run that has this id as its tag. TrackerError: the store cannot be reached."""
        _check_installed("mlflow")
        from mlflow import MlflowClient
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        folder = config.run_dir.resolve()
        given = os.environ.get("MLFLOW_TRACKING_URI")
        address = given or f"sqlite:///{folder}/mlflow.db"
        # MLflow's own default for a database is a folder where the process was started.
        artifacts = None if given else (folder / "mlflow-artifacts").as_uri()
        try:
            self._client = client = MlflowClient(address)
            known = client.get_experiment_by_name(PROJECT)
            experiment = known.experiment_id if known else client.create_experiment(PROJECT, artifacts)
            earlier = client.search_runs([experiment], f"tags.livecode_id = '{resume_id}'", max_results=1)
            if earlier:
                self.id = earlier[0].info.run_id
                client.update_run(self.id, status="RUNNING")
                return
            made = client.create_run(experiment, run_name=config.run_dir.name, tags={"livecode_id": resume_id})
            self.id = made.info.run_id
            params = [Param(name, str(value)) for name, value in _flat(config.model_dump(mode="json"))]
            for first in range(0, len(params), _PARAMS_AT_ONCE):
                client.log_batch(self.id, params=params[first : first + _PARAMS_AT_ONCE])
        except MlflowException as error:
            raise TrackerError(
                f"trackers 'mlflow': {address} cannot be used ({error}); correct MLFLOW_TRACKING_URI, or leave it out"
            ) from None

    def log(self, step: int, row: Mapping[str, Any]) -> None:
        """Adds the row's metrics at this step."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self.id, [Metric(name, value, now, step) for name, value in _numbers(row).items()])

    def rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds the rows to the artifact rollouts.json, which MLflow shows as a table."""
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        self._client.log_table(self.id, columns, "rollouts.json")

    def finish(self, failed: bool) -> None:
        """Ends the run as FINISHED or FAILED."""
        self._client.set_terminated(self.id, "FAILED" if failed else "FINISHED")


class TrackioTracker:
    """A run of trackio: in its database on this machine (TRACKIO_DIR), or where TRACKIO_SERVER_URL says."""

    def start(self, config: TrainerConfig, resume_id: str) -> None:
        """Opens the run. Its name holds the id, as trackio knows runs by their names."""
        _check_installed("trackio")
        import trackio

        trackio.init(
            project=PROJECT,
            name=f"{config.run_dir.name}-{resume_id}",
            config=config.model_dump(mode="json"),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, step: int, row: Mapping[str, Any]) -> None:
        """Adds the row's metrics at this step."""
        import trackio

        trackio.log(_numbers(row), step=step)

    def rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds a trackio table."""
        import pandas
        import trackio

        trackio.log({"rollouts": trackio.Table(dataframe=pandas.DataFrame(rows))}, step=step)

    def finish(self, failed: bool) -> None:
        """Writes what is left and closes the run."""
        import trackio

        trackio.finish()
