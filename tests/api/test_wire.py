"""What goes over the wire, the same tests against this project's server and against Atropos' own.

A test marked `differs` is one that the stock server of atroposlib 0.4.0 fails, for the reason given; it must go on
failing there, so that the list stays true.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import math
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from atroposlib.envs.base import BaseEnv, BaseEnvConfig
from atroposlib.envs.server_handling.server_baseline import APIServerConfig

from environments.common.group_bytes import MEDIA_TYPE
from tests.api.conftest import Api, group, ids

# -- the same as Atropos -----------------------------------------------------------------------------------


def test_a_trainer_that_registers_gets_an_id_of_its_own(api: Api) -> None:
    assert api.register()["uuid"] != api.register()["uuid"]


def test_without_a_trainer_there_is_no_batch(api: Api) -> None:
    answer = api.http.get("/batch").json()
    assert answer == {"status": "error", "message": "Trainer not registered. Call /register first.", "batch": []}


def test_what_the_trainer_registered_is_told(api: Api) -> None:
    api.register(batch_size=8, max_token_len=77)
    assert api.http.get("/info").json() == {"batch_size": 8, "max_token_len": 77}
    assert api.http.get("/wandb_info").json() == {"group": "g", "project": "p"}


def test_environments_wait_for_the_first_batch_and_are_told_apart(api: Api) -> None:
    assert api.register_env() == {"status": "wait for trainer to start"}
    api.register(starting_step=3)
    assert api.register_env()["status"] == "wait for trainer to start"
    api.batch()
    first, second = api.register_env(), api.register_env()
    assert (first["env_id"], first["wandb_name"], first["starting_step"]) == (0, "env_0", 3)
    assert (second["env_id"], second["wandb_name"], second["num_steps"]) == (1, "env_1", 10)


def test_too_few_groups_make_no_batch(api: Api) -> None:
    api.register()
    api.send("a")
    assert api.batch() is None
    assert api.status() == (0, 1)


def test_a_group_arrives_as_it_was_sent_with_every_field_of_an_answer(api: Api) -> None:
    api.register(batch_size=2)
    api.send("a", messages=[[{"role": "user", "content": "ä"}]] * 2, overrides=[{"x": [1, None]}, {}])
    (found,) = api.http.get("/batch").json()["batch"]
    sent = group("a") | {"messages": [[{"role": "user", "content": "ä"}]] * 2, "overrides": [{"x": [1, None]}, {}]}
    assert {name: found[name] for name in sent} == sent
    assert {name for name in found if name not in sent} == {
        *("advantages", "ref_logprobs", "generation_params", "images", "env_id"),
        *("distill_token_ids", "distill_logprobs"),
    }
    assert all(found[name] is None for name in found if name not in sent)


def test_several_groups_in_one_request(api: Api) -> None:
    api.register()
    answer = api.http.post("/scored_data_list", json=[group("a"), group("b")]).json()
    assert answer == {"status": "received", "groups_processed": 2}
    assert sorted(api.batch() or []) == ["a", "b"]


def test_a_gzipped_request_is_read_and_a_broken_one_refused(api: Api) -> None:
    api.register(batch_size=2)
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    body = gzip.compress(json.dumps(group("a")).encode())
    assert api.http.post("/scored_data", content=body, headers=headers).json() == {"status": "received"}
    assert api.http.post("/scored_data", content=b"no gzip", headers=headers).status_code == 400
    assert api.batch() == ["a"]


def test_small_groups_of_an_environment_are_put_together(api: Api) -> None:
    api.register(batch_size=4)
    api.batch()
    api.register_env(group_size=4)
    answers = api.send("a", "b", env_id=0)
    assert answers == [{"status": "buffered", "buffer_size": 2}, {"status": "buffered", "buffer_size": 0}]
    assert sorted(api.batch() or []) == ["a", "b"]


def test_an_environments_minimum_share_of_a_batch_is_kept(api: Api) -> None:
    api.register()
    api.batch()
    api.register_env(min_batch_allocation=None)
    api.register_env(min_batch_allocation=0.5)
    api.send("a", "b", "c", env_id=0)
    api.send("d", env_id=1)
    assert "d" in (api.batch() or [])


def test_an_environment_sees_its_share_of_the_queue(api: Api) -> None:
    api.register(batch_size=100)
    api.batch()
    api.register_env()
    api.register_env(weight=3.0)
    api.send("a", "b", env_id=0)
    api.send("c", env_id=1)
    found = api.http.request("GET", "/status-env", json={"env_id": 1}).json()
    assert (found["queue_size"], found["self_queue_size"], found["env_weight"]) == (3, 1, 0.75)


def test_an_environment_can_leave(api: Api) -> None:
    api.register()
    api.batch()
    api.register_env()
    assert api.http.post("/disconnect-env", json={"env_id": 0}).json() == {"status": "success"}


def test_the_last_group_can_be_looked_at(api: Api) -> None:
    api.register()
    api.send("a", "b")
    assert api.http.get("/latest_example").json()["group_overrides"] == {"group_id": "b"}


class Numbers(BaseEnv):
    """An environment as Atropos' own documentation writes it; nothing of this project in it."""

    name = "numbers"

    async def setup(self) -> None:
        self.next = 0

    async def get_next_item(self) -> int:
        self.next += 1
        return self.next

    async def evaluate(self, *args: Any, **kwargs: Any) -> None:
        return None

    async def collect_trajectories(self, item: int) -> Any:
        await asyncio.sleep(0.01)
        made: Any = {"tokens": [[1, item], [2, item]], "masks": [[-100, item], [-100, item]], "scores": [1.0, -1.0]}
        return made, []


