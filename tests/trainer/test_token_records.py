"""What a step writes of its tokens is what its loss saw: old log-probability, change, and where the clip decided."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from environments.common.errors import ConfigError
from environments.common.packed import FLAGS, REALS, unpacked
from tests.trainer.conftest import make_groups
from trainer.model.packing import pack
from trainer.objective.objectives import OBJECTIVES, denominators, policy_loss
from trainer.objective.off_policy import OffPolicy
from trainer.token_records import ABOVE, BELOW, DUAL, FOLDER, MASKED, TokenRecords

LENGTHS = [4, 3, 2]
CHANGES = [[0.0, 0.3, -0.3, 0.1], [0.3, -0.3, 1.5], [0.0, 0.5]]
ADVANTAGES = [1.0, -1.0, 0.5]


def taken(folder: Path, name: str, rollouts: int, mismatch: OffPolicy | None = None) -> dict[int, dict[str, Any]]:
    """The rows of one group under an objective, by rollout; the loss is computed of the same tensors."""
    groups = make_groups([(5, LENGTHS)])
    (micro,) = pack(groups, [ADVANTAGES], 60)
    assert [index for _, index in micro.origin] == [0, 1, 2]
    old = micro.sampler_logprob - 0.25
    logprob = (old + torch.tensor([x for row in CHANGES for x in row])).requires_grad_()
    chosen, mismatch = OBJECTIVES[name], mismatch or OffPolicy()
    counts = denominators(LENGTHS, [False] * 3, "include")
    _, stats = policy_loss(chosen, logprob, old, micro.sequence, micro.advantage, micro.length, counts,
                           max_length=256, sampler_logprob=micro.sampler_logprob, mismatch=mismatch)  # fmt: skip
    records = TokenRecords(folder, rollouts)
    records.take(["g0"], micro, logprob, old, chosen, mismatch)
    records.write(12)
    path = folder / FOLDER / "step-00000012-0.jsonl"
    rows = {row["index"]: row for row in map(json.loads, path.read_text().splitlines())}
    flags = [flag for row in rows.values() for flag in unpacked(row["flags"], FLAGS).tolist()]
    if rollouts == len(LENGTHS):
        counted = {BELOW: "clip_low_tokens", ABOVE: "clip_high_tokens", DUAL: "dual_clip_tokens"}
        for flag, metric in counted.items():
            assert flags.count(flag) == int(stats[metric][0])
    return rows


def test_a_rollout_has_its_tokens_numbers_and_the_first_of_a_group_are_kept(tmp_path: Path) -> None:
    rows = taken(tmp_path, "dapo", 2)
    assert list(rows) == [0, 1]
    assert {name: rows[1][name] for name in ("group_id", "step", "advantage", "ratio")} == {
        "group_id": "g0", "step": 12, "advantage": -1.0, "ratio": None,
    }  # fmt: skip
    assert unpacked(rows[1]["change"], REALS).tolist() == pytest.approx(CHANGES[1], abs=1e-3)
    assert unpacked(rows[1]["old"], REALS).tolist() == pytest.approx([-1.125 - 0.25] * 3, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("dapo", [[0, ABOVE, 0, 0], [0, BELOW, 0], [0, ABOVE]]),
        ("grpo", [[0, ABOVE, 0, 0], [0, BELOW, DUAL], [0, ABOVE]]),
        ("gspo", [[ABOVE] * 4, [0] * 3, [ABOVE] * 2]),
    ],
)
def test_the_flags_are_where_the_loss_counts_a_clip(tmp_path: Path, name: str, flags: list[list[int]]) -> None:
    if OBJECTIVES[name].dual_clip is None:
        flags = [[0 if flag == DUAL else flag for flag in row] for row in flags]
    rows = taken(tmp_path, name, 3)
    assert [unpacked(rows[index]["flags"], FLAGS).tolist() for index in range(3)] == flags


def test_a_sequence_ratio_is_the_mean_of_the_changes(tmp_path: Path) -> None:
    rows = taken(tmp_path, "gspo+", 3)
    for index, changes in enumerate(CHANGES):
        assert rows[index]["ratio"] == pytest.approx(math.exp(sum(changes) / len(changes)), rel=1e-5)


def test_a_masked_sequence_is_told_as_such(tmp_path: Path) -> None:
    rows = taken(tmp_path, "dapo", 1, OffPolicy(sequence_low=0.9))
    assert unpacked(rows[0]["flags"], FLAGS).tolist() == [MASKED] * 4


def test_a_step_that_is_done_again_replaces_its_file_and_none_of_them_is_written_without_rollouts(
    tmp_path: Path,
) -> None:
    once, again = taken(tmp_path, "dapo", 2), taken(tmp_path, "dapo", 2)
    assert once == again
    (tmp_path / "other").mkdir()
    records = TokenRecords(tmp_path / "other", 0)
    records.write(1)
    assert list((tmp_path / "other").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_text("a file")
    with pytest.raises(ConfigError, match="cannot be written"):
        taken(tmp_path, "dapo", 1)
