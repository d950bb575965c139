"""Groups that are kept back: who asks for a batch hears why, until the time that was named is over."""

from __future__ import annotations

from environments.api_server.hold import Hold
from environments.api_server.server import build
from environments.api_server.store import Store
from tests.api.conftest import Api
from tests.served import Served


def test_a_hold_ends_by_itself_unless_it_is_said_again() -> None:
    now = [100.0]
    hold = Hold(lambda: now[0])
    assert hold.reason is None
    hold.say("first", 60)
    now[0] = 159.9
    assert hold.reason == "first"
    hold.say("again", 60)
    now[0] = 219.8
    assert hold.reason == "again"
    now[0] = 219.9
    assert hold.reason is None


def test_a_lease_without_a_batch_says_why_and_stock_answers_stay_as_they_are() -> None:
    served = Served(build(Store(None)))
    try:
        api = Api(served.url)
        api.register()
        assert api.http.post("/lease", json={"step": 0}).json() == {"batch": None}
        assert api.http.post("/hold", json={"reason": "an evaluation", "seconds": 60}).json() == {"status": "held"}
        assert api.http.post("/lease", json={"step": 0}).json() == {"batch": None, "held": "an evaluation"}
        assert api.http.get("/batch").json() == {"batch": None}
        assert api.http.get("/status").json() == {"current_step": 0, "queue_size": 0}
        api.register_env()
        api.send("a", "b")
        assert api.lease(0) == ["a", "b"]
        for wrong in ({"reason": "", "seconds": 1}, {"reason": "r", "seconds": 0}, {"reason": "r", "seconds": 601}):
            assert api.http.post("/hold", json=wrong).status_code == 422
        api.http.close()
    finally:
        served.stop()
