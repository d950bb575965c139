"""A verifier's request for one program, and how long its verdict may take."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from environments.common.errors import ConfigError
from environments.livecode.problems.problem import Problem, TestCase
from environments.livecode.problems.stored_tests import StoredTests
from environments.livecode.verification.own_limits import NOT_THEIRS, OwnLimits
from verifier_app.container import CALL_MARGIN_S

if TYPE_CHECKING:
    from environments.livecode.config import LivecodeEnvConfig


_forms: OrderedDict[int, tuple[Any, list[dict[str, str]]]] = OrderedDict()
_KEPT_FORMS = 256


def _judge_tests(problem: Problem) -> list[dict[str, str]]:
    """The tests in the judge's form: one list object a problem, by which `TestSetUploads` knows it again."""
    key = id(problem.tests)
    if key not in _forms:
        form = [{"input": test.input, "output": test.output} for test in problem.tests]
        _forms[key] = (problem.tests, form)  # the tests are kept with it: their id stays their own
        while len(_forms) > _KEPT_FORMS:
            _forms.popitem(last=False)
    return _forms[key][1]


LEAST_WAIT_S = 600.0
BESIDE_S = 300.0  # of a wait, beside the judging itself: a container's start, the way there and back, another try
TEST_OVERHEAD_S = 1.0  # beside a test's own limit; some 0.1 s even in gVisor
COMPILE_S = 30.0


def judging_s(tests: int, time_limit_s: float) -> float:
    """Longest fair time in which a program may still pass: every test takes its limit."""
    return tests * (time_limit_s + TEST_OVERHEAD_S) + COMPILE_S


def wait_s(request: dict[str, Any], deadline_s: float | None) -> float:
    """How long to wait for a request's verdict: `deadline_s`, or longer than a slow right program may take."""
    if deadline_s is not None:
        return deadline_s
    return max(LEAST_WAIT_S, (request.get("deadline_s") or 0.0) + BESIDE_S)


def check_deadlines(config: LivecodeEnvConfig, problems: Sequence[Problem], call_s: float | None) -> None:
    """Whether every right program gets its verdict in time, however slow.

    Args:
        call_s: after so long a call is ended where the judges are; None: never.

    Raises:
        ConfigError: a problem's tests may take longer.
    """
    if not problems or config.verifier == "local":
        return

    def limit_s(problem: Problem) -> float:
        return config.own_limits.of(problem, config.time_limit_s, config.memory_limit_mb)[0]

    longest = max(problems, key=lambda problem: judging_s(len(problem.tests), limit_s(problem)))
    tests, limit = len(longest.tests), limit_s(longest)
    needed = judging_s(tests, limit)
    what = f"problem {longest.id} has {tests} tests of env.time_limit_s = {limit:g}, {needed:.0f} s in all"
    if limit != config.time_limit_s:
        what = f"problem {longest.id} has {tests} tests of {limit:g} s (env.own_time_factor), {needed:.0f} s in all"
    deadline_s = config.verifier_deadline_s
    if deadline_s is not None and deadline_s < needed:
        raise ConfigError(f"env.verifier_deadline_s = {deadline_s:g}: {what}; leave it empty, or give at least that")
    if call_s is not None and call_s < needed + CALL_MARGIN_S:
        at_least = math.ceil(needed + CALL_MARGIN_S)
        raise ConfigError(
            f"env.modal_app = {config.modal_app}: its calls end after {call_s:g} s, and {what}. Run: "
            f"VERIFIER_TIMEOUT_S={at_least} modal deploy -m verifier_app"
        )


def judge_request(
    problem: Problem,
    code: str,
    *,
    time_limit_s: float,
    memory_limit_mb: int,
    own_limits: OwnLimits = NOT_THEIRS,
    decimal_tolerance: float | None = None,
    semantics: str | None = None,
    language: str | None = None,
    order: list[int] | None = None,
) -> dict[str, Any]:
    """A verifier's request for one program: all tests, stop at the first that fails.

    `own_limits`: what the problem's own limits count.
    `order`: in which the tests run; the official grader has its own, the problem's.
    `semantics`, `language` and `checker` are fields only where they are given: an earlier verifier knows none.
    """
    tests: Sequence[TestCase] = problem.tests
    time_limit_s, memory_limit_mb = own_limits.of(problem, time_limit_s, memory_limit_mb)
    return {
        "code": code,
        "fn_name": problem.fn_name,
        "tests": tests if isinstance(tests, StoredTests) else _judge_tests(problem),
        "tests_ref": None,
        "order": None if semantics == "official" else order,
        "time_limit_s": time_limit_s,
        "memory_limit_mb": memory_limit_mb,
        "deadline_s": judging_s(len(tests), time_limit_s),
        "stop_at_first_failure": True,
        "decimal_tolerance": decimal_tolerance,
        **({} if semantics is None else {"semantics": semantics}),
        **({} if language is None else {"language": language}),
        **({} if problem.checker is None else {"checker": problem.checker}),
    }
