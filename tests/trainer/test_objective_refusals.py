"""What the loss does not take: shapes that do not fit, and settings of the mismatch that would train on nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from trainer.data.advantages import _without_signal
from trainer.objective.objectives import OBJECTIVES, denominators, policy_loss
from trainer.objective.off_policy import OffPolicy
from trainer.objective.table import token_twin


def loss(**changes: torch.Tensor) -> torch.Tensor:
    """Of two sequences of two tokens."""
    given: dict[str, Any] = {
        "logprob": torch.tensor([-1.0, -2.0, -3.0, -4.0]), "old_logprob": torch.tensor([-1.0, -2.0, -3.0, -4.0]),
        "sequence": torch.tensor([0, 0, 1, 1]), "advantage": torch.tensor([1.0, -1.0]), "length": torch.tensor([2, 2]),
    }  # fmt: skip
    counts = denominators([2, 2], [False, False], "include")
    return policy_loss(OBJECTIVES["grpo"], **(given | changes), counts=counts)[0]


def test_what_fits_has_a_loss() -> None:
    assert loss() == 0  # equal log-probabilities, advantages that cancel out
    assert loss(reference_logprob=torch.zeros(4)) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reference_logprob": torch.zeros(3)}, r"reference_logprob \(3,\), logprob \(4,\): pass packed \[K\] twice"),
        ({"advantage": torch.ones(3)}, r"advantage \(3,\) and length \(2,\): both must be \[B\]"),
        ({"length": torch.tensor([2, 2, 0])}, r"advantage \(2,\) and length \(3,\)"),
        ({"sequence": torch.tensor([0, 0, 1, 2])}, r"tokens per sequence \[2, 1, 1\] and length \[2, 2\] differ"),
        ({"advantage": torch.ones(2, dtype=torch.bfloat16)}, "advantage is torch.bfloat16"),
    ],
)
def test_shapes_that_do_not_fit_are_named(changes: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": "tsi"}, "mismatch weight 'tsi' is unknown: choose tis"),
        ({"cap": 0.9}, "mismatch cap 0.9 < 1"),
        ({"icepop_low": 1.1}, "icepop range 1.1..5.0: it must contain 1"),
        ({"icepop_low": -0.1}, "icepop range -0.1..5.0"),
        ({"icepop_high": 0.9}, "icepop range 0.5..0.9"),
        ({"sequence_low": 1.1, "sequence_high": 2.0}, "sequence mask 1.1..2.0: it must contain 1"),
        ({"sequence_high": 0.9}, "sequence mask 0.0..0.9"),
    ],
)
def test_a_mismatch_that_would_leave_matching_tokens_out_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OffPolicy(**changes)


def test_each_sequence_objective_names_its_twin_by_token() -> None:
    twins = {name: token_twin(row) for name, row in OBJECTIVES.items()}
    assert (twins["gspo"], twins["gspo+"]) == ("grpo", "dapo")
    for name, row in OBJECTIVES.items():
        if row.ratio == "token":
            assert twins[name] is not None


@pytest.mark.parametrize(
    ("scores", "overlong", "baseline", "reason"),
    [
        ([1.0, -1.0], [False, False], "include", None),
        ([1.0, 1.0], [False, False], "include", "all_pass"),
        ([-1.0, -1.0], [False, False], "exclude", "all_fail"),
        ([-1.0, -1.0], [True, True], "include", "all_overlong"),
        ([1.0, 1.0, -1.0], [False, False, True], "exclude", "finished_equal"),
        ([1.0, 1.0, -1.0], [False, False, True], "include", None),
    ],
)
def test_a_group_without_signal_says_why(scores: list[float], overlong: list[bool], baseline: str, reason: Any) -> None:
    assert _without_signal(scores, overlong, baseline) == reason
