"""The example notebook's cells, run on made records: what they draw and print is what the records hold."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest

from environments.common.record_lines import convert
from environments.livecode.records.schema import RolloutRecord
from environments.tools.report.values import lineage
from tests.report.made_run import CHANGES, LOGPROBS, make_run

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

NOTEBOOK = Path(__file__).parents[2] / "examples" / "notebook" / "look_at_a_run.ipynb"


def cells() -> list[str]:
    return ["".join(one["source"]) for one in json.loads(NOTEBOOK.read_text())["cells"] if one["cell_type"] == "code"]


def executed(run: Path) -> dict[str, Any]:
    """The names that the cells made, `run`, the folder that they looked at, and what they `printed`."""
    plt.close("all")
    names: dict[str, Any] = {"run": run}
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setenv("RUN", str(run))
        for number, source in enumerate(cells()):
            exec(compile(source, f"cell {number}", "exec"), names)
    return names | {"printed": printed.getvalue()}


@pytest.fixture(scope="module")
def namespace(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    run = make_run(tmp_path_factory.mktemp("notebook") / "run", steps=12, planned=20)
    with (run / "metrics.jsonl").open("a") as file:
        file.write("torn {\n")
    return executed(run) | {"drawn_axes": drawn()}


def drawn() -> dict[str, Axes]:
    return {axes.get_title(): axes for number in plt.get_fignums() for axes in plt.figure(number).axes}


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.startswith("{")]


def test_the_curves_are_the_records(namespace: dict[str, Any]) -> None:
    steps = lineage(rows(namespace["run"] / "metrics.jsonl"))
    assert [row["step"] for row in steps] == list(range(1, 13))
    axes = namespace["drawn_axes"]
    for title, fields in {
        "Reward": ["reward"],
        "Loss": ["loss"],
        "Gradient norm": ["grad_norm"],
        "Clipped tokens": ["clip_low_tokens", "clip_high_tokens"],
        "Age of the data": ["staleness", "staleness_max"],
        "Answer length": ["length_passed", "length_failed", "length_max"],
    }.items():
        lines = axes[title].get_lines()
        assert [list(line.get_xdata()) for line in lines] == [[row["step"] for row in steps]] * len(fields), title
        assert [list(line.get_ydata()) for line in lines] == [[row[name] for row in steps] for name in fields], title
    assert axes["Gradient norm"].get_yscale() == "log"
    assert "12 steps, 72 groups, 1 damaged lines" in namespace["printed"]


def test_the_idle_shares_are_of_the_whole_time(namespace: dict[str, Any]) -> None:
    steps = lineage(rows(namespace["run"] / "metrics.jsonl"))
    waited = sum(row["seconds_wait"] for row in steps) / sum(row["seconds_step"] for row in steps)
    busy = [row["slots_busy"] for row in rows(namespace["run"] / "environment_metrics.jsonl")]
    assert namespace["idle"] == pytest.approx({"trainer": waited, "generation slots": 1 - sum(busy) / len(busy)})
    assert f"trainer: idle {waited:.0%} of the time" in namespace["printed"]
    assert sum(namespace["shares"].values()) == pytest.approx(np.ones(12))


def test_lengths_passes_and_gains_count_every_rollout(namespace: dict[str, Any]) -> None:
    groups = rows(namespace["run"] / "environment.jsonl")
    newest = [pair for row in groups[-18:] for pair in zip(row["lengths"], row["verdicts"], strict=True)]
    assert namespace["passed"] == [length for length, verdict in newest if verdict == "accepted"]
    assert len(namespace["passed"]) + len(namespace["failed"]) == 18 * 8
    assert namespace["solved"] == [row["verdicts"].count("accepted") / 8 for row in groups]
    early, late = namespace["halves"]["lcb_003"]
    counted = [row["verdicts"].count("accepted") for row in groups if row["problem_id"] == "lcb_003"]
    assert sum(early) + sum(late) == sum(counted)


def test_the_newest_failure_is_printed_whole(namespace: dict[str, Any]) -> None:
    files = sorted((namespace["run"] / "rollouts").glob("*.jsonl"))
    failures = [row for path in files for row in rows(path) if row["status"] != "accepted"]
    printed = namespace["printed"]
    assert namespace["failure"] == convert(failures[-1], RolloutRecord)
    assert f"{failures[-1]['problem_id']}: {failures[-1]['status']}" in printed
    assert failures[-1]["code"] in printed
    assert "output='3\\n4 6\\n'" in printed


def test_the_tokens_pair_trainer_and_sampler(namespace: dict[str, Any]) -> None:
    assert len(LOGPROBS) == len(CHANGES)
    trained = len(namespace["trained"])
    assert trained > 10
    np.testing.assert_allclose(namespace["sampler"], np.tile(LOGPROBS, trained))
    np.testing.assert_allclose(namespace["trainer"] - namespace["sampler"], 0.25)


def test_a_run_that_has_only_begun_is_looked_at_too(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=1)
    for name in ("evaluations.jsonl", "environment_metrics.jsonl"):
        (run / name).unlink()
    names = executed(run)
    assert set(names["idle"]) == {"trainer"}
    assert "Held-out pass@1" not in names["drawn"]
    assert names["trained"]


def test_a_run_before_its_first_step_is_looked_at_too(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=1)
    (run / "metrics.jsonl").unlink()
    names = executed(run)
    assert set(names["idle"]) == {"generation slots"}
    assert not {"Loss", "Reward", "Parts of the trainer's step"} & set(drawn())


def test_the_file_is_a_notebook_without_outputs() -> None:
    read = json.loads(NOTEBOOK.read_text())
    assert (read["nbformat"], read["nbformat_minor"]) == (4, 5)
    assert set(read) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert len({one["id"] for one in read["cells"]}) == len(read["cells"])
    for one in read["cells"]:
        kept = {"cell_type", "id", "metadata", "source"}
        more = {"execution_count", "outputs"} if one["cell_type"] == "code" else set()
        assert set(one) == kept | more
        assert (one.get("execution_count"), one.get("outputs", [])) == (None, [])
