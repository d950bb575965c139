"""Several environments on one server: who may register beside whom, and whose groups a batch has."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from environments.api_server.batches import queued_by_shard
from environments.api_server.journal import Journal
from environments.api_server.shards import shares
from environments.api_server.store import Entry, Store
from tests.api.conftest import Api, group

SHARED = {"problems_sha256": "d", "seed": 3, "group_size": 2}


def claim(index: int, count: int, identity: str | None = None, **shared: Any) -> dict[str, Any]:
    name = identity or f"{index}"
    return {"index": index, "count": count, "identity": name, "folder": f"runs/{name}", "shared": SHARED | shared}


def begun(api: Api, groups: int) -> None:
    """A trainer that has asked for its first batch of so many groups."""
    api.register(2 * groups)
    assert api.lease(0) is None


def join(api: Api, *parts: Any) -> int:
    return int(api.register_env(shard=claim(*parts))["env_id"])


def refused(api: Api, shard: dict[str, Any] | None) -> str:
    body = {"max_token_length": 100, "desired_name": "env", "weight": 1.0, "group_size": 2}
    answer = api.http.post("/register-env", json=body | ({"shard": shard} if shard else {}))
    assert answer.status_code == 409
    return str(answer.json()["detail"])


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("groups", [1, 7, 8, 64])
def test_the_shares_of_every_batch_add_up_to_it_and_differ_by_one_at_most(count: int, groups: int) -> None:
    dealt = [shares(count, step, groups) for step in range(40)]
    assert all(sum(one) == groups and max(one) - min(one) <= 1 for one in dealt)
    totals = [sum(column) for column in zip(*dealt, strict=True)]
    assert max(totals) - min(totals) <= 1  # and nobody gets the odd ones every time


def test_a_batch_has_each_shards_own_share_however_much_one_is_ahead(ours: Api) -> None:
    begun(ours, 4)
    first, second, third = (join(ours, index, 3) for index in range(3))
    ours.send(*(f"a{number}" for number in range(5)), env_id=first)
    assert ours.lease(0) is None
    ours.send("b0", "c0", env_id=second)
    ours.send("d0", env_id=third)
    assert ours.lease(0) == ["a0", "a1", "b0", "d0"]  # shares of 2, 1 and 1
    assert ours.http.get("/status").json() == {"current_step": 1, "queue_size": 4, "shards": [3, 1, 0]}
    assert ours.lease(1) is None  # of 1, 2 and 1
    ours.send("d1", env_id=third)
    ours.send("b1", env_id=second)
    assert ours.lease(1) == ["a2", "c0", "d1", "b1"]


def test_a_killed_server_and_a_trainer_that_goes_back_keep_every_shards_count(tmp_path: Path) -> None:
    def opened() -> Store:
        return Store(Journal(tmp_path / "journal"))

    store = opened()
    store.register({"batch_size": 8, "starting_step": 0})
    for index in range(2):
        store.register_env({"shard": claim(index, 2), "group_size": 2, "connected": True})
    for number in range(5):
        for env in (0, 1):
            store.add(Entry(f"{env}-{number}", 2, env, b"{}"))
    assert [store.lease(step, 8) is not None for step in range(3)] == [True, True, False]
    store.close()
    store = opened()
    assert store.rollback(1) == 1
    assert queued_by_shard(store) == [3, 3]  # two of each in the batch that comes again, one waiting
    again = store.lease(1, 8)
    assert again is not None
    assert [entry.group_id for entry in again.entries] == ["0-2", "1-2", "0-3", "1-3"]
    store.close()


def test_mismatched_shards_are_refused_with_what_differs_and_where(ours: Api) -> None:
    begun(ours, 4)
    join(ours, 0, 2)
    assert "env.shard 1/3: this run has 2 shards, 0/2 in runs/0" in refused(ours, claim(1, 3))
    assert "env.shard 0/2: runs/0 is this shard's folder; continue there" in refused(ours, claim(0, 2, "other"))
    assert "env.seed differs from shard 0/2's in runs/0 (seed 4 here, 3 there)" in refused(ours, claim(1, 2, seed=4))
    assert "env.problems differs from shard 0/2's" in refused(ours, claim(1, 2, problems_sha256="e"))
    assert "env.shard is empty: shards feed this run, 0/2 in runs/0" in refused(ours, None)
    assert join(ours, 1, 2) == 1
    assert join(ours, 0, 2) == 2  # started again in its own folder


def test_shards_are_refused_beside_an_environment_without(ours: Api) -> None:
    begun(ours, 4)
    ours.register_env()
    assert "an environment without env.shard feeds this run (env_0)" in refused(ours, claim(0, 2))


def test_a_shard_that_ended_before_it_sent_anything_makes_room_and_no_other_does(ours: Api) -> None:
    begun(ours, 4)
    wrong = join(ours, 0, 3)
    ours.http.post("/disconnect-env", json={"env_id": wrong}).raise_for_status()
    first = join(ours, 0, 2)
    ours.send("a", env_id=first)
    again = join(ours, 0, 2)
    for env in (first, again):
        ours.http.post("/disconnect-env", json={"env_id": env}).raise_for_status()
    assert "this run has 2 shards" in refused(ours, claim(0, 3))
    assert "is this shard's folder" in refused(ours, claim(0, 2, "other"))


def test_a_group_that_comes_from_no_shard_is_refused(ours: Api) -> None:
    begun(ours, 4)
    env = join(ours, 0, 2)
    for sender in (None, env + 1):
        answer = ours.http.post("/scored_data", json=group("x") | {"env_id": sender})
        assert answer.status_code == 422
        assert "shards feed this run" in answer.json()["detail"]


def test_environments_that_register_at_the_same_moment_get_different_ids(ours: Api) -> None:
    begun(ours, 8)

    def register(index: int) -> dict[str, Any]:
        one = Api(ours.url)
        try:
            return dict(one.register_env(shard=claim(index, 8)))
        finally:
            one.http.close()

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(register, range(8)))
    assert sorted(one["env_id"] for one in found) == list(range(8))
    assert sorted(one["shard"]["index"] for one in found) == list(range(8))
