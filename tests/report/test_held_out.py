"""The report draws the evaluations that ran while a run trained."""

from __future__ import annotations

from typing import Any

from environments.tools.report.charts import held_out


def record(step: int | None, rate: float, name: str = "h", greedy: bool = False) -> dict[str, Any]:
    return {"set": name, "greedy": greedy, "pass_at_1": rate} | ({} if step is None else {"step": step})


def test_each_set_is_a_line_over_steps_and_of_a_step_the_last_record_counts() -> None:
    rows = [record(10, 0.2), record(0, 0.1), record(10, 0.3), record(0, 0.5, greedy=True), record(None, 0.9)]
    (chart,) = held_out(rows)
    assert [(line["name"], line["points"]) for line in chart["series"]] == [
        ("h", [[0, 0.1], [10, 0.3]]), ("h, greedy", [[0, 0.5]]),
    ]  # fmt: skip


def test_evaluations_without_a_training_are_no_chart() -> None:
    assert held_out([record(None, 0.5), {}]) == []