async def test_atropos_own_environment_feeds_a_trainer(api: Api, smollm2: Path) -> None:
    config = BaseEnvConfig(
        tokenizer_name=str(smollm2),
        rollout_server_url=api.url,
        use_wandb=False,
        group_size=2,
        batch_size=4,
        total_steps=100,
        wandb_name="numbers",
    )
    env = Numbers(config, [APIServerConfig(model_name="m", base_url="http://127.0.0.1:9/v1", api_key="x")])
    batches: list[list[Any]] = []

    def train() -> None:
        api.register(max_token_len=10)
        end = time.monotonic() + 60
        while len(batches) < 3 and time.monotonic() < end:
            batches.extend(filter(None, [api.http.get("/batch").json()["batch"]]))
            time.sleep(0.05)

    trainer = threading.Thread(target=train)
    trainer.start()
    feeding = asyncio.create_task(env.env_manager())
    await asyncio.to_thread(trainer.join)
    feeding.cancel()
    for worker in env.workers:
        worker.cancel()
    await asyncio.gather(feeding, *env.workers, return_exceptions=True)
    items = [one["tokens"][0][1] for batch in batches for one in batch]
    assert [len(batch) for batch in batches] == [2, 2, 2]
    assert len(set(items)) == 6
    assert all(one["tokens"] == [[1, one["masks"][0][1]], [2, one["masks"][0][1]]] for b in batches for one in b)


# -- better than Atropos -----------------------------------------------------------------------------------


@pytest.mark.differs("the last batch formed is served first")
def test_batches_come_in_the_order_of_arrival(api: Api) -> None:
    api.register()
    api.send(*"abcdef")
    assert [api.batch() for _ in range(4)] == [["a", "b"], ["c", "d"], ["e", "f"], None]


@pytest.mark.differs("the step counts formed batches, not served ones")
def test_the_step_counts_the_batches_that_were_taken(api: Api) -> None:
    api.register()
    api.send(*"abcdef")
    api.batch()
    assert api.status() == (1, 4)


@pytest.mark.differs("/batch then says that no trainer is registered, for ever")
def test_groups_may_come_before_the_trainer(api: Api) -> None:
    api.send("a", "b")
    api.register()
    assert api.batch() == ["a", "b"]


@pytest.mark.differs("the second registration is ignored")
def test_a_trainer_that_comes_again_replaces_its_registration(api: Api) -> None:
    api.register(batch_size=4)
    api.send("a", "b", "c", "d")
    api.register(batch_size=8)
    assert api.batch() == ["a", "b", "c", "d"]


