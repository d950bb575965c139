"""What a program writes to stderr is neither output nor the judge's work."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest

from verifier_app.judge import Judge

NOISE = """
import os, sys
block = b"x" * 65536
for _ in range(2000):
    os.write(2, block)
"""


def cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with Judge() as judge:
        yield judge


def test_any_amount_of_noise_is_passed_over_and_the_last_line_kept(judge: Judge) -> None:
    tests = [{"input": "", "output": "ok"}]
    assert judge.verify({"code": NOISE + "print('ok')", "tests": tests})["status"] == "accepted"
    verdict = judge.verify({"code": NOISE + "sys.stderr.write('\\n')\n1 / 0", "tests": tests})
    assert verdict["status"] == "runtime_error"
    assert verdict["message"] == "ZeroDivisionError: division by zero"


def test_a_program_that_only_makes_noise_takes_its_own_time_and_not_the_judges(judge: Judge) -> None:
    judge.verify({"code": "", "tests": [{"input": "", "output": ""}]})  # the template is there
    before = cpu_s()
    code = "import os\nwhile True: os.write(2, b'x' * 65536)"
    verdict = judge.verify({"code": code, "tests": [{"input": "", "output": ""}], "time_limit_s": 2})
    assert verdict["status"] == "time_limit_exceeded"
    assert cpu_s() - before < 1
