"""TensorBoard, MLflow and trackio with their local back ends: one run for a folder, read by their own readers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from environments.common.settings import ConfigError, load
from tests.install.hosts import environment, run
from tests.trainer.track_steps import ROLLOUTS
from trainer.config import TrainerConfig
from trainer.tracking import run_id, tracking

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ["tensorboard==2.21.0", "mlflow==3.17.2", "trackio==0.43.0"]
READ = {
    "tensorboard": """
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator as OfTexts
texts = OfTexts(sys.argv[1] + "/tensorboard")
texts.Reload()
events = EventAccumulator(sys.argv[1] + "/tensorboard")
events.Reload()
found = {
    "tags": events.Tags()["scalars"], "loss": [[one.step, one.value] for one in events.Scalars("train/loss")],
    "texts": {tag: [[one.step, one.tensor_proto.string_val[0].decode()] for one in texts.Tensors(tag)]
              for tag in texts.PluginTagToContent("text")},
}
""",
    "mlflow": """
from mlflow import MlflowClient, set_tracking_uri
set_tracking_uri(f"sqlite:///{sys.argv[1]}/mlflow.db")  # load_table takes it from here
client = MlflowClient(f"sqlite:///{sys.argv[1]}/mlflow.db")
(experiment,) = [one for one in client.search_experiments() if one.name == "atropos-livecode"]
(run,) = client.search_runs([experiment.experiment_id])
found = {
    "tags": sorted(run.data.metrics), "status": run.info.status, "lr": run.data.params["optimizer.lr"],
    "name": run.info.run_name,
    "loss": [[one.step, one.value] for one in client.get_metric_history(run.info.run_id, "train/loss")],
    "table": client.load_table(experiment.experiment_id, "rollouts.json", [run.info.run_id]).to_dict("records"),
}
""",
    "trackio": """
from trackio.sqlite_storage import SQLiteStorage
(name,) = SQLiteStorage.get_runs("atropos-livecode")
rows = SQLiteStorage.get_logs("atropos-livecode", name)
found = {"name": name, "loss": [[row["step"], row["train/loss"]] for row in rows if "train/loss" in row],
         "tables": [[row["step"], row["rollouts"]] for row in rows if "rollouts" in row]}
""",
}


@pytest.fixture(scope="module")
def python() -> Path:
    return environment("trackers", REQUIREMENTS, upon_ours=True, alone=False)


def tracked(python: Path, name: str, folder: Path) -> dict[str, Any]:
    """What the tracker's own reader finds after two starts in the folder."""
    variables: dict[str, Any] = {"TRACKIO_DIR": str(folder / "trackio"), "HOME": str(folder), "MLFLOW_TRACKING_URI": ""}
    program = str(Path(__file__).with_name("track_steps.py"))
    done = run(python, program, name, str(folder), PYTHONPATH=str(Path(__file__).parents[2]), **variables)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "failed"), done.stderr
    code = f"import json, sys\n{READ[name]}\nprint(json.dumps(found))"
    read = run(python, "-c", code, str(folder), **variables)
    assert read.returncode == 0, read.stderr
    found: dict[str, Any] = json.loads(read.stdout.splitlines()[-1])
    return found


slow = pytest.mark.slow  # fetches the three packages


@slow
def test_tensorboard_replaces_a_step_that_comes_again(python: Path, tmp_path: Path) -> None:
    found = tracked(python, "tensorboard", tmp_path)
    assert found["tags"] == ["train/step", "train/loss"]
    assert found["loss"] == [[1, 0.5], [2, 1.0], [3, 11.5], [4, 12.0]]
    first, second = found["texts"]["rollouts/1/text_summary"], found["texts"]["rollouts/2/text_summary"]
    assert [step for step, _ in first] == [step for step, _ in second] == [1, 2, 3, 4]
    assert first[-1][1] == (
        "step 4, problem p, group g, rollout 1, score -1.0, overlong False, tokens 2\n\n"
        "**prompt**\n\n    Add.\n\n**completion**\n\n    ```\n    <b>1</b>\n    ```\n    ü"
    )
    assert second[-1][1].endswith("**completion**\n\n"), "an empty text is shown as one"


@slow
def test_mlflow_has_one_run_with_its_end_and_settings(python: Path, tmp_path: Path) -> None:
    found = tracked(python, "mlflow", tmp_path)
    assert found["loss"] == [[1, 0.5], [2, 1.0], [3, 1.5], [3, 11.5], [4, 12.0]]
    assert (found["tags"], found["status"]) == (["train/loss", "train/step"], "FAILED")
    config = TrainerConfig(model="m", run_dir=tmp_path)
    assert (found["name"], float(found["lr"])) == (tmp_path.name, config.optimizer.lr)
    assert [row["step"] for row in found["table"]] == [1, 1, 2, 2, 3, 3, 3, 3, 4, 4]
    assert found["table"][-2:] == [rollout | {"step": 4} for rollout in ROLLOUTS]
    assert not (ROOT / "mlruns").exists(), "artifacts are in the run folder"


@slow
def test_trackio_has_one_run(python: Path, tmp_path: Path) -> None:
    found = tracked(python, "trackio", tmp_path)
    assert found["name"] == f"{tmp_path.name}-{run_id(tmp_path, 'trackio')}"
    assert sorted(found["loss"]) == [[1, 0.5], [2, 1.0], [3, 1.5], [3, 11.5], [4, 12.0]]
    assert sorted(step for step, _ in found["tables"]) == [1, 2, 3, 3, 4]
    assert found["tables"][-1][1]["_value"] == [rollout | {"step": 4} for rollout in ROLLOUTS]


@slow
def test_a_store_of_mlflow_that_cannot_be_used_is_one_line(python: Path, tmp_path: Path) -> None:
    program = str(Path(__file__).with_name("track_steps.py"))
    variables: dict[str, Any] = {
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
    }
    variables["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    done = run(python, program, "mlflow", str(tmp_path), **variables)
    assert "TrackerError: trackers 'mlflow': http://127.0.0.1:9 cannot be used" in done.stderr


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "trackio"])
def test_a_tracker_that_is_not_installed_is_said_before_work(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.local_trackers.find_spec", lambda module: None)
    config = load(TrainerConfig, ["--model", "m", "--run_dir", str(tmp_path), "--trackers", name])
    message = rf"trackers '{name}': {name} is not installed. Run: pip install 'atropos-livecode\[{name}\]', or leave"
    with pytest.raises(ConfigError, match=message), tracking(config):
        pass
    assert "mlflow" not in sys.modules
