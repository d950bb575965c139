"""`atropos diff`: what it says of two runs by value, in the terminal and in the browser."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from environments.cli import app
from environments.livecode.evaluation.evaluate import paired_difference
from environments.tools.diff.compare import compare, metrics, option_differences, scores, speed
from environments.tools.diff.page import write_page
from environments.tools.diff.terminal import show
from tests.report.browser import CHROMIUM, Page, barriers, browser, emulate
from tests.report.made_run import make_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs: the second with another objective, rate and dice, and ten steps fewer."""
    folder = tmp_path_factory.mktemp("two")
    first = make_run(folder / "first", steps=40, planned=60)
    second = make_run(folder / "second", steps=30, planned=60, seed=7)
    path = second / "config" / "trainer.yaml"
    changed = yaml.safe_load(path.read_text())
    changed["objective"]["name"] = "dapo"
    path.write_text(yaml.safe_dump(changed | {"optimizer": {"lr": 3e-6, "warmup_steps": 5}, "run_dir": "elsewhere"}))
    return [first, second]


def test_options_that_differ_are_named_and_places_are_not(runs: list[Path]) -> None:
    assert option_differences(*runs) == [
        ["trainer", "objective.name", "gspo+", "dapo"],
        ["trainer", "optimizer.lr", "1e-06", "3e-06"],
        ["trainer", "optimizer.warmup_steps", "-", "5"],
        ["environment", "tokenizer", *(str(run / "tokenizer") for run in runs)],
    ]
    assert option_differences(runs[0], runs[0]) == []


def evaluation(version: int, right: list[int], **changes: Any) -> dict[str, Any]:
    counts = {f"q{i}": [f"t{i}", count, 4] for i, count in enumerate(right)}
    rate = sum(right) / (4 * len(right))
    return {"set": "s", "n": 4, "temperature": 0.7, "greedy": False, "pass_at_1": rate, "ci95": [0.1, 0.9],
            "weight_version": version, "per_problem": counts} | changes  # fmt: skip


def test_a_difference_of_scores_is_the_paired_one_of_the_last_and_of_the_last_common_weights() -> None:
    first = [evaluation(0, [0, 1, 2, 3]), evaluation(10, [1, 2, 3, 4]), evaluation(20, [2, 2, 4, 4])]
    second = [evaluation(0, [0, 1, 2, 3]), evaluation(10, [3, 4, 4, 4])]
    found = scores(first, second)
    assert [row["versions"] for row in found] == [[10, 10], [20, 10]]
    assert found[0]["rates"] == [0.625, 0.9375]
    assert (found[0]["gain"], found[0]["gain_ci95"]) == paired_difference(first[1], second[1])
    assert found[0]["gain"] == pytest.approx(0.3125)
    low, high = found[0]["gain_ci95"]
    assert 0 < low < 0.3125 < high


def test_a_run_does_not_differ_from_itself() -> None:
    rows = [evaluation(5, [0, 4, 1, 3])]
    (found,) = scores(rows, rows)
    assert (found["gain"], found["gain_ci95"]) == (0, (0, 0))


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (evaluation(10, [1, 2, 3]), "other problems"),
        (evaluation(10, [1, 2, 3, 4]) | {"per_problem": None}, "no counts"),
    ],
)
def test_what_is_not_comparable_says_why(other: dict[str, Any], why: str) -> None:
    (found,) = scores([evaluation(10, [1, 2, 3, 4])], [other])
    assert found["gain"] is None
    assert why in found["why"]


def test_another_number_of_samples_is_another_row_which_only_one_run_has() -> None:
    assert scores([evaluation(10, [1, 2])], [evaluation(10, [1, 2], n=8)]) == []


