"""C++ on every kind of host: attacks never pay, honest programs pass, nothing survives, compiling leaks nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from adversarial.cases import SECRET, SUM_TESTS, Case
from adversarial.cpp_programs import AT_COMPILE_TIME, ATTACKS, HEADERS, HONEST, SUM
from adversarial.test_programs import HOSTS, survivors
from tests.support.compiler import needs_compiler
from verifier_app.judge import Judge, judging

pytestmark = needs_compiler
DEGRADED = pytest.mark.slow(reason="three more passes over all programs")


@pytest.fixture(
    scope="module",
    params=["every_layer", *(pytest.param(name, marks=DEGRADED) for name in HOSTS if name != "every_layer")],
)
def judge(request: pytest.FixtureRequest) -> Iterator[Judge]:
    with Judge(deny=HOSTS[request.param]) as judge:
        yield judge


@pytest.mark.parametrize("case", ATTACKS + AT_COMPILE_TIME + HONEST, ids=lambda case: case.name)
def test_cpp_attacks_fail_and_honest_programs_pass(judge: Judge, case: Case) -> None:
    code = case.code.replace("JUDGE", judging.__file__)
    verdict = judge.verify({"code": code, "tests": case.tests, **case.fields})
    assert verdict["status"] in case.statuses, verdict["message"]
    assert SECRET not in verdict["message"].partition("expected")[0]
    assert survivors(judge) == []


def test_the_judge_is_unharmed_by_all_cpp_programs(judge: Judge) -> None:
    code = f"{HEADERS} int main() {{ {SUM} }}"
    assert judge.verify({"code": code, "language": "cpp", "tests": SUM_TESTS})["status"] == "accepted"
