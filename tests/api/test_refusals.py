"""What the API server does not take: said by field, never a 500, and nothing of it is kept."""

from __future__ import annotations

import gzip
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from environments.api_server.group_checks import LONGEST_ID
from environments.api_server.journal import Journal
from environments.api_server.server import build
from environments.api_server.store import Store
from tests.api.conftest import Api, group
from tests.served import Served
from verifier_app.connections import MAX_HEADER_BYTES

LONG = 10**400


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Api]:
    """A server with a journal that takes bodies of 1 MiB and no reset."""
    store = Store(Journal(tmp_path / "journal"))
    served = Served(build(store, most_bytes=1 << 20))
    api = Api(served.url)
    yield api
    api.http.close()
    served.stop()
    assert store.journal is not None
    store.journal.close()


def rows(first: Any, second: Any) -> list[Any]:
    return [first, second]


MASK, TOKENS = [-100, -100, 4], [1, 2, 4]
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "overflow in log-probabilities": (
        {"inference_logprobs": rows([1.0, 1e308, 1e308], [1, 1, 0])},
        "$.inference_logprobs",
    ),
    "overflow in advantages": ({"advantages": rows([1e308, 1e308], [0.0])}, "$.advantages"),
    "a negative overflow": ({"ref_logprobs": rows([0, 0, 0], [-1e308, -1e308, 0])}, "$.ref_logprobs"),
    "a score beyond float32": ({"scores": [1e39, 1.0]}, "$.scores"),
    "a negative token": ({"tokens": rows([1, -2, 3], TOKENS)}, "$.tokens"),
    "a token beyond int32": ({"tokens": rows([1, 2**31, 3], TOKENS)}, "$.tokens"),
    "a token of 23 digits": ({"tokens": rows([10**22, 2, 3], TOKENS)}, "$.tokens"),
    "a token of 400 digits": ({"tokens": rows([LONG, 2, 3], TOKENS)}, "$.tokens"),
    "a token with a fraction": ({"tokens": rows([1.5, 2, 3], TOKENS)}, "$.tokens"),
    "a mask of 7": ({"masks": rows([-100, -100, 7], MASK)}, "masks[0][2] is 7: send -100"),
    "a mask of -9": ({"masks": rows([-100, -9, 3], MASK)}, "masks[0][1] is -9"),
    "a mask of 0 and 1": ({"masks": rows([0, 0, 1], [0, 0, 1])}, "masks[0][0] is 0"),
    "a mask below -100": ({"masks": rows([-101, -100, 3], MASK)}, "$.masks"),
    "a first token that is trained": ({"masks": rows([1, 2, 3], MASK)}, "masks[0][0] is 1"),
    "an empty rollout": ({"tokens": rows([], TOKENS), "masks": rows([], MASK), "inference_logprobs": None}, "masks[0]"),
    "an empty completion": ({"masks": rows([-100] * 3, MASK)}, "masks[0]: no sampled token"),
    "a group id that is long": ({"group_overrides": {"group_id": "x" * (LONGEST_ID + 1)}}, "group_overrides.group_id"),
    "a group id with a line's end": ({"group_overrides": {"group_id": "a\nb"}}, "group_overrides.group_id"),
    "a group id with NUL": ({"group_overrides": {"group_id": "\x00"}}, "group_overrides.group_id"),
    "a group id that is turned": ({"group_overrides": {"group_id": "a\u202eb"}}, "group_overrides.group_id"),
    "a group id that is no text": ({"group_overrides": {"group_id": 5}}, "group_overrides.group_id"),
    "an empty group id": ({"group_overrides": {"group_id": ""}}, "group_overrides.group_id"),
    "an environment beyond int32": ({"env_id": LONG}, "$.env_id"),
    "a negative environment": ({"env_id": -1}, "$.env_id"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_group_out_of_bounds_is_refused_with_its_field(small: Api, name: str) -> None:
    changes, field = BAD[name]
    for path, body in (
        ("/scored_data", group("a") | changes),
        ("/scored_data_list", [group("b"), group("a") | changes]),
    ):
        answer = small.http.post(path, content=json.dumps(body))
        assert answer.status_code == 422
        assert field in answer.json()["detail"]
        answer.json()["detail"].encode()
    assert small.status() == (0, 0)


def test_a_group_id_with_a_lone_surrogate_is_refused(small: Api) -> None:
    body = json.dumps(group("@")).replace("@", "\\ud800")
    assert small.http.post("/scored_data", content=body).status_code == 422


def test_what_the_protocol_allows_is_taken(small: Api) -> None:
    small.register(batch_size=2)
    turns = {"tokens": [[1, 2, 3, 4, 5]] * 2, "masks": [[-100, 2, -100, -100, 5]] * 2, "inference_logprobs": None}
    assert small.send("x" * LONGEST_ID, **turns) == [{"status": "received"}]
    big = {"tokens": [[1, 2**31 - 1]] * 2, "masks": [[-100, 2**31 - 1]] * 2, "inference_logprobs": [[1.0, -3e38]] * 2}
    assert small.send("größe 1", **big) == [{"status": "received"}]


REGISTRATION = {
    "wandb_group": "g", "wandb_project": "p", "batch_size": 4, "max_token_len": 100, "checkpoint_dir": "c",
    "save_checkpoint_interval": 5, "starting_step": 0, "num_steps": 10,
}  # fmt: skip
ENVIRONMENT = {"max_token_length": 100, "desired_name": "env", "weight": 1.0, "group_size": 2}


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        *(("/register", REGISTRATION | {"batch_size": value}, "batch_size") for value in (0, -1, LONG, 1.5, "x", None)),
        ("/register", REGISTRATION | {"starting_step": LONG}, "starting_step"),
        ("/register", REGISTRATION | {"num_steps": float("nan")}, "num_steps"),
        ("/register", REGISTRATION | {"wandb_group": "\ud800"}, "wandb_group"),
        ("/register", REGISTRATION | {"checkpoint_dir": "x" * 5000}, "checkpoint_dir"),
        *(("/register-env", ENVIRONMENT | {"group_size": value}, "group_size") for value in (0, -1, LONG)),
        *(("/register-env", ENVIRONMENT | {"weight": value}, "weight") for value in (float("nan"), float("inf"), -1.0)),
        ("/register-env", ENVIRONMENT | {"min_batch_allocation": float("inf")}, "min_batch_allocation"),
        ("/register-env", ENVIRONMENT | {"desired_name": "\udfff"}, "desired_name"),
        *(("/lease", {"step": value}, "step") for value in (-1, LONG, float("nan"), "\ud800", None)),
        ("/lease", {"step": 0, "trainer": "\ud800"}, "trainer"),
        ("/ack", {"checkpoint_step": LONG}, "checkpoint_step"),
        ("/rollback", {"step": LONG}, "step"),
        ("/contract", {"side": "trainer", "terms": {"a": ["\ud800"]}}, "JSON"),
        ("/contract", {"side": "trainer", "terms": {"\ud800": 1}}, "JSON"),
        ("/contract", {"side": "\ud800", "terms": {}}, "side"),
        ("/contract", {"side": "trainer", "terms": [1]}, "terms"),
        ("/disconnect-env", {"env_id": 5}, "env_id"),
        ("/disconnect-env", {"env_id": -1}, "env_id"),
        ("/contract", ["\ud800"], ""),
    ],
)  # fmt: skip
def test_what_a_side_says_out_of_bounds_is_refused_with_its_field(
    small: Api, caplog: pytest.LogCaptureFixture, path: str, body: Any, field: str
) -> None:
    small.register()
    answer = small.http.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert field in json.dumps(answer.json()["detail"])
    if path != "/disconnect-env":
        assert f"POST {path} is refused: " in caplog.text
        assert field in caplog.text
    assert small.http.get("/health").status_code == 200
    assert small.status() == (0, 0)