def test_means_are_of_the_steps_that_both_took_and_speed_of_all() -> None:
    first = [{"step": n, "reward": n / 10, "seconds_step": 10.0, "seconds_wait": 6.0, "tokens_trained": 100}
             for n in (1, 2, 3, 4)]  # fmt: skip
    second = [{"step": n, "reward": n / 5, "seconds_step": 5.0, "seconds_train": 2.0, "tokens_trained": 100}
              for n in (2, 3)]  # fmt: skip
    assert [row for row in metrics(first, second) if row[0] == "Reward"] == [
        ["Reward", "mean of +1 and -1", pytest.approx(0.25), pytest.approx(0.5)]
    ]
    assert speed(first, second) == [
        ["Waiting for rollouts", 6.0, 0.0],
        ["Training", 0.0, 2.0],
        ["Whole step", 10.0, 5.0],
        ["Tokens trained on a second", 10.0, 20.0],
    ]
    assert metrics(first, []) == speed([], []) == []


def test_every_line_of_a_chart_is_there_once_for_each_run(runs: list[Path]) -> None:
    found = compare(*runs)
    for chart in found["curves"]:
        names = [(line["name"], line["run"]) for line in chart["series"]]
        assert len(names) == len(set(names))
        assert {(name, 1 - run) for name, run in names} == set(names), chart["title"]
    assert [axes["steps"][-1] for axes in found["axes"]] == [40, 30]


def test_the_terminal_has_every_part_and_the_command_writes_the_page(runs: list[Path], tmp_path: Path) -> None:
    stream = io.StringIO()
    show(compare(*runs), Console(file=stream, width=140))
    text = stream.getvalue()
    for words in ("Held-out pass@1", "livecodebench-v6", "Seconds of a step", "Whole step", "Options that differ",
                  "objective.name", "Means over the steps"):  # fmt: skip
        assert words in text
    out = tmp_path / "diff.html"
    done = CliRunner().invoke(app, ["diff", *map(str, runs), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert out.is_file()
    done = CliRunner().invoke(app, ["diff", str(runs[0]), str(tmp_path)])
    assert done.exit_code == 2
    assert "none of metrics.jsonl" in " ".join(done.output.split())


def test_runs_of_one_name_are_told_by_the_folder_above(runs: list[Path], tmp_path: Path) -> None:
    other = Path(shutil.copytree(runs[0], tmp_path / "old" / "first"))
    assert compare(runs[0], other)["names"] == [f"{runs[0].parent.name}/first", "old/first"]


# -- In the browser -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed: the page was not opened")
    folder = tmp_path_factory.mktemp("diff")
    write_page(compare(*runs), folder / "diff.html")
    with browser(folder / "profile") as page:
        page.open(folder / "diff.html")
        yield page


def test_the_page_has_no_barrier_at_any_width(page: Page) -> None:
    for width, scheme in ((360, "light"), (1400, "dark"), (2560, "light")):
        emulate(page, width, scheme)
        assert page.run("document.documentElement.scrollWidth <= innerWidth"), width
        assert barriers(page) == []
    assert page.complaints == []


def test_both_runs_are_drawn_over_steps_and_over_each_ones_own_tokens(page: Page, runs: list[Path]) -> None:
    emulate(page, 1400)
    chart = "[...drawn.values()][data.curves.findIndex(one => one.title === 'Reward')]"
    columns = page.run(f"{chart}.data.slice(1).map(column => column.filter(one => one != null).length)")
    assert columns == [40, 30]
    assert page.run(f"{chart}.series[2].dash") == [7, 4]
    page.run("{ const s = document.querySelector('[name=axis]'); s.value = 'tokens'; "
             "s.dispatchEvent(new Event('change')); }")  # fmt: skip
    rows = [json.loads(line) for line in (runs[1] / "metrics.jsonl").read_text().splitlines()]
    last = sum({row["step"]: row["tokens_trained"] for row in rows}.values()) / 1e6
    ends = page.run(f"(({{ data }}) => data[0].filter((_, i) => data[2][i] != null))({chart}).at(-1)")
    assert ends == pytest.approx(last)
    assert page.complaints == []
