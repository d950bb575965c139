"""Groups in binary form at the API server: negotiated, checked like JSON, and unseen by Atropos' own clients."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from environments.api_server.journal import Journal
from environments.api_server.server import build
from environments.api_server.store import Store
from environments.common import group_bytes
from environments.common.group_bytes import MEDIA_TYPE, pack, split
from tests.api.conftest import Api, group
from tests.served import Served
from trainer.data.api_client import AtroposClient
from trainer.data.scored_groups import Reading

ACCEPT = {"Accept": f"{MEDIA_TYPE}, application/json;q=0.5"}
READING = Reading(1.0, 100, 1000, recompute=False)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], Api]]:
    """Starts a server over the test's journal, the one before ended; it takes bodies of 1 MiB."""
    running: list[tuple[Api, Served, Store]] = []

    def stop() -> None:
        for api, served, store in running:
            api.http.close()
            served.stop()
            store.close()
        running.clear()

    def started() -> Api:
        stop()
        store = Store(Journal(tmp_path / "journal"))
        served = Served(build(store, most_bytes=1 << 20))
        running.append((Api(served.url), served, store))
        return running[0][0]

    yield started
    stop()


def send(api: Api, body: bytes) -> Any:
    return api.http.post("/scored_data", content=body, headers={"Content-Type": MEDIA_TYPE})


def test_each_client_gets_each_group_in_the_form_that_it_asks_for(start: Callable[[], Api]) -> None:
    api = start()
    api.register(batch_size=6)
    api.send("a")
    assert send(api, pack(group("b") | {"env_id": 0})).json() == {"status": "received"}
    assert send(api, pack({k: v for k, v in group("c").items() if k != "group_overrides"})).status_code == 200
    binary = api.http.post("/lease", json={"step": 0}, headers=ACCEPT)
    assert binary.headers["content-type"] == MEDIA_TYPE
    plain = start().http.post("/lease", json={"step": 0})  # the journal has them as they came
    assert plain.headers["content-type"] == "application/json"
    rows = plain.json()["batch"]
    for name, row, found in zip("abc", rows, split(binary.content), strict=True):
        want = group(name)
        for column in ("tokens", "masks", "inference_logprobs"):
            assert row[column] == [list(one) for one in found[column]] == want[column]
        assert row["scores"] == found["scores"] == want["scores"]
        assert row["advantages"] is None  # every field of a stock answer
    assert [row.get("env_id") for row in rows] == [None, 0, None]
    assert rows[2]["api_group_id"] == split(binary.content)[2]["api_group_id"]


def test_the_trainer_s_client_reads_the_same_groups_from_both_forms(start: Callable[[], Api]) -> None:
    api = start()
    api.register(batch_size=2)
    found = []
    for step, body in enumerate((json.dumps(group("a")).encode(), pack(group("b")))):
        kind = MEDIA_TYPE if step else "application/json"
        api.http.post("/scored_data", content=body, headers={"Content-Type": kind}).raise_for_status()
        with AtroposClient(api.url, poll_s=0.01) as client:
            client.reading = READING
            (parsed,) = client.lease(step, 10.0)
            found.append(parsed)
    assert found[0].rollouts == found[1].rollouts
    assert found[0].prompt == found[1].prompt
    assert [one.group_id for one in found] == ["a", "b"]


def test_an_empty_answer_is_json_in_both_forms(start: Callable[[], Api]) -> None:
    api = start()
    assert api.http.post("/lease", json={"step": 0}, headers=ACCEPT).json()["status"] == "error"
    api.register()
    assert api.http.post("/lease", json={"step": 0}, headers=ACCEPT).json() == {"batch": None}


def forged(**changes: Any) -> bytes:
    head = group_bytes._decoded(pack(group("a")))
    for name, value in changes.items():
        setattr(head, name, value)
    return group_bytes._GROUP + msgspec.msgpack.encode(head)


def with_ids(ids: list[int]) -> bytes:
    """A group whose ids no `pack` writes."""
    rest = json.dumps({"scores": [1.0]}).encode()
    content = group_bytes._compressed(rest + group_bytes._planes(np.array(ids, "<i4")))
    return forged(counts=[len(ids)], runs=[[1, len(ids) - 1]], reals=[], rest=len(rest), content=content)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "no group in binary form"),
        (json.dumps(group("a")).encode(), "no group in binary form"),
        (pack(group("a"))[:-3], "no group in binary form"),
        (forged(counts=[2**30] * 2, runs=[[2**30]] * 2), "it unpacks to"),
        (forged(content=group_bytes._compressed(b"\0" * (64 << 20))), "zstd frame is damaged or not of the size"),
        (pack(group("a") | {"scores": [1.0]}), "scores: 1 entries for 2 rollouts"),
        (pack({k: v for k, v in group("a").items() if k != "scores"}), "missing required field `scores`"),
        (pack(group("a") | {"tokens": [], "masks": [], "inference_logprobs": []}), "tokens: empty"),
        (pack(group("a") | {"masks": [[-100] * 3] * 2}), "masks[0]: no sampled token"),
        (pack(group("a") | {"masks": group("a")["tokens"]}), "masks[0][0]: a sampled token needs one before it"),
        (pack(group("a") | {"inference_logprobs": [[1.0, 1.0, -1e39]] * 2}), "inference_logprobs[0]: a number"),
        (pack(group("a") | {"inference_logprobs": [[1.0, 1.0, float("nan")]] * 2}), "inference_logprobs[0]: a number"),
        (pack(group("a") | {"group_overrides": {"group_id": 3}}), "group_overrides.group_id is 3"),
        (with_ids([1, -5]), "tokens[0]: -5 is no token id"),
    ],
)
def test_what_cannot_be_taken_is_refused_with_its_field(start: Callable[[], Api], body: bytes, field: str) -> None:
    api = start()
    answer = send(api, body)
    assert answer.status_code == 422
    assert field in answer.json()["detail"]
    assert api.status() == (0, 0)


def test_a_list_of_groups_in_binary_form_is_refused_with_the_fix(start: Callable[[], Api]) -> None:
    answer = start().http.post("/scored_data_list", content=pack(group("a")), headers={"Content-Type": MEDIA_TYPE})
    assert (answer.status_code, "send each to /scored_data" in answer.text) == (415, True)


def test_the_newest_group_is_shown_as_json(start: Callable[[], Api]) -> None:
    api = start()
    send(api, pack(group("a")))
    assert api.http.get("/latest_example").json()["tokens"] == group("a")["tokens"]
