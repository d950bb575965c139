"""Verification: verdicts come from the judge, faults of ours are errors and never verdicts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from environments.livecode.config import LivecodeEnvConfig
from environments.livecode.problems.problem import Problem, TestCase
from environments.livecode.verification import local
from environments.livecode.verification.base import DeadlineExceeded, Unreachable, VerifierError
from environments.livecode.verification.group import GroupVerifier
from environments.livecode.verification.judge_requests import judge_request
from environments.livecode.verification.local import LocalVerifier, with_retries
from verifier_app.judge import JudgeError
from verifier_app.judge.verdict import Verdict

ADD = Problem(
    id="add",
    source="t",
    kind="stdin",
    statement="Add one.",
    tests=[TestCase(input="1\n", output="2\n"), TestCase(input="5\n", output="6\n")],
)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_FIRST_PAUSE_S", 0.001)


ACCEPTED: Verdict = {"status": "accepted", "passed": 1, "total": 1}


class Faults:
    """A call that fails a given number of times, then gives a verdict."""

    def __init__(self, kind: str, times: int) -> None:
        self.kind, self.times, self.calls, self.noticed = kind, times, 0, 0

    async def __call__(self) -> Verdict:
        self.calls += 1
        if self.calls <= self.times:
            raise JudgeError(self.kind, "scripted")
        return ACCEPTED

    def notice(self, error: JudgeError) -> None:
        self.noticed += 1


async def test_the_local_verifier_gives_the_judges_verdict() -> None:
    async with LocalVerifier(workers=1) as verifier:
        right, wrong = [
            await verifier.verify(judge_request(ADD, code, time_limit_s=5, memory_limit_mb=512))
            for code in ("print(int(input()) + 1)", "print(2)")
        ]
    assert (right["status"], right["passed"], right["total"]) == ("accepted", 2, 2)
    assert (wrong["status"], wrong["failed_test"]) == ("wrong_answer", 1)


async def test_a_request_that_the_judge_refuses_is_an_error_and_no_verdict() -> None:
    request = judge_request(ADD, "print(1)", time_limit_s=5, memory_limit_mb=512) | {"tests": "none"}
    async with LocalVerifier(workers=1) as verifier:
        with pytest.raises(VerifierError, match="bad_request: tests"):
            await verifier.verify(request)


async def test_a_loaded_host_is_tried_again_until_there_is_a_verdict() -> None:
    call = Faults("host_overloaded", 3)
    assert await with_retries(call, 5.0, call.notice) is ACCEPTED
    assert (call.calls, call.noticed) == (4, 3)


async def test_a_fault_that_stays_is_unreachable_after_five_tries() -> None:
    call = Faults("sandbox_failed", 99)
    with pytest.raises(Unreachable, match="5 tries, the last: sandbox_failed: scripted"):
        await with_retries(call, 5.0, call.notice)
    assert call.calls == 5


async def test_a_fault_of_the_request_is_not_tried_again() -> None:
    call = Faults("test_set_missing", 99)
    with pytest.raises(VerifierError, match="test_set_missing"):
        await with_retries(call, 5.0, call.notice)
    assert call.calls == 1


async def test_a_verdict_that_does_not_come_in_time_is_a_deadline() -> None:
    async def never() -> Verdict:
        await asyncio.sleep(60)
        return ACCEPTED

    with pytest.raises(DeadlineExceeded, match=r"no verdict within 0.05 s"):
        await with_retries(never, 0.05, lambda error: None)


def test_an_unknown_verifier_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"verifier 'cloud' is unknown: choose one of local, http, modal"):
        LivecodeEnvConfig(verifier="cloud")
    with pytest.raises(ValueError, match=r"verifier_strategy problem with verifier local: it is about containers"):
        LivecodeEnvConfig(verifier_strategy="problem")


async def test_a_large_test_set_is_written_once_and_judged_by_reference(tmp_path: Path) -> None:
    tests = [TestCase(input=f"{number}\n" + " " * 300_000, output=str(number + 1)) for number in range(5)]
    problem = ADD.model_copy(update={"tests": tests})
    request = judge_request(problem, "print(int(input()) + 1)", time_limit_s=5, memory_limit_mb=512)
    async with LocalVerifier(workers=2, tests_dir=tmp_path) as verifier:
        verdicts = await asyncio.gather(*(verifier.verify(request) for _ in range(4)))
    assert [verdict["passed"] for verdict in verdicts] == [5] * 4
    (path,) = await asyncio.to_thread(lambda: [path for path in tmp_path.rglob("*") if path.is_file()])
    path.write_bytes(b"[]")
    async with LocalVerifier(workers=1, tests_dir=tmp_path) as verifier:
        with pytest.raises(VerifierError, match=path.name):
            await verifier.verify(request)


async def test_the_programs_of_a_group_are_judged_in_one_call_when_the_last_one_is_there() -> None:
    calls: list[list[str]] = []

    async def judge(requests: Sequence[dict[str, Any]]) -> list[Any]:
        calls.append([request["code"] for request in requests])
        return [
            VerifierError("lost") if request["code"] == "bad" else {"status": request["code"]} for request in requests
        ]

    group = GroupVerifier(judge, 4)

    async def member(*codes: str) -> list[Any]:
        got: list[Any] = []
        for code in codes:
            await asyncio.sleep(0)
            try:
                got.append((await group.verify({"code": code}))["status"])
            except VerifierError as error:
                got.append(str(error))
        group.leave()
        return got

    got = await asyncio.gather(member("a"), member("bad", "again"), member(), member("b"))
    assert list(got) == [["a"], ["lost", "again"], [], ["b"]]
    assert calls == [["a", "bad", "b"], ["again"]]
