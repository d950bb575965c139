"""Whose terms refuse whom: two sides that are there and differ both stop; a side that is gone refuses nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from environments.api_server.journal import Journal
from environments.api_server.server import build
from environments.api_server.store import Store
from tests.api.conftest import Api
from tests.served import Served

Start = Callable[[], Api]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts the server on one journal; the one before is ended first."""
    running: list[tuple[Served, Api, Journal]] = []

    def end() -> None:
        for served, api, journal in running:
            api.http.close()
            served.stop()
            journal.close()
        running.clear()

    def begin() -> Api:
        end()
        journal = Journal(tmp_path / "journal")
        served = Served(build(Store(journal)))
        running.append((served, Api(served.url), journal))
        return running[0][1]

    yield begin
    end()


def says(api: Api, side: str, **terms: Any) -> int:
    """The status of what a side hears for its terms."""
    return api.http.post("/contract", json={"side": side, "terms": terms}).status_code


def leases(api: Api, step: int = 0) -> int:
    return api.http.post("/lease", json={"step": step}).status_code


def test_a_run_is_continued_for_more_steps_without_a_start_in_vain(start: Start) -> None:
    first = start()
    first.register(num_steps=2)
    assert (says(first, "trainer", steps=2), says(first, "environment", steps=2)) == (200, 200)
    second = start()  # what both said is in the journal
    assert says(second, "environment", steps=4) == 200
    assert says(second, "trainer", steps=4) == 200
    assert leases(second) == 200


def test_the_same_where_the_server_goes_on(start: Start) -> None:
    api = start()
    api.register(batch_size=2, num_steps=1)
    assert (says(api, "trainer", steps=1), says(api, "environment", steps=1)) == (200, 200)
    api.send("a")
    assert api.lease(0) == ["a"]  # the last step: both have ended
    assert says(api, "environment", steps=2) == 200
    api.register(batch_size=2, num_steps=2)
    assert says(api, "trainer", steps=2) == 200
    assert leases(api, 1) == 200


def test_after_a_difference_the_mended_sides_begin_in_either_order(start: Start) -> None:
    for order in (("trainer", "environment"), ("environment", "trainer")):
        api = start()
        api.register()
        assert says(api, "environment", context=640) == 200
        assert says(api, "trainer", context=512) == 409
        assert leases(api) == 409  # whoever goes on all the same is told again
        assert says(api, "environment", context=512) == 200  # equal to the trainer's: that may go on
        assert leases(api) == 200
        assert says(api, "environment", context=640) == 409
        assert leases(api) == 409  # both are told, and end
        for side in order:
            if side == "trainer":
                api.register()
            assert says(api, side, context=1024) == 200, (order, side)
        assert leases(api) == 200


def test_sides_that_are_there_and_differ_are_both_refused(start: Start) -> None:
    for restart in (False, True):
        api = start()
        if restart:
            says(api, "trainer", context=1)
            api = start()
        api.register()
        assert says(api, "trainer", context=512, steps=3) == 200
        api.register()  # a trainer says its terms before it registers
        answer = api.http.post("/contract", json={"side": "environment", "terms": {"context": 640, "steps": 3}})
        assert answer.status_code == 409
        assert answer.json()["detail"].startswith("the sides differ in context: ")
        assert "512" in answer.json()["detail"]
        assert "640" in answer.json()["detail"]
        assert leases(api) == 409


def test_a_server_that_is_started_again_under_a_run_goes_on(start: Start) -> None:
    api = start()
    api.register(batch_size=2)
    assert (says(api, "trainer", context=512), says(api, "environment", context=512)) == (200, 200)
    api.send("a")
    again = start()
    assert again.lease(0) == ["a"]
    assert says(again, "environment", context=512) == 200
