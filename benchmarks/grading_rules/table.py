"""The graders, and what each makes of a program's tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.grading_rules import publisher, rllm, sandbox_fusion, verl

ENDED = ("accepted", "wrong_answer")
UNREADABLE = object()
"""The result of a call whose text could not be read back; equal to nothing."""


@dataclass(frozen=True)
class TestRun:
    """One test in our sandbox.

    status: our judge's verdict. output: what was printed. value: a call's result. exit_status: whether the process
    asked for another one than 0. cpu_s: seconds of CPU.
    """

    __test__ = False
    input: str
    expected: str
    status: str
    output: str = ""
    value: Any = None
    expected_value: Any = None
    exit_status: bool = False
    cpu_s: float = 0.0


@dataclass(frozen=True)
class Rule:
    """A grader's rules that can be applied to outputs.

    source: where they were read. returned: None where the grader has no calls. seconds: of one test; all_seconds: of
    all tests of a program together. after_a_crash: whether what a crashed program printed counts. first_tests: where
    not all tests pass, the reward is the share of so many first ones that pass, each within first_seconds.
    """

    name: str
    source: str
    printed: Callable[[str, str], bool]
    returned: Callable[[Any, Any], bool] | None
    seconds: float
    all_seconds: float | None = None
    after_a_crash: bool = False
    exit_status_counts: bool = False
    most_tests: int | None = None
    first_tests: int | None = None
    first_seconds: float = 0.0

    def passes(self, run: TestRun, call: bool, seconds: float) -> bool:
        """Whether one test passes within so many seconds."""
        crashed = run.status == "runtime_error"
        if run.status not in ENDED and not (crashed and self.after_a_crash and not call):
            return False
        if run.cpu_s > seconds or (self.exit_status_counts and run.exit_status):
            return False
        if call:
            assert self.returned is not None
            return run.value is not UNREADABLE and self.returned(run.value, run.expected_value)
        return self.printed(run.output, run.expected)

    def reward(self, runs: Sequence[TestRun], call: bool) -> float | None:
        """What a program with these tests gets, from 0 to 1; None where the grader has no such problems."""
        if call and self.returned is None:
            return None
        if self._all_pass(runs, call) or self.first_tests is None:
            return float(self._all_pass(runs, call))
        first = runs[: self.first_tests]
        return sum(self.passes(run, call, self.first_seconds) for run in first) / len(first)

    def accepts(self, runs: Sequence[TestRun], call: bool) -> bool | None:
        """Whether a program gets the whole reward; None where the grader has no such problems."""
        reward = self.reward(runs, call)
        return None if reward is None else reward == 1

    def _all_pass(self, runs: Sequence[TestRun], call: bool) -> bool:
        if self.most_tests is not None and len(runs) > self.most_tests:
            runs = sorted(runs, key=lambda run: len(run.input), reverse=True)[: self.most_tests]
        if self.all_seconds is not None and sum(run.cpu_s for run in runs) > self.all_seconds:
            return False
        return all(self.passes(run, call, self.seconds) for run in runs)


RULES = [
    Rule(
        "publisher", "NousResearch/atropos/environments/code_execution_server/lcb_modal_endpoint.py",
        publisher.printed, publisher.returned, seconds=15,
    ),
    Rule(
        "verl", "volcengine/verl/verl/utils/reward_score/prime_code", verl.printed, verl.returned, seconds=5,
        all_seconds=6, first_tests=10, first_seconds=10,
    ),
    Rule(
        "sandbox_fusion", "bytedance/SandboxFusion/sandbox/utils/testing.py", sandbox_fusion.printed, None,
        seconds=20, exit_status_counts=True,
    ),
    Rule(
        "verl_sandbox_fusion", "volcengine/verl/verl/utils/reward_score/sandbox_fusion",
        sandbox_fusion.printed_for_verl, None, seconds=10, exit_status_counts=True, first_tests=10, first_seconds=10,
    ),
    Rule(
        "rllm", "rllm-org/rllm/rllm/rewards: code_reward.py, code_utils/taco.py", rllm.printed, rllm.returned,
        seconds=12, after_a_crash=True, most_tests=rllm.MOST_TESTS,
    ),
]  # fmt: skip
JUDGES = ["ours", "livecodebench"]
"""Verdicts that come from the judge itself: as it trains, and with LiveCodeBench's official semantics."""
NAMES = [*JUDGES, *(rule.name for rule in RULES)]
