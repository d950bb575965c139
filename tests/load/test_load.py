"""The load benchmark in small: real processes, and hundreds of rollouts that end in the same moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.load import broken, measure
from benchmarks.scripted import Script, lengths

SCRIPT = Script(
    context=8192, mean=4000, sigma=0.8, cap=7000, tokens_per_s=4000, group_size=16, batch=32, hold=208
)  # fmt: skip


def result(**change: Any) -> dict[str, Any]:
    good = {"loop_thread_lag_s": {"max": 0.2}, "rollouts_in_flight": {"most": 2048}, "groups_sent": 9}
    return good | change


def test_a_result_within_the_bounds_breaks_none() -> None:
    assert broken(result(), 2048) == []


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"loop_thread_lag_s": {"max": 0.51}}, "worked for 0.51 s"),
        ({"rollouts_in_flight": {"most": 2047}}, "2047 rollouts"),
        ({"groups_sent": 0}, "no group"),
    ],
)
def test_each_bound_is_named_when_it_is_broken(change: dict[str, Any], word: str) -> None:
    (only,) = broken(result(**change), 2048)
    assert word in only


def test_answers_have_the_quantiles_of_the_distribution_cut_at_the_limit() -> None:
    found = lengths(SCRIPT, 9)
    # exp(mu + sigma z) at z of 1/18, 1/2 and 17/18, mu = ln 4000 - 0.32
    assert (found[0], found[4], found[8]) == (812, 2905, 7000)
    assert found == sorted(found)


@pytest.mark.slow  # hundreds of rollouts of thousands of tokens: half a minute of both cores
def test_hundreds_of_long_rollouts_in_flight_do_not_stop_the_event_loop(tmp_path: Path, smollm2: Path) -> None:
    found = measure(tmp_path, SCRIPT, 0.0, smollm2, groups=13, problems=8, say=lambda line: None)
    assert found["rollouts_in_flight"]["most"] >= SCRIPT.hold
    assert found["groups_sent"] > 0
    assert found["groups"] >= 13
    assert found["cut_at_the_limit"] > 0
    # CPU time: the neighbours have no part in it
    assert found["loop_thread_lag_s"]["max"] < 1.0, found["samples_while_blocked"]
