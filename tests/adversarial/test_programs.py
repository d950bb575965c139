"""Every program on every kind of host: attacks never pay, honest programs pass, nothing survives."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from adversarial.attacks_on_the_judge import ATTACKS as ON_THE_JUDGE
from adversarial.attacks_on_the_machine import ATTACKS as ON_THE_MACHINE
from adversarial.attacks_on_the_watch import ATTACKS as ON_THE_WATCH
from adversarial.attacks_on_the_watch import HONEST as BESIDE_THE_WATCH
from adversarial.cases import ANSWER, SECRET, SUM_TESTS, Case
from adversarial.honest_as_cpython import AS_CPYTHON
from adversarial.honest_programs import HONEST
from verifier_app.judge import Judge

PROGRAMS = ON_THE_JUDGE + ON_THE_MACHINE + ON_THE_WATCH + HONEST + BESIDE_THE_WATCH + AS_CPYTHON
HOSTS = {"every_layer": (), "no_namespaces": ("unshare",), "no_mount": ("mount",), "no_setuid": ("setuid",)}
DEGRADED = pytest.mark.slow(reason="two more passes over all programs")


@pytest.fixture(
    scope="module",
    params=[
        "every_layer",
        "no_namespaces",
        pytest.param("no_mount", marks=DEGRADED),
        pytest.param("no_setuid", marks=DEGRADED),
    ],
)
def judge(request: pytest.FixtureRequest) -> Iterator[Judge]:
    with Judge(deny=HOSTS[request.param]) as judge:
        yield judge


def children(pid: int) -> list[int]:
    """Living children of a process."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def survivors(judge: Judge) -> list[int]:
    """What runs below the judge's templates, orphans included: they are subreapers."""
    return [pid for template in judge._templates.values() for pid in children(template.process.pid)]


@pytest.mark.parametrize("case", PROGRAMS, ids=lambda case: case.name)
def test_attacks_fail_and_honest_programs_pass(judge: Judge, case: Case) -> None:
    verdict = judge.verify({"code": case.code, "tests": case.tests, **case.fields})
    assert verdict["status"] in case.statuses, verdict["message"]
    assert SECRET not in verdict["message"].partition("expected")[0]
    assert survivors(judge) == []


def test_the_judge_is_unharmed_by_all_of_them(judge: Judge) -> None:
    verdict = judge.verify({"code": ANSWER, "tests": SUM_TESTS})
    assert verdict["status"] == "accepted"
    pids = [template.process.pid for template in judge._templates.values()]
    assert not [path for path in os.listdir("/tmp") if path.startswith(tuple(f"judge-{pid}-" for pid in pids))]


def test_there_are_at_least_eighty_programs() -> None:
    assert len({case.name for case in PROGRAMS}) == len(PROGRAMS) >= 80
