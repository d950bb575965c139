"""Several environments of one run: which problems each takes, how old a group may become, and whose folder it is."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from pathlib import Path

import pytest

from environments.api_server.shards import shares
from environments.common import shards
from environments.common.settings import ConfigError
from environments.common.shards import Shard
from environments.livecode import command
from environments.livecode.config import RunConfig, load_run_config
from environments.livecode.problems.sampler import build_sampler
from environments.livecode.staleness import may_begin
from tests.livecode.test_sampling import PROBLEMS, drawn


@pytest.mark.parametrize("count", [1, 2, 3, 5, 12])
def test_the_shards_order_is_the_whole_order_dealt_out_in_turn(count: int) -> None:
    whole = drawn(build_sampler("uniform", PROBLEMS, 7), 5 * 12 * count)
    dealt = [drawn(build_sampler("uniform", PROBLEMS, 7, shard=Shard(index, count)), 60) for index in range(count)]
    assert [dealt[place % count][place // count] for place in range(len(whole))] == whole
    for epoch in range(5):  # each problem once in an epoch, whichever shard has it
        ids = whole[12 * epoch : 12 * (epoch + 1)]
        assert sorted(ids) == sorted(problem.id for problem in PROBLEMS)


@pytest.mark.parametrize("rule", ["uniform", "learnable"])
def test_a_shard_that_is_restored_continues_its_own_order(rule: str) -> None:
    one, other = (build_sampler(rule, PROBLEMS, 7, 2, Shard(1, 3)) for _ in range(2))  # type: ignore[arg-type]
    drawn(one, 17)
    other.restore(one.state())
    assert drawn(other, 30) == drawn(one, 30)


def test_learnable_shards_have_problems_of_their_own_and_as_many_of_every_class() -> None:
    parts = [set(drawn(build_sampler("learnable", PROBLEMS, 7, shard=Shard(index, 2)), 400)) for index in range(2)]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == {problem.id for problem in PROBLEMS}
    assert [Counter(name[0] for name in part) for part in parts] == [{"a": 2, "b": 2, "c": 2}] * 2


def test_more_shards_than_problems_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"env.shard 0/13: 12 problems for 13 environments"):
        build_sampler("uniform", PROBLEMS, 7, shard=Shard(0, 13))


def stalest(count: int, max_staleness: int, *, by_share: bool, seed: int) -> tuple[int, list[int]]:
    """Of a simulated run with `count` shards, the last one slow: the oldest group trained on, and who was trained.

    by_share: the batches are filled as the API server fills them; else in the order in which groups came.
    """
    draw, per_batch, steps = random.Random(seed), 8, 60
    running: list[tuple[float, int, int, int]] = []  # end, number, shard, version at which it began
    queues: list[list[tuple[int, int]]] = [[] for _ in range(count)]  # (arrival, version)
    sent, version, now, number, oldest = [0] * count, 0, 0.0, 0, 0
    taken = [0] * count
    while version < steps:
        for index in range(count):
            own = [began for _, _, shard, began in running if shard == index]
            while may_begin(
                oldest=min(own, default=version),
                ahead=sent[index] + len(own),
                groups_per_batch=per_batch,
                max_staleness=max_staleness,
                total_steps=steps,
                shard=Shard(index, count),
            ):
                number += 1
                length = draw.uniform(0.5, 1.5) * (10 if index == count - 1 else 1) * (8 if draw.random() < 0.2 else 1)
                heapq.heappush(running, (now + length, number, index, version))
                own.append(version)
        wanted = shares(count, version, per_batch) if by_share else None
        if wanted is not None and all(len(queue) >= share for queue, share in zip(queues, wanted, strict=True)):
            batch = [(index, queue.pop(0)) for index, queue in enumerate(queues) for _ in range(wanted[index])]
        elif wanted is None and sum(map(len, queues)) >= per_batch:
            batch = []
            for _ in range(per_batch):
                index = min((i for i in range(count) if queues[i]), key=lambda i: queues[i][0])
                batch.append((index, queues[index].pop(0)))
        else:
            now, _, index, began = heapq.heappop(running)
            queues[index].append((number, began))
            number += 1
            sent[index] += 1
            continue
        oldest = max(oldest, *(version - began for _, (_, began) in batch))
        for index, _ in batch:
            taken[index] += 1
        version += 1
    return oldest, taken


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("max_staleness", [0, 1, 3])
def test_no_group_of_any_shard_is_older_than_the_bound_and_every_shard_trains_its_share(
    count: int, max_staleness: int
) -> None:
    for seed in range(5):
        oldest, taken = stalest(count, max_staleness, by_share=True, seed=seed)
        assert oldest <= max_staleness
        assert taken == [Shard(index, count).places(60 * 8) for index in range(count)]


def test_without_shares_a_slow_shards_groups_become_too_old() -> None:
    # what the shares are for: in the order of arrival the fast shards take the slow one's places
    assert max(stalest(3, 1, by_share=False, seed=seed)[0] for seed in range(5)) > 1


@pytest.mark.parametrize("value", ["2/2", "0", "a/b", "-1/2", "1/0", "0/2/3"])
def test_an_option_that_names_no_shard_is_refused_with_the_form(value: str) -> None:
    with pytest.raises(ConfigError, match=r"env.shard.*INDEX/COUNT with an index from 0 on, such as 0/2"):
        load_run_config(None, ["--model", "m", "--env.shard", value])


def run_config(folder: Path, shard: str | None) -> RunConfig:
    return load_run_config(None, ["--model", "m", "--env.run_dir", str(folder), "--env.shard", shard or ""])


def test_each_shard_has_a_folder_of_its_own_in_the_run(tmp_path: Path) -> None:
    assert run_config(tmp_path, None).env.own_dir == tmp_path
    assert shards.folders(tmp_path) == [tmp_path]
    own = [run_config(tmp_path, f"{index}/11").env.own_dir for index in range(11)]
    for folder in own:
        folder.mkdir(parents=True)
    assert shards.folders(tmp_path) == own  # in their order, 10 after 9


def test_a_folder_of_another_division_is_refused(tmp_path: Path) -> None:
    run_config(tmp_path, "1/2").env.own_dir.mkdir(parents=True)
    command._check_shard("serve", run_config(tmp_path, "0/2").env)
    for other in (None, "0/3", "0/1"):
        with pytest.raises(ConfigError, match=r"holds a run of other shards \(1-of-2\)"):
            command._check_shard("serve", run_config(tmp_path, other).env)
    with pytest.raises(ConfigError, match=r"env.shard 0/2: one environment evaluates"):
        command._check_shard("evaluate", run_config(tmp_path, "0/2").env)
    whole = tmp_path / "whole"
    whole.mkdir()
    (whole / "progress.db").touch()
    with pytest.raises(ConfigError, match=r"holds a run of one environment; leave env.shard out"):
        command._check_shard("serve", run_config(whole, "0/2").env)
