"""The facts in a group's overrides: each error names field, value and fix; what the environment writes is as before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from environments.common.scored_group import GroupError, GroupFacts, RolloutFacts, facts
from environments.livecode.scored_data import as_scored_data
from tests.livecode.recorded_groups import judged_group

VECTORS = Path(__file__).resolve().parents[1] / "vectors" / "run_lines.json"
ROLLOUT = {"set_advantage_to_zero": False, "finish_reason": "stop", "versions": [[4, 0, 2]]}
GROUP = {"group_id": "g", "problem_id": "p", "temperature": 1, "context": 64}


def test_a_group_is_sent_as_before_the_schema() -> None:
    sent = [json.dumps(as_scored_data(judged_group(), temperature=heat, context=4096)) for heat in (1.0, 0.6)]
    assert sent == json.loads(VECTORS.read_text(encoding="utf-8"))["scored_data"]


def test_facts_are_read_and_those_of_others_left_out() -> None:
    found = facts(ROLLOUT | {"verdict": "accepted", "reward_model": {}}, RolloutFacts, "overrides[0]")
    assert (found.set_advantage_to_zero, found.finish_reason, found.versions) == (False, "stop", [(4, 0, 2)])
    assert facts(ROLLOUT | {"versions": None, "verdict": 3}, RolloutFacts, "o").versions is None
    assert facts(GROUP, GroupFacts, "group_overrides").temperature == 1.0


@pytest.mark.parametrize("name", list(ROLLOUT))
def test_a_fact_that_is_missing_is_named_with_its_fix(name: str) -> None:
    with pytest.raises(GroupError, match=rf"^overrides\[3\].{name} is None: send "):
        facts({key: value for key, value in ROLLOUT.items() if key != name}, RolloutFacts, "overrides[3]")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": float("inf")}, "group_overrides.temperature is inf: send the sampling temperature, above 0"),
        ({"temperature": True}, "group_overrides.temperature is True: "),
        ({"context": 10**400}, "group_overrides.context is 1000"),
        ({"group_id": ["x" * 200]}, 'group_overrides.group_id is "\\[\'xxx.*\\.\\.\\.": the environment gives'),
        ({"problem_id": 5, "context": 0}, "group_overrides.problem_id is 5: send the problem's id as a string"),
    ],
)
def test_a_wrong_fact_is_named_with_value_and_fix(change: dict[str, Any], message: str) -> None:
    with pytest.raises(GroupError, match=message):
        facts(GROUP | change, GroupFacts, "group_overrides")


def test_facts_are_an_object() -> None:
    with pytest.raises(GroupError, match="group_overrides is '7': send an object"):
        facts(7, GroupFacts, "group_overrides")
