"""The time that is left of a whole run, by a clock of our own."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from environments.launch.course import WEIGHTS, Course, parts_of_run
from environments.launch.display import Screen, left_words


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_run_is_its_start_its_steps_and_the_evaluations_that_are_due() -> None:
    assert parts_of_run(3, evaluated_every=2) == [
        ("start", 0), ("evaluation", 0), ("step", 1), ("step", 2), ("evaluation", 2), ("step", 3), ("evaluation", 3),
    ]  # fmt: skip
    assert parts_of_run(3, done=2, evaluated_every=3) == [("start", 2), ("step", 3), ("evaluation", 3)]
    assert parts_of_run(2) == [("start", 0), ("step", 1), ("step", 2)]


def test_nothing_is_known_before_something_was_timed(clock: Clock) -> None:
    course = Course(parts_of_run(2), clock)
    clock.now += 30
    assert (course.left_s(), course.share(), left_words(course)) == (None, 0.0, "")


def test_what_was_not_timed_yet_takes_its_share_of_what_was(clock: Clock) -> None:
    course = Course(parts_of_run(2, evaluated_every=2), clock)
    clock.now += 40
    course.over("start", 0)
    rest = 40 / WEIGHTS["start"] * (2 * WEIGHTS["evaluation"] + 2 * WEIGHTS["step"])
    assert course.left_s() == pytest.approx(rest)
    assert course.share() == pytest.approx(40 / (40 + rest))


def test_each_kind_is_estimated_by_its_own_once_it_was_timed(clock: Clock) -> None:
    course = Course(parts_of_run(3, evaluated_every=3), clock)
    for seconds, kind, step in ((40, "start", 0), (20, "evaluation", 0), (30, "step", 1), (50, "step", 2)):
        clock.now += seconds
        course.over(kind, step)  # type: ignore[arg-type]
    assert course.left_s() == pytest.approx((30 + 50) / 2 + 20)
    clock.now += 15  # of the step that is under way
    assert course.left_s() == pytest.approx(40 - 15 + 20)
    clock.now += 1000  # it takes longer than the others did
    assert course.left_s() == pytest.approx(20)


def test_a_part_is_over_once_and_ends_those_before_it(clock: Clock) -> None:
    course = Course(parts_of_run(4), clock)
    course.over("step", 2, 30)
    clock.now += 100
    course.over("step", 1, 500)  # said too late
    course.over("evaluation", 9)  # no part of this run
    assert course.last == "step"
    assert course.left_s() == pytest.approx(30)  # the third is late, the fourth to come
    course.over("step", 4, 30)
    assert (course.left_s(), course.share()) == (0.0, 1.0)


def test_servers_that_ran_before_say_nothing_of_how_long_parts_take(clock: Clock) -> None:
    course = Course(parts_of_run(2), clock)
    course.over("start", 0)
    assert course.left_s() is None


def test_one_bar_spans_what_is_within_it_and_names_what_is_done(clock: Clock) -> None:
    text = io.StringIO()
    screen = Screen(Console(file=text, width=150, force_terminal=True))
    course = Course(parts_of_run(1), clock)
    with screen.bar(), screen.bar():
        clock.now += 60
        course.over("start", 0)
        with screen.stage("a server"):
            screen.show(course, "step 0/1", "starting a server")
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.getvalue())
    [bar] = {part.rstrip() for part in re.split(r"[\r\n]", plain) if "starting" in part}
    assert "step 0/1" in bar
    assert " 50 %" in bar
    assert bar.endswith("60 s left starting a server")


def test_in_a_pipe_there_is_no_bar(clock: Clock) -> None:
    text = io.StringIO()
    screen = Screen(Console(file=text, width=150))
    with screen.bar():
        screen.show(Course(parts_of_run(1), clock), "step 0/1", "starting")
        screen.say("a line")
    assert text.getvalue().strip() == "a line"
