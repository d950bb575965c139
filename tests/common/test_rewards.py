"""Verdicts to rewards, and the environment's side of dynamic sampling."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from environments.common.rewards import drop_reason, reward

VECTORS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "advantages.json").read_text(encoding="utf-8")
)["cases"]


def test_accepted_is_plus_one() -> None:
    assert reward({"status": "accepted"}) == 1.0


@pytest.mark.parametrize(
    "status",
    [
        "wrong_answer",
        "time_limit_exceeded",
        "memory_limit_exceeded",
        "runtime_error",
        "compile_error",
        "output_limit_exceeded",
        "no_code",
    ],
)
def test_a_verdict_against_the_program_is_minus_one(status: str) -> None:
    assert reward({"status": status}) == -1.0


def test_no_verdict_is_no_reward() -> None:
    assert reward(None) is None


@pytest.mark.parametrize("status", ["host_overloaded", "sandbox_failed", "", None, "ACCEPTED"])
def test_a_fault_of_ours_never_becomes_a_score(status: str | None) -> None:
    with pytest.raises(ValueError, match="is not a verdict"):
        reward({"status": status})


@pytest.mark.parametrize("baseline", ["include", "exclude"])
@pytest.mark.parametrize("case", VECTORS, ids=lambda case: case["name"])
def test_the_vectors_drop_reasons(case: dict[str, Any], baseline: str) -> None:
    assert drop_reason(case["scores"], case["overlong"], baseline) == case[baseline]["drop"]


def test_an_unjudged_overlong_rollout_needs_no_score_under_exclude() -> None:
    assert drop_reason([1.0, None, -1.0], [False, True, False], "exclude") is None


def test_a_finished_rollout_without_a_score_is_refused() -> None:
    with pytest.raises(ValueError, match="score None"):
        drop_reason([1.0, None], [False, False], "exclude")


def test_an_overlong_rollout_without_a_score_is_refused_under_include() -> None:
    with pytest.raises(ValueError, match="score None"):
        drop_reason([1.0, None], [False, True], "include")


def test_the_order_of_the_rollouts_does_not_matter() -> None:
    rows = [(1.0, False), (1.0, True), (-1.0, True), (1.0, False)]
    reasons = {
        drop_reason([score for score, _ in order], [over for _, over in order], "exclude")
        for order in itertools.permutations(rows)
    }
    assert reasons == {"finished_equal"}


def test_an_unknown_baseline_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="choose include or exclude"):
        drop_reason([1.0], [False], "ignore")


def test_the_environment_imports_no_torch_for_it() -> None:
    code = "import sys, environments.common.rewards; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
