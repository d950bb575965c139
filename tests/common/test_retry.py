"""Trying again: how long between two tries, when it ends, and what it ends with; the clock is the test's own."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from environments.common.endpoints import Endpoint, least_loaded
from environments.common.retry import Failure, Retry, RetryLater


class Time:
    """A clock that only pauses move; what is slept is kept."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []
        self.late_by = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds + self.late_by

    async def asleep(self, seconds: float) -> None:
        self.sleep(seconds)


def failing(times: int, error: Callable[[int], Exception] = lambda n: RetryLater(f"failure {n}")) -> Callable[[], str]:
    """A call that fails so many times and then answers."""
    failed = 0

    def attempt() -> str:
        nonlocal failed
        if failed < times:
            failed += 1
            raise error(failed)
        return f"after {failed}"

    return attempt


def exact(clock: Time, **options: Any) -> Retry:
    """Pauses of 1, 2, 4, 4 ... seconds."""
    return Retry(1.0, 4.0, (1.0, 1.0), clock=clock, **options)


async def both(retry: Retry, attempt: Callable[[], str], clock: Time, *, waiting: bool) -> str:
    """The one policy, by either of its two ways."""
    if not waiting:
        return retry.call(attempt, sleep=clock.sleep)

    async def answer() -> str:
        return attempt()

    return await retry.call_async(answer, sleep=clock.asleep)


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def waiting(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


async def test_pauses_double_up_to_the_longest(waiting: bool) -> None:
    clock = Time()
    assert await both(exact(clock), failing(5), clock, waiting=waiting) == "after 5"
    assert clock.slept == [1, 2, 4, 4, 4]


async def test_a_pause_is_drawn_from_the_range_around_it(waiting: bool) -> None:
    clock, drawn = Time(), []

    def draw(low: float, high: float) -> float:
        drawn.append((low, high))
        return high

    retry = Retry(1.0, 4.0, (0.5, 1.5), clock=clock, draw=draw)
    await both(retry, failing(3), clock, waiting=waiting)
    assert (drawn, clock.slept) == ([(0.5, 1.5)] * 3, [1.5, 3.0, 6.0])


def test_callers_that_failed_together_do_not_come_back_together() -> None:
    clock = Time()
    for _ in range(20):
        Retry(1.0, 4.0, clock=clock).call(failing(1), sleep=clock.sleep)
    assert len(set(clock.slept)) == 20
    assert all(0.5 <= pause <= 1.0 for pause in clock.slept)


async def test_what_the_other_side_asks_for_is_waited_at_least(waiting: bool) -> None:
    clock = Time()
    await both(exact(clock), failing(3, lambda _: RetryLater("busy", wait_s=3.0)), clock, waiting=waiting)
    assert clock.slept == [3, 3, 4]


async def test_any_other_error_ends_the_tries_at_once(waiting: bool) -> None:
    clock = Time()
    with pytest.raises(ValueError, match="failure 1"):
        await both(exact(clock), failing(1, lambda n: ValueError(f"failure {n}")), clock, waiting=waiting)
    assert clock.slept == []


async def test_the_last_failure_is_raised_with_the_number_of_tries(waiting: bool) -> None:
    clock = Time()
    with pytest.raises(RetryLater, match="failure 3") as raised:
        await both(exact(clock, give_up=lambda failure: failure.tries >= 3), failing(9), clock, waiting=waiting)
    assert (raised.value.tries, clock.slept) == (3, [1, 2])


async def test_no_pause_is_taken_that_would_end_after_the_deadline(waiting: bool) -> None:
    clock = Time()
    with pytest.raises(RetryLater, match="failure 3"):
        await both(exact(clock, deadline_s=7.0), failing(9), clock, waiting=waiting)
    assert clock.slept == [1, 2]  # the third, of 4 s, would end at 7 s


async def test_no_try_begins_after_the_deadline_when_a_pause_took_too_long(waiting: bool) -> None:
    clock = Time()
    clock.late_by = 10.0
    with pytest.raises(RetryLater, match="failure 1"):
        await both(exact(clock, deadline_s=7.0), failing(1), clock, waiting=waiting)
    assert clock.slept == [1]


async def test_who_is_asked_before_each_pause_learns_reason_number_and_times(waiting: bool) -> None:
    clock, seen = Time(), list[Failure]()
    await both(exact(clock, on_retry=seen.append), failing(2), clock, waiting=waiting)
    assert [(str(one.error), one.tries, one.elapsed_s, one.pause_s) for one in seen] == [
        ("failure 1", 1, 0.0, 1.0),
        ("failure 2", 2, 1.0, 2.0),
    ]


async def test_the_log_has_the_reason_of_each_try(waiting: bool, caplog: pytest.LogCaptureFixture) -> None:
    clock = Time()
    with caplog.at_level(logging.WARNING):
        await both(exact(clock), failing(2), clock, waiting=waiting)
    assert caplog.messages == ["failure 1; trying again in 1.0 s", "failure 2; trying again in 2.0 s"]


def test_what_is_raised_before_a_pause_ends_the_tries() -> None:
    def stop(_: Failure) -> None:
        raise KeyboardInterrupt

    clock = Time()
    with pytest.raises(KeyboardInterrupt):
        exact(clock, on_retry=stop).call(failing(9), sleep=clock.sleep)
    assert clock.slept == []


async def test_a_timeout_that_a_try_answers_with_an_error_of_its_own_ends_the_tries() -> None:
    tries = 0

    async def attempt() -> str:
        nonlocal tries
        tries += 1
        try:
            await asyncio.sleep(60 if tries == 1 else 0)
        except asyncio.CancelledError:
            raise RetryLater("the call failed") from None
        return "too late"

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await Retry(0.0, 0.0).call_async(attempt)
    assert tries == 1


async def test_a_timeout_around_the_tries_ends_a_pause() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await Retry(60.0, 60.0).call_async(asyncio_failing)


async def asyncio_failing() -> None:
    raise RetryLater("always")


class Held:
    """Stands for a rollout's tokens."""


async def test_a_call_that_was_repeated_keeps_nothing_of_its_tries(waiting: bool) -> None:
    """No cycle of references is left that would hold a rollout until the next full garbage collection."""
    clock, kept = Time(), list[weakref.ref[Held]]()

    async def work() -> None:
        held = Held()
        kept.append(weakref.ref(held))
        answer = failing(2)
        await both(exact(clock, on_retry=lambda _: None), lambda: f"{held and answer()}", clock, waiting=waiting)

    gc.collect()
    gc.disable()
    try:
        await work()
        assert kept[0]() is None
    finally:
        gc.enable()


def test_the_least_loaded_endpoint_comes_first_and_one_that_failed_last() -> None:
    one, two, three = Endpoint("one", running=2), Endpoint("two", running=1), Endpoint("three")
    assert least_loaded([one, two, three]) is three
    three.leave_alone(60.0)
    assert (three.is_down, least_loaded([one, two, three])) == (True, two)
    two.leave_alone(60.0)
    one.leave_alone(60.0)
    assert least_loaded([one, two, three]) is three  # all failed: again by load
    assert least_loaded(list[Endpoint]()) is None