@pytest.mark.differs("it is trained twice")
def test_the_same_group_sent_twice_is_served_once(api: Api) -> None:
    api.register()
    assert api.send("a", "a", "b")[1] == {"status": "received"}
    assert api.batch() == ["a", "b"]
    api.send("a", "c")
    assert api.batch() is None


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no tokens": ({"tokens": []}, "tokens: empty; send at least one rollout"),
    "tokens of text": ({"tokens": [["x"], ["y"]]}, "Expected `int`, got `str` - at `$.tokens"),
    "a score is missing": ({"scores": [1.0]}, "scores: 1 entries for 2 rollouts; send one each"),
    "a mask is missing": ({"masks": [[-100, -100, 3]]}, "masks: 1 entries for 2 rollouts"),
    "a mask is short": ({"masks": [[-100, 3], [-100, -100, 4]]}, "masks[0]: 2 entries for 3 tokens"),
    "log-probabilities are short": ({"inference_logprobs": [[1.0], [1.0]]}, "inference_logprobs[0]: 1 entries for 3"),
    "an override is missing": ({"overrides": [{}]}, "overrides: 1 entries for 2 rollouts"),
    "a message without a role": ({"messages": [[{"content": "x"}], []]}, "messages[0]: a message without role"),
    "an overflowing number": ({"scores": [1.0, 10**400]}, "out of range"),
}


def refusal(api: Api, body: bytes) -> tuple[int, str]:
    """Status and reason; the server must live, and hold nothing of it."""
    sent = api.http.post("/scored_data", content=body, headers={"Content-Type": "application/json"})
    assert api.status()[1] == 0
    return sent.status_code, sent.json()["detail"]


@pytest.mark.parametrize("name", BAD)
def test_a_group_that_nobody_can_train_on_is_refused_with_the_reason(ours: Api, name: str) -> None:
    changes, reason = BAD[name]
    status, detail = refusal(ours, json.dumps(group("a") | changes).encode())
    assert status == 422
    assert reason in detail


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"null", b"[]", b'{"tokens"', b"\xff\xfe", b'"text"'),
        b'{"tokens":[[1]],"masks":[[1]],"scores":[1],"other":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"tokens":[[1]],"masks":[[1]],"scores":[1],"overrides":['
        + b'{"a":' * 100_000
        + b"1"
        + b"}" * 100_000
        + b"]}",
        b'{"tokens":[[true]],"masks":[[1]],"scores":[1]}',
        b'{"tokens":[[1]],"masks":[[1]],"scores":[1],"messages":[[{"role":"\xff","content":""}]]}',
    ],
    ids=range(10),
)
@pytest.mark.parametrize("path", ["/scored_data", "/scored_data_list"])
def test_a_body_that_is_none_is_refused_and_harms_nothing(ours: Api, path: str, body: bytes) -> None:
    if path == "/scored_data_list":
        body = b"[" + body + b"]" if body else b"{}"
    sent = ours.http.post(path, content=body)
    assert sent.status_code == 422
    assert sent.json()["detail"]
    assert ours.status() == (0, 0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["scores", "inference_logprobs", "advantages", "ref_logprobs"])
def test_a_number_that_is_not_finite_is_refused(ours: Api, field: str, value: float) -> None:
    row: Any = [1.0, value] if field == "scores" else [[1.0, 1.0, value], [1.0, 1.0, -0.5]]
    status, detail = refusal(ours, json.dumps(group("a") | {field: row}).encode())
    assert status == 422
    assert "finite" in detail


@pytest.mark.differs("a NaN is taken, then /batch answers 500 and the whole batch is lost")
def test_a_nan_does_not_take_others_with_it(api: Api) -> None:
    api.register()
    api.send("a")
    bad = json.dumps(group("bad") | {"inference_logprobs": [[1.0, 1.0, math.nan]] * 2})
    api.http.post("/scored_data", content=bad, headers={"Content-Type": "application/json"})
    api.send("b")
    assert api.batch() == ["a", "b"]


def test_a_list_with_one_bad_group_is_refused_as_a_whole(ours: Api) -> None:
    body = json.dumps([group("a"), group("b") | {"scores": []}])
    assert ours.http.post("/scored_data_list", content=body).status_code == 422
    assert ours.status() == (0, 0)


