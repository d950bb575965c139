"""The rollouts that trackers show: which ones, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from environments.common.settings import ConfigError, load
from trainer.config import TrainerConfig
from trainer.data.scored_groups import ScoredGroup
from trainer.rollout_table import RolloutTable


class Numbers:
    """A tracker of metrics alone."""

    def start(self, config: TrainerConfig, resume_id: str) -> None: ...

    def log(self, step: int, row: Mapping[str, Any]) -> None: ...

    def finish(self, failed: bool) -> None: ...


class Tables(Numbers):
    """One that shows rollouts too."""

    def __init__(self) -> None:
        self.shown: list[tuple[int, list[dict[str, Any]]]] = []

    def rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self.shown.append((step, [dict(row) for row in rows]))


class Digits:
    """A tokenizer whose tokens are their own numbers."""

    def decode(self, tokens: list[int]) -> str:
        return " ".join(map(str, tokens))


def config_of(run: Path, *flags: str) -> TrainerConfig:
    return load(TrainerConfig, ["--model", str(run / "no model"), "--run_dir", str(run), *flags])


@pytest.fixture
def groups(groups_of: Callable[..., list[ScoredGroup]]) -> list[ScoredGroup]:
    return groups_of([(3, [2, 4]), (5, [1, 3])])


def test_a_step_that_comes_again_shows_the_same_rollouts_and_another_step_others(
    tmp_path: Path, groups: list[ScoredGroup], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.rollout_table._tokenizer", lambda config: Digits())
    tracker = Tables()
    for _ in range(2):
        table = RolloutTable([Numbers(), tracker], config_of(tmp_path, "--tracked_rollouts", "2"))
        for step in range(1, 9):
            table.log(step, groups)
    assert tracker.shown[:8] == tracker.shown[8:]
    assert [len(rows) for _, rows in tracker.shown[:8]] == [2] * 8
    named = {(row["group"], row["rollout"]) for _, rows in tracker.shown for row in rows}
    assert named == {(group.group_id, index) for group in groups for index in (0, 1)}
    by_id = {group.group_id: group for group in groups}
    for step, rows in tracker.shown:
        assert len({(row["group"], row["rollout"]) for row in rows}) == 2
        for row in rows:
            group = by_id[row["group"]]
            rollout = group.rollouts[row["rollout"]]
            assert row == {
                "step": step,
                "problem": group.problem_id,
                "group": group.group_id,
                "rollout": row["rollout"],
                "score": rollout.score,
                "overlong": rollout.overlong,
                "tokens": len(rollout.completion),
                "prompt": " ".join(map(str, group.prompt)),
                "completion": " ".join(map(str, rollout.completion)),
            }


def test_fewer_rollouts_than_asked_for_are_all_shown_and_a_step_without_any_shows_nothing(
    tmp_path: Path, groups: list[ScoredGroup], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.rollout_table._tokenizer", lambda config: Digits())
    tracker = Tables()
    table = RolloutTable([tracker], config_of(tmp_path, "--tracked_rollouts", "9"))
    table.log(1, [])
    table.log(2, groups)
    ((step, rows),) = tracker.shown
    assert (step, len(rows)) == (2, 4)


@pytest.mark.parametrize(("trackers", "count"), [([], 4), ([Numbers()], 4), ([Tables()], 0)])
def test_where_nothing_is_shown_no_tokenizer_is_needed(
    tmp_path: Path, groups: list[ScoredGroup], trackers: list[Numbers], count: int
) -> None:
    RolloutTable(trackers, config_of(tmp_path, "--tracked_rollouts", str(count))).log(1, groups)


def test_a_model_without_a_tokenizer_is_refused_with_the_fix(tmp_path: Path) -> None:
    (tmp_path / "no model").mkdir()
    with pytest.raises(ConfigError, match=r"tracked_rollouts 4: the model .*no model has no tokenizer .*set tracked_"):
        RolloutTable([Tables()], config_of(tmp_path))
