"""The pool: asyncio in front, processes behind; one crash takes no other rollout down, nothing survives."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from verifier_app.judge import JudgeError, TestStore
from verifier_app.judge.pool import JudgePool

TESTS = [{"input": "2\n", "output": "4\n"}]
SQUARE = {"code": "print(int(input()) ** 2)", "tests": TESTS}
SLOW = {"code": "import time; time.sleep(1.5); print(int(input()) ** 2)", "tests": TESTS}


def living(pids: list[int]) -> list[int]:
    """Those of these processes that still run."""
    return [pid for pid in pids if Path(f"/proc/{pid}/stat").exists()]


def descendants(root: int) -> list[int]:
    """All processes below one."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, queue = [], [root]
    while queue:
        parent = queue.pop()
        below = [pid for pid, its in parents.items() if its == parent]
        found += below
        queue += below
    return found


async def wait_for_workers(pool: JudgePool, count: int, other_than: int = 0) -> list[int]:
    """The worker processes, once so many run a zygote."""
    while True:
        workers = [worker.process.pid for worker in pool._all]
        if len(workers) >= count and other_than not in workers and all(len(descendants(pid)) >= 2 for pid in workers):
            return workers
        await asyncio.sleep(0.02)


async def test_verdicts_come_back_to_their_requests() -> None:
    async with JudgePool(workers=2) as pool:
        requests = [{"code": f"print({n})", "tests": [{"input": "", "output": str(n % 3)}]} for n in range(9)]
        verdicts = await asyncio.gather(*map(pool.verify, requests))
    assert [verdict["status"] for verdict in verdicts] == ["accepted"] * 3 + ["wrong_answer"] * 6


async def test_a_bad_request_is_a_judge_error_and_the_pool_goes_on() -> None:
    async with JudgePool(workers=1) as pool:
        for request in ({"code": 1}, {"code": "", "tests": {1, 2}}):
            with pytest.raises(JudgeError) as caught:
                await pool.verify(request)
            assert caught.value.kind == "bad_request"
        assert (await pool.verify(SQUARE))["status"] == "accepted"


async def test_a_judge_that_dies_is_replaced_and_its_request_retried() -> None:
    async with JudgePool(workers=2) as pool:
        tasks = [asyncio.create_task(pool.verify(SLOW)) for _ in range(2)]
        victim, _ = await wait_for_workers(pool, 2)
        os.kill(victim, signal.SIGKILL)
        assert [verdict["status"] for verdict in await asyncio.gather(*tasks)] == ["accepted", "accepted"]


async def test_a_judge_that_dies_twice_is_an_error_and_never_a_verdict() -> None:
    async with JudgePool(workers=1) as pool:
        task = asyncio.create_task(pool.verify(SLOW))
        (first,) = await wait_for_workers(pool, 1)
        os.kill(first, signal.SIGKILL)
        (second,) = await wait_for_workers(pool, 1, other_than=first)
        os.kill(second, signal.SIGKILL)
        with pytest.raises(JudgeError) as caught:
            await task
        assert caught.value.kind == "judge_died"
        assert (await pool.verify(SQUARE))["status"] == "accepted"


async def test_closing_ends_everything_even_under_a_running_rollout() -> None:
    pool = JudgePool(workers=2)
    async with pool:
        task = asyncio.create_task(pool.verify({"code": "while True: pass", "tests": TESTS}))
        (worker,) = await wait_for_workers(pool, 1)
        pids = [worker, *descendants(worker)]
    with pytest.raises(JudgeError) as caught:
        await task
    assert caught.value.kind == "closed"
    assert living(pids) == []
    with pytest.raises(JudgeError, match="closed"):
        await pool.verify(SQUARE)


async def test_a_cancelled_call_stops_its_judge_and_frees_its_place() -> None:
    async with JudgePool(workers=1) as pool:
        task = asyncio.create_task(pool.verify({"code": "while True: pass", "tests": TESTS}))
        (worker,) = await wait_for_workers(pool, 1)
        below = descendants(worker)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await pool.verify(SQUARE))["status"] == "accepted"
    assert living([worker, *below]) == []


async def test_a_stored_set_is_found_by_the_judges(tmp_path: Path) -> None:
    reference = TestStore(tmp_path).put(TESTS)
    async with JudgePool(workers=1, tests_dir=tmp_path) as pool:
        assert (await pool.verify({"code": SQUARE["code"], "tests_ref": reference}))["status"] == "accepted"


async def test_more_requests_than_the_queue_holds_all_get_their_verdict() -> None:
    async with JudgePool(workers=1, queue=1) as pool:
        verdicts = await asyncio.gather(*(pool.verify(SQUARE) for _ in range(6)))
    assert {verdict["status"] for verdict in verdicts} == {"accepted"}


@pytest.mark.parametrize("fields", [{"workers": 0}, {"queue": -1}])
def test_sizes_below_the_least_are_refused(fields: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="give"):
        JudgePool(**fields)  # type: ignore[arg-type]
