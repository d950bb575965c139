"""Judges elsewhere are tried before they are trusted, what cannot get better ends the run, the slow have their time."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from environments.common.errors import ConfigError
from environments.livecode.config import LivecodeEnvConfig
from environments.livecode.problems.problem import Problem, TestCase
from environments.livecode.verification import remote
from environments.livecode.verification.base import DeadlineExceeded, VerifierError, VerifierUnusable
from environments.livecode.verification.http import HttpVerifier
from environments.livecode.verification.judge_requests import check_deadlines, judge_request, judging_s, wait_s
from environments.livecode.verification.remote import (
    SANDBOXES_IN_A_ROW,
    RetryVerification,
    Streak,
    self_test,
    until_deadline,
)
from tests.served import Served
from tests.verification.conftest import Service
from verifier_app import container
from verifier_app.judge import Judge
from verifier_app.judge.verdict import Verdict

REQUEST: dict[str, Any] = {"code": "print(2)", "tests": [{"input": "1", "output": "2"}]}
RIGHT = {"status": "accepted", "passed": 2, "total": 2, "failed_test": None}
WRONG = {"status": "wrong_answer", "passed": 1, "total": 2, "failed_test": 1}
BROKEN = {"error": {"kind": "sandbox_failed", "message": "the template does not start: OSError: scripted"}}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "BACKOFF_S", (0.001, 0.01))
    monkeypatch.delenv("VERIFIER_TOKEN", raising=False)


class Answers:
    """A service that gives these answers in turn, the last for ever."""

    def __init__(self, *answers: dict[str, Any]) -> None:
        self.answers, self.calls = list(answers), 0
        routes = [Route(path, self._fine) for path in ("/health", "/metrics")]
        self.served = Served(Starlette(routes=[Route("/verify", self._verify, methods=["POST"]), *routes]))

    async def _verify(self, request: Request) -> Response:
        answer = self.answers[min(self.calls, len(self.answers) - 1)]
        self.calls += 1
        on = hashlib.sha256(await request.body()).hexdigest()
        return JSONResponse({"request": on} | answer, 503 if "error" in answer else 200)

    async def _fine(self, _: Request) -> Response:
        return Response()


async def examined(*answers: dict[str, Any]) -> Answers:
    service = Answers(*answers)
    try:
        async with HttpVerifier([service.served.url], deadline_s=20) as verifier:
            await verifier.self_test()
    finally:
        service.served.stop()
    return service


async def test_the_real_judge_passes_the_self_test(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    with Judge() as judge:

        async def here(request: dict[str, Any]) -> Verdict:
            return judge.verify(request)

        await self_test(here, "here")
    monkeypatch.setenv("VERIFIER_TOKEN", "a token that is long enough")
    async with HttpVerifier([service.url], deadline_s=60) as verifier:
        await verifier.self_test()


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([{"verdict": RIGHT}, {"verdict": RIGHT}], "wrong program came back as accepted with 2 of 2 tests passed"),
        ([{"verdict": WRONG}, {"verdict": WRONG}], "right program came back as wrong_answer with 1 of 2 tests passed"),
        ([{"verdict": RIGHT}, {"verdict": WRONG | {"failed_test": 0}}], "wrong program came back as wrong_answer"),
        ([BROKEN], "3 sandboxes in a row failed, the last: sandbox_failed: .*OSError: scripted"),
        ([{"error": {"kind": "weak_isolation", "message": "no uid"}}], "weak_isolation: .*no uid"),
    ],
)
async def test_a_judge_that_fails_the_self_test_ends_the_run_at_its_start(
    answers: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(VerifierUnusable, match=message) as caught:
        await examined(*answers)
    assert "\n" not in str(caught.value)


async def test_a_verdict_on_another_number_of_tests_is_no_verdict() -> None:
    short = {"status": "accepted", "passed": 1, "total": 1, "failed_test": None}
    service = await examined({"verdict": short}, {"verdict": RIGHT}, {"verdict": WRONG})
    assert service.calls == 3


async def failing(times: int, streak: Streak) -> None:
    left = times

    async def attempt() -> None:
        nonlocal left
        left -= 1
        if left >= 0:
            raise RetryVerification("sandbox_failed", "sandbox_failed: scripted")

    await until_deadline(attempt, 20.0, Counter(), streak)


async def test_sandboxes_that_fail_in_a_row_end_the_run_and_a_verdict_between_them_does_not() -> None:
    streak = Streak()
    for _ in range(3):
        await failing(SANDBOXES_IN_A_ROW - 1, streak)
    with pytest.raises(VerifierUnusable, match=f"{SANDBOXES_IN_A_ROW} sandboxes in a row failed"):
        await failing(SANDBOXES_IN_A_ROW, streak)


async def test_the_end_of_a_wait_says_what_was_waited_for() -> None:
    async def silent() -> None:
        await asyncio.sleep(60)

    with pytest.raises(DeadlineExceeded, match=r"no verdict within 0\.1 s: call 1 had no answer for 0\.\d s"):
        await until_deadline(silent, 0.1, Counter(), Streak())


# -- Time --------------------------------------------------------------------------------------------------


def problem(tests: int) -> Problem:
    cases = [TestCase(input=str(number), output=str(number)) for number in range(tests)]
    return Problem(id="p", source="t", kind="stdin", statement="s", tests=cases)


def test_a_program_that_uses_every_tests_limit_still_gets_its_verdict() -> None:
    request = judge_request(problem(100), "x", time_limit_s=15.0, memory_limit_mb=512)
    assert 100 * 15.0 < request["deadline_s"] < wait_s(request, None)
    assert wait_s(judge_request(problem(1), "x", time_limit_s=1.0, memory_limit_mb=512), None) == 600.0
    code = "import time\ntime.sleep(0.8)\nprint(input())"
    with Judge() as judge:
        slow = judge_request(problem(3), code, time_limit_s=1.0, memory_limit_mb=512)
        assert judge.verify(slow | {"time_limit_s": 10.0})["status"] == "accepted"


def test_deadlines_that_do_not_fit_the_problems_are_refused_with_the_command_to_run() -> None:
    needed = judging_s(100, 15.0)
    config = LivecodeEnvConfig(verifier="modal", verifier_deadline_s=60)
    with pytest.raises(ConfigError, match=r"env\.verifier_deadline_s = 60: problem p has 100 tests"):
        check_deadlines(config, [problem(1), problem(100)], None)
    config = LivecodeEnvConfig(verifier="modal")
    with pytest.raises(ConfigError, match=rf"end after 900 s.*VERIFIER_TIMEOUT_S={needed + 30:.0f} modal deploy"):
        check_deadlines(config, [problem(1), problem(100)], 900.0)
    check_deadlines(config, [problem(100)], needed + 30)
    check_deadlines(LivecodeEnvConfig(verifier_deadline_s=60), [problem(100)], None)


def test_a_call_that_runs_out_of_time_leaves_the_rest_to_the_next_and_scores_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VERIFIER_TIMEOUT_S", str(container.CALL_MARGIN_S + 5))
    asked = REQUEST | {"deadline_s": 4.0, "memory_limit_mb": 512}
    slow = asked | {"code": "import time\ntime.sleep(2)\nprint(2)", "deadline_s": 4.0}
    first, second, third = container.judge_all([slow, asked | {"deadline_s": None}, asked])
    assert first["verdict"]["status"] == second["verdict"]["status"] == "accepted"
    assert third["error"]["kind"] == "out_of_time"
    assert first["timeout_s"] == container.CALL_MARGIN_S + 5
    endless = asked | {
        "code": "import time\ntime.sleep(4)\nprint(2)",
        "tests": REQUEST["tests"] * 3,
        "deadline_s": 99.0,
    }
    (answer,) = container.judge_all([endless])
    assert answer["error"]["kind"] == "deadline_too_short"
    with pytest.raises(VerifierError, match="VERIFIER_TIMEOUT_S"):
        remote.read_verdict(answer, "modal", 3)
