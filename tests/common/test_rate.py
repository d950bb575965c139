"""A bound on beginnings, by a clock of the test's own."""

from __future__ import annotations

import random

import pytest

from environments.common.rate import Rate


class Clock:
    """A time that passes only while somebody waits."""

    def __init__(self) -> None:
        self.now = 50.0

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize(("per_s", "at_once"), [(4.0, 4), (0.5, 1), (30.0, 30)])
async def test_a_seconds_worth_begins_at_once_and_the_rest_at_the_rate(per_s: float, at_once: int) -> None:
    clock = Clock()
    rate = Rate(per_s, clock=lambda: clock.now, sleep=clock.sleep)
    begun = []
    for _ in range(at_once + 6):
        await rate.turn()
        begun.append(clock.now - 50.0)
    assert begun[:at_once] == pytest.approx([0.0] * at_once)
    assert begun[at_once:] == pytest.approx([(number + 1) / per_s for number in range(6)])


async def test_no_window_has_more_beginnings_than_the_rate_and_the_burst() -> None:
    clock, draw = Clock(), random.Random(3)
    rate = Rate(5.0, clock=lambda: clock.now, sleep=clock.sleep)
    begun = []
    for _ in range(300):
        clock.now += draw.choice([0.0, 0.0, 0.0, 0.7])
        await rate.turn()
        begun.append(clock.now)
    for start in begun:
        assert sum(start <= one < start + 2.0 for one in begun) <= 5 * 2 + 5