@pytest.mark.differs("/batch answers 500 then")
def test_after_a_reset_nobody_is_registered(api: Api) -> None:
    api.register()
    api.send("a")
    assert api.http.get("/reset_data").text == "Reset successful"
    assert api.http.get("/batch").json()["status"] == "error"
    api.register()
    assert api.status() == (0, 0)


# -- only here ---------------------------------------------------------------------------------------------


def test_a_lease_is_the_same_bytes_until_it_is_acknowledged(ours: Api) -> None:
    ours.register()
    ours.send("a", "b", "c", "d")
    first = ours.http.post("/lease", json={"step": 0}).content
    assert ids(json.loads(first)) == ["a", "b"]
    assert ours.lease(1) == ["c", "d"]
    assert ours.http.post("/rollback", json={"step": 0}).json() == {"batches": 2}
    assert ours.status() == (0, 4)
    assert ours.http.post("/lease", json={"step": 0}).content == first
    assert ours.http.post("/ack", json={"checkpoint_step": 1}).json() == {"groups": 2}
    refused = ours.http.post("/rollback", json={"step": 0})
    assert (refused.status_code, "acknowledged checkpoint of step 1" in refused.json()["detail"]) == (409, True)
    assert ours.lease(1) == ["c", "d"]


def test_a_stock_trainer_gets_first_what_was_leased_and_never_acknowledged(ours: Api) -> None:
    # also what is left when the server dies between the two halves of GET /batch
    ours.register()
    ours.send("a", "b", "c", "d")
    assert ours.lease(0) == ["a", "b"]
    assert [ours.batch(), ours.batch(), ours.batch()] == [["a", "b"], ["c", "d"], None]


def test_what_is_sent_is_served_byte_for_byte(ours: Api) -> None:
    ours.register(batch_size=2)
    body = b'{ "inference_logprobs":[[1,1.0,-0.10000000000000001],[1,1,-1e-7]], "later":{"deep":[1.50]},' + (
        b'"tokens":[[1,2,3],[1,2,4]],"masks":[[-100,-100,3],[-100,-100,4]],"scores":[1,-1]}'
    )
    ours.http.post("/scored_data", content=body).raise_for_status()
    assert body[1:] in ours.http.get("/batch").content


def test_both_sides_are_told_in_what_they_differ(ours: Api) -> None:
    ours.register()
    ours.send("a", "b")
    said = {"context": 640, "group_size": 8, "temperature": 0.7}
    first = ours.http.post("/contract", json={"side": "environment", "terms": said})
    assert first.json() == {"status": "waiting", "sides": {"environment": said}, "accepts": [MEDIA_TYPE]}
    second = ours.http.post("/contract", json={"side": "trainer", "terms": {"context": 512, "group_size": 8}})
    assert second.status_code == 409
    assert second.json()["detail"].startswith("the sides differ in context: ")
    assert ours.http.post("/lease", json={"step": 0}).status_code == 409
    terms = {"context": 640, "group_size": 8}
    third = ours.http.post("/contract", json={"side": "trainer", "terms": terms})
    sides = {"environment": said, "trainer": terms}
    assert third.json() == {"status": "agreed", "sides": sides, "accepts": [MEDIA_TYPE]}
    assert ours.lease(0) == ["a", "b"]


def test_its_state_can_be_seen(ours: Api, caplog: pytest.LogCaptureFixture) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    ours.register()
    ours.send("a", "b", "b", "c")
    ours.http.post("/scored_data", content=b"{}")
    ours.lease(0)
    text = ours.http.get("/metrics")
    assert text.headers["content-type"].startswith("text/plain")
    found = {
        (sample.name, sample.labels.get("outcome")): sample.value
        for family in text_string_to_metric_families(text.text)
        for sample in family.samples
    }
    for outcome, count in (("received", 3), ("duplicate", 1), ("refused", 1), ("served", 2)):
        assert found["atropos_groups_total", outcome] == count
    assert found["atropos_groups_queued", None] == found["atropos_batches_leased", None] == 1
    assert ours.http.get("/health").json() == {"status": "ok", "journal": ""}
    assert "group b came twice" in caplog.text
    assert "a group is refused: Object missing required field `tokens`" in caplog.text
