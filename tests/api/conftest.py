"""API servers for the tests, stock and ours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.served import Served


class Api:
    """Both sides' calls to one server, as Atropos' own clients make them."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.http = httpx.Client(base_url=url, timeout=30)

    def register(self, batch_size: int = 4, **changes: Any) -> Any:
        """The trainer's registration."""
        body = {
            "wandb_group": "g",
            "wandb_project": "p",
            "checkpoint_dir": "c",
            "save_checkpoint_interval": 5,
            "batch_size": batch_size,
            "max_token_len": 100,
            "starting_step": 0,
            "num_steps": 10,
        }
        return self.http.post("/register", json=body | changes).raise_for_status().json()

    def register_env(self, group_size: int = 2, **changes: Any) -> Any:
        """An environment's registration."""
        body = {"max_token_length": 100, "desired_name": "env", "weight": 1.0, "group_size": group_size}
        return self.http.post("/register-env", json=body | changes).raise_for_status().json()

    def send(self, *names: str, **changes: Any) -> list[Any]:
        """Groups of these ids, one after the other; the answers."""
        return [self.http.post("/scored_data", json=group(name) | changes).raise_for_status().json() for name in names]

    def batch(self) -> list[str] | None:
        """Ids of the groups of GET /batch."""
        return ids(self.http.get("/batch").raise_for_status().json())

    def lease(self, step: int) -> list[str] | None:
        """Ids of the groups of POST /lease."""
        return ids(self.http.post("/lease", json={"step": step}).raise_for_status().json())

    def status(self) -> tuple[int, int]:
        """Step, groups that wait."""
        answer = self.http.get("/status").raise_for_status().json()
        return answer["current_step"], answer["queue_size"]


def group(name: str, size: int = 2) -> dict[str, Any]:
    """A group of this id."""
    return {
        "tokens": [[1, 2, 3 + row] for row in range(size)],
        "masks": [[-100, -100, 3 + row] for row in range(size)],
        "scores": [1.0 if row % 2 else -1.0 for row in range(size)],
        "inference_logprobs": [[1.0, 1.0, -0.5 - row] for row in range(size)],
        "group_overrides": {"group_id": name},
    }


def ids(answer: dict[str, Any]) -> list[str] | None:
    """Of a batch's groups."""
    return answer["batch"] and [one["group_overrides"]["group_id"] for one in answer["batch"]]


@pytest.fixture(scope="session")
def _stock() -> Iterator[str]:
    from atroposlib.api.server import app

    served = Served(app)
    yield served.url
    served.stop()


@pytest.fixture
def ours() -> Iterator[Api]:
    """This project's server, without a journal."""
    from environments.api_server.server import build
    from environments.api_server.store import Store

    served = Served(build(Store(), allow_reset=True))
    api = Api(served.url)
    yield api
    api.http.close()
    served.stop()


@pytest.fixture
def stock(_stock: str) -> Iterator[Api]:
    """Atropos' own server, as it is when nobody has registered."""
    from atroposlib.api.server import app

    app.state._state.clear()
    api = Api(_stock)
    yield api
    api.http.close()


@pytest.fixture(params=["ours", "stock"])
def api(request: pytest.FixtureRequest) -> Api:
    """Each test runs against both servers; `differs` marks those that the stock one does not pass."""
    reason = request.node.get_closest_marker("differs")
    if reason and request.param == "stock":
        request.applymarker(pytest.mark.xfail(strict=True, reason=f"stock: {reason.args[0]}"))
    made: Api = request.getfixturevalue(request.param)
    return made
