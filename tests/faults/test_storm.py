"""Many faults in one run, one after the other at drawn moments; then the journals and a fresh judge say what is true.

Each fault alone is in test_single.py, which is slow: a run costs half a minute to start.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.injections import CUT, cut, hang, kill, kill_judges, shuffled
from tests.faults.loop import Loop
from tests.faults.proof import prove
from tests.support.proxy import LIES, LyingProxy, State

pytestmark = pytest.mark.timeout(1200)


@pytest.mark.parametrize(
    "seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]
)  # slow: other orders and moments of the same deaths, a minute and more each
def test_every_process_is_killed_once_and_each_group_counts_once(
    tmp_path: Path, policy_model: Path, policy_problems: Path, seed: int
) -> None:
    faults = [
        *(kill("api", 2.0), kill("policy"), kill("environment"), kill(f"rank-{seed % 2}")),
        *(kill_judges(1), kill_judges(), hang("policy", 2.0)),
    ]
    with Loop(tmp_path, policy_model, policy_problems, steps=16) as loop:
        loop.go(shuffled(faults, seed), seed)
        restarts = loop.restarts
    prove(loop)
    assert restarts.keys() >= {"api", "policy", "environment", "trainer"}


@pytest.mark.parametrize(
    "seed", [0, pytest.param(1, marks=pytest.mark.slow)]
)  # slow: other moments of the same faults, a minute and more
def test_a_verifier_that_lies_and_networks_that_break_make_no_reward(
    tmp_path: Path, policy_model: Path, policy_problems: Path, seed: int
) -> None:
    proxies: list[LyingProxy] = []

    def lying(target: str) -> LyingProxy:
        proxies.append(LyingProxy(target, share=0.3, seed=seed))
        return proxies[0]

    states: list[State] = ["refuse", "reset", "stall", "reset"]
    faults = [cut(pair, state, 2.0) for pair, state in zip(CUT, states, strict=True)]
    faults += [kill("verifier", 2.0), kill_judges()]
    options = {"cuts": CUT, "verifier": "http", "verifier_proxy": lying}
    with Loop(tmp_path, policy_model, policy_problems, steps=14, **options) as loop:  # type: ignore[arg-type]
        loop.go(shuffled(faults, seed), seed)
    prove(loop)
    assert proxies[0].told.keys() == set(LIES)