def test_the_share_of_an_environment_that_is_none_is_refused(small: Api) -> None:
    small.register()
    small.batch()
    small.register_env(weight=0.0)
    for number in (0, 1, 10**30):
        answer = small.http.request("GET", "/status-env", json={"env_id": number})
        assert answer.status_code == 422


def test_an_environment_without_a_name_is_given_one(small: Api) -> None:
    small.register()
    small.batch()
    assert small.register_env(desired_name=None)["wandb_name"] == "environment_0"


@pytest.mark.parametrize("packed", [False, True])
def test_a_body_beyond_the_limit_is_refused_before_it_is_held(small: Api, packed: bool) -> None:
    body = json.dumps(group("a") | {"other": " " * (1 << 20)}).encode()
    headers = {"Content-Encoding": "gzip"} if packed else {}
    content = gzip.compress(body) if packed else body
    for sent in (content, iter([content])):  # announced, and in pieces
        answer = small.http.post("/scored_data", content=sent, headers=headers)
        assert answer.status_code == 413
        assert "1 MiB (--max-body-mb)" in answer.json()["detail"]
    assert small.send("b") == [{"status": "received"}]


def test_a_gzip_body_of_several_members_is_read_and_one_cut_off_refused(small: Api) -> None:
    body = json.dumps(group("a")).encode()
    headers = {"Content-Encoding": "gzip"}
    members = gzip.compress(body[:50]) + gzip.compress(body[50:])
    assert small.http.post("/scored_data", content=members[:-9], headers=headers).status_code == 400
    assert small.http.post("/scored_data", content=members, headers=headers).json() == {"status": "received"}


def test_forgetting_everything_needs_to_be_enabled(small: Api) -> None:
    small.register()
    small.send("a")
    refused = small.http.get("/reset_data")
    assert (refused.status_code, "--allow-reset" in refused.json()["detail"]) == (403, True)
    assert small.status() == (0, 1)


@pytest.mark.parametrize("origin", ["http://example.org", "null", "http://127.0.0.1:1", "https://[::1]"])
def test_web_pages_of_other_origins_neither_read_nor_post(small: Api, origin: str) -> None:
    headers = {"Origin": origin, "Content-Type": "text/plain"}
    for answer in (
        small.http.post("/scored_data", content=json.dumps(group("a")), headers=headers),
        small.http.get("/status", headers=headers),
        small.http.options("/scored_data", headers=headers | {"Access-Control-Request-Method": "POST"}),
    ):
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers
    assert small.status() == (0, 0)
    assert small.http.get("/status", headers={"Origin": small.url}).status_code == 200


def test_headers_are_bounded() -> None:
    from environments.api_server.request_bodies import BoundedHttpTools

    served = Served(build(Store()), http=BoundedHttpTools)
    address = httpx.URL(served.url)
    for begin in (b"GET /status HTTP/1.1\r\nA: ", b"GET /"):
        with socket.create_connection((address.host, address.port or 80), timeout=30) as connection:
            received = b""
            try:
                connection.sendall(begin + b"x" * (MAX_HEADER_BYTES * 40))
                while part := connection.recv(65536):
                    received += part
            except ConnectionError:
                pass
            assert received == b"" or received.startswith(b"HTTP/1.1 400")
    with httpx.Client() as client:  # long bodies and many requests of one connection are none of it
        for _ in range(3):
            answer = client.post(served.url + "/scored_data", content=b" " * MAX_HEADER_BYTES * 2)
            assert answer.status_code == 422
    served.stop()
