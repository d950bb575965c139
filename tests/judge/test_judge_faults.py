"""Whatever a program does is a verdict for that program alone; what nobody foresaw costs one request and no more."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from environments.livecode.verification.base import JudgeFault
from environments.livecode.verification.local import with_retries
from environments.livecode.verification.remote import raise_fault
from verifier_app import container
from verifier_app.judge import Judge, JudgeError, TestStore, judging, running
from verifier_app.judge.pool import GRACE_S, JudgePool, longest
from verifier_app.judge.verdict import Verdict
from verifier_app.judge.worker import answer_to

ADD = "print(sum(map(int, input().split())))"
TESTS = [{"input": "1 2\n", "output": "3\n"}, {"input": "5 6\n", "output": "11\n"}]
DIES = "import os\nos.kill(os.getpid(), {})"


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with Judge() as judge:
        yield judge


@pytest.mark.parametrize("number", [32, 34, 35, 49, 63, 64])
def test_death_by_a_realtime_signal_is_a_runtime_error(judge: Judge, number: int) -> None:
    verdict = judge.verify({"code": DIES.format(number), "tests": TESTS})
    assert verdict["status"] == "runtime_error"
    assert "killed by" in verdict["message"]


DEAF = """
import ctypes, json, os, signal, sys

procmask, action = {"x86_64": (14, 13), "aarch64": (135, 134)}[os.uname().machine]
libc = ctypes.CDLL(None)
for number in map(int, sys.argv[2:]):
    one = ctypes.c_uint64(1 << (number - 1))
    ignore = (ctypes.c_uint64 * 4)(1, 0, 0, 0)
    assert libc.syscall(action, number, ctypes.byref(ignore), None, 8) == 0
    assert libc.syscall(procmask, 0, ctypes.byref(one), None, 8) == 0
from verifier_app.judge import verify

print(json.dumps([verify(request)["status"] for request in json.loads(sys.argv[1])]))
"""


def test_a_judge_whose_parent_ignored_and_blocked_signals_gives_the_same_verdicts() -> None:
    numbers = [int(signal.SIGTERM), int(signal.SIGALRM), int(signal.SIGUSR1), 32, 33, 40, 64]
    requests = [{"code": DIES.format(number), "tests": TESTS} for number in numbers]
    command = [sys.executable, "-c", DEAF, json.dumps(requests), *map(str, numbers)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert json.loads(done.stdout) == ["runtime_error"] * len(numbers)


@pytest.mark.parametrize("text", ["\\ud800", "\\u202e\\u0007\\u0000"])
def test_a_message_is_printable_whatever_the_program_sends(judge: Judge, text: str) -> None:
    code = f'import os\ndef solve(n):\n    os.write(3, b\'{{"x":"{text}"}}\')\n    os._exit(0)'
    verdict = judge.verify({"code": code, "fn_name": "solve", "tests": [{"input": "1", "output": "3"}]})
    assert verdict["status"] == "wrong_answer"
    assert verdict["message"].isprintable()
    assert len(verdict["message"]) <= judging.MESSAGE_CHARS


def test_a_judge_errors_message_is_printable(judge: Judge) -> None:
    with pytest.raises(JudgeError) as caught:
        judge.verify({"code": ADD, "tests": TESTS, "\ud800": 1})
    assert (caught.value.kind, caught.value.message.isprintable()) == ("bad_request", True)


@pytest.fixture
def weak_point(monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge with a fault of its own, met by every program that prints 7."""
    conclude = running.conclude

    def faulty(request: Any, index: int, pump: Any, *rest: Any) -> tuple[str, str]:
        if pump.data == b"7\n":
            raise LookupError("\udc80 nobody foresaw this")
        return conclude(request, index, pump, *rest)

    monkeypatch.setattr(running, "conclude", faulty)


@pytest.mark.usefixtures("weak_point")
def test_what_nobody_foresaw_is_a_judge_fault_and_the_next_program_is_judged(judge: Judge) -> None:
    with pytest.raises(JudgeError) as caught:
        judge.verify({"code": "print(7)", "tests": TESTS})
    assert caught.value.kind == "judge_fault"
    assert "LookupError" in caught.value.message
    assert "test_judge_faults.py" in caught.value.message
    assert judge.verify({"code": ADD, "tests": TESTS})["status"] == "accepted"


@pytest.mark.usefixtures("weak_point")
def test_the_other_programs_of_a_group_keep_their_verdicts(judge: Judge, tmp_path: Path) -> None:
    store = TestStore(tmp_path)
    codes = [ADD, "print(7)", DIES.format(40), ADD]
    answers = judge.verify_many(store.put(TESTS), codes, store)
    assert [answer.get("status") for answer in answers] == ["accepted", None, "runtime_error", "accepted"]
    assert answers[1]["error"]["kind"] == "judge_fault"
    contained = container.judge_all([{"code": code, "tests": TESTS} for code in codes])
    assert [answer.get("verdict", {}).get("status") for answer in contained] == [
        "accepted",
        None,
        "runtime_error",
        "accepted",
    ]
    assert contained[1]["error"]["kind"] == "judge_fault"


@pytest.mark.usefixtures("weak_point")
@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (json.dumps({"request": {"code": "print(7)", "tests": TESTS}}).encode(), "judge_fault"),
        (b"[" * 100_000, "judge_fault"),
        (b'{"no": "request"}', "judge_fault"),
    ],
)
def test_a_judge_process_answers_every_frame(judge: Judge, body: bytes, kind: str) -> None:
    assert json.loads(answer_to(judge, None, body)[4:])["error"]["kind"] == kind


async def test_the_pool_gives_the_verdict_and_keeps_its_judge() -> None:
    async with JudgePool(workers=1) as pool:
        for number in (35, 50):
            assert (await pool.verify({"code": DIES.format(number), "tests": TESTS}))["status"] == "runtime_error"
        assert len(pool._all) == 1
        (worker,) = pool._all
        assert worker.process.returncode is None


@pytest.mark.parametrize("limit", [float("nan"), float("inf"), 10**400, -1, "x"])
def test_the_pool_waits_a_finite_time_whatever_the_request_says(limit: Any) -> None:
    found = longest({"time_limit_s": limit, "tests_ref": {"count": 10**400}})
    assert found is not None
    assert GRACE_S <= found < 1e12


async def test_a_judge_fault_is_not_tried_again() -> None:
    calls = []

    async def call() -> Verdict:
        calls.append(1)
        raise JudgeError("judge_fault", "scripted")

    with pytest.raises(JudgeFault):
        await with_retries(call, 10.0, lambda error: None)
    assert len(calls) == 1
    with pytest.raises(JudgeFault):
        raise_fault("judge_fault", "over HTTP")
