"""The verdict's contract, one property each."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from environments.dataset.miniature.make import definitions
from environments.dataset.miniature.make import tests as made_tests
from verifier_app.judge import Judge, JudgeError, TestStore

TESTS = [{"input": f"{n}\n", "output": f"{n * n}\n"} for n in range(5)]
SQUARE = "n = int(input())\nprint(n * n)"
WRONG_AT_3 = "n = int(input())\nprint(n * n if n != 3 else 10)"


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with Judge() as judge:
        yield judge


def test_an_accepted_program(judge: Judge) -> None:
    verdict = judge.verify({"code": SQUARE, "tests": TESTS})
    assert json.loads(json.dumps(verdict)) == verdict
    assert (verdict["status"], verdict["passed"], verdict["ran"], verdict["total"]) == ("accepted", 5, 5, 5)
    assert verdict["failed_test"] is None
    assert verdict["message"] == ""
    assert [test["index"] for test in verdict["tests"]] == list(range(5))
    assert all(test["peak_mb"] > 1 and test["cpu_s"] > 0 for test in verdict["tests"])
    assert verdict["isolation"]["level"] in ("strong", "weak")


def test_the_first_failure_stops(judge: Judge) -> None:
    verdict = judge.verify({"code": WRONG_AT_3, "tests": TESTS})
    assert (verdict["status"], verdict["passed"], verdict["ran"], verdict["failed_test"]) == ("wrong_answer", 3, 4, 3)
    assert verdict["message"] == "line 1: got '10', expected '9'"


def test_all_tests_run_when_asked_to(judge: Judge) -> None:
    verdict = judge.verify({"code": WRONG_AT_3, "tests": TESTS, "stop_at_first_failure": False})
    assert (verdict["status"], verdict["passed"], verdict["ran"], verdict["failed_test"]) == ("wrong_answer", 4, 5, 3)


def test_tests_run_in_the_order_given(judge: Judge) -> None:
    verdict = judge.verify({"code": WRONG_AT_3, "tests": TESTS, "order": [4, 3, 2, 1, 0]})
    assert [test["index"] for test in verdict["tests"]] == [4, 3]
    assert verdict["failed_test"] == 3


def test_the_tests_after_a_timeout_still_run_when_asked_to(judge: Judge) -> None:
    code = "n = int(input())\nwhile n == 1: pass\nprint(n * n)"
    verdict = judge.verify({"code": code, "tests": TESTS, "stop_at_first_failure": False, "time_limit_s": 0.3})
    assert [test["status"] for test in verdict["tests"]] == ["accepted", "time_limit_exceeded"] + ["accepted"] * 3


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("def f(:", "compile_error", "line 1"),
        ("1 / 0", "runtime_error", "ZeroDivisionError: division by zero"),
        ("import os; os.kill(os.getpid(), 11)", "runtime_error", "SIGSEGV"),
        ("raise SystemExit(2)", "wrong_answer", "got ''"),
        ("x = [0] * 10**9", "memory_limit_exceeded", "256 MB"),
        ("while True: pass", "time_limit_exceeded", "limit is 0.3 s"),
        ("while True: print('x' * 10**5)", "output_limit_exceeded", "output"),
        ("class E(Exception):\n  def __str__(s): 1 / 0\nraise E", "runtime_error", ""),
        ("raise ValueError('x' * 10**6)", "runtime_error", "xxx"),
    ],
)
def test_a_failure_has_a_status_and_a_short_message(judge: Judge, code: str, status: str, words: str) -> None:
    limit = 0.3 if "pass" in code else 5
    verdict = judge.verify({"code": code, "tests": TESTS[1:], "time_limit_s": limit, "memory_limit_mb": 256})
    assert verdict["status"] == status
    assert words in verdict["message"]
    assert len(verdict["message"]) <= 300


def test_a_called_function_gets_its_arguments_and_its_value_is_judged(judge: Judge) -> None:
    tests = [{"input": '[1, 2]\n"a"', "output": '[[1, 2], "a"]'}]
    for code in ("def f(a, b): return [a, b]", "class Solution:\n  def f(self, a: List[int], b): return (a, b)"):
        assert judge.verify({"code": code, "fn_name": "f", "tests": tests})["status"] == "accepted"
    verdict = judge.verify({"code": "def f(a, b): return [b, a]", "fn_name": "f", "tests": tests})
    assert verdict["message"] == "got ['a', [1, 2]], expected [[1, 2], 'a']"


def test_the_rollouts_deadline_is_a_time_limit(judge: Judge) -> None:
    request = {"code": "import time; time.sleep(0.3); " + SQUARE.replace("\n", ";"), "tests": TESTS, "deadline_s": 0.5}
    verdict = judge.verify(request)
    assert verdict["status"] == "time_limit_exceeded"
    assert "deadline" in verdict["message"]
    assert 0 < verdict["passed"] == verdict["ran"] < 5


def test_the_peak_is_that_of_the_whole_tree(judge: Judge) -> None:
    code = """
import os, time
for _ in range(3):
    if os.fork() == 0:
        x = bytearray(b"x" * (60 << 20)); time.sleep(0.5); os._exit(0)
for _ in range(3): os.wait()
print(1)
"""
    verdict = judge.verify({"code": code, "tests": TESTS[1:2]})
    assert verdict["status"] == "accepted"
    assert verdict["tests"][0]["peak_mb"] > 170


def test_many_programs_against_one_stored_set(judge: Judge, tmp_path: Path) -> None:
    store = TestStore(tmp_path)
    verdicts = judge.verify_many(store.put(TESTS), [SQUARE, WRONG_AT_3, "x ="], store)
    assert [verdict["status"] for verdict in verdicts] == ["accepted", "wrong_answer", "compile_error"]


def test_programs_share_nothing(judge: Judge, tmp_path: Path) -> None:
    store = TestStore(tmp_path)
    leave = "import os, builtins; builtins.left = 1; open('/tmp/left', 'w').write('1'); print(int(input()) ** 2)"
    find = "import os, builtins; print(int(input()) ** 2 + os.path.exists('/tmp/left') + hasattr(builtins, 'left'))"
    verdicts = judge.verify_many(store.put(TESTS[:2]), [leave, find], store)
    assert [verdict["status"] for verdict in verdicts] == ["accepted", "accepted"]


def test_threads_may_share_a_judge(judge: Judge) -> None:
    statuses: list[str] = []
    work = lambda: statuses.append(judge.verify({"code": SQUARE, "tests": TESTS})["status"])  # noqa: E731
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == ["accepted"] * 4


def test_no_descriptor_is_left_open(judge: Judge) -> None:
    judge.verify({"code": SQUARE, "tests": TESTS})
    before = len(os.listdir("/proc/self/fd"))
    for code in (SQUARE, WRONG_AT_3, "x =", "while 1: pass"):
        judge.verify({"code": code, "tests": TESTS, "time_limit_s": 0.2})
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_template_that_dies_is_replaced(judge: Judge) -> None:
    process = judge.template().process
    process.kill()
    process.wait()
    assert judge.verify({"code": SQUARE, "tests": TESTS})["status"] == "accepted"


def test_a_bad_request_is_an_error_and_no_verdict(judge: Judge) -> None:
    with pytest.raises(JudgeError, match="bad_request"):
        judge.verify({"code": SQUARE, "tests": []})


def test_the_known_solutions_get_the_known_verdicts(judge: Judge) -> None:
    """Eighty problems in five levels, each with its own solution and with that of another problem."""
    problems = [problem for level in definitions() for problem in level]
    kinds = [[problem for problem in problems if ("fn" in problem) is call] for call in (False, True)]
    mistakes = []
    for problem, other in [pair for kind in kinds for pair in zip(kind, kind[1:] + kind[:1], strict=True)]:
        made = made_tests(problem)
        request: dict[str, Any] = {"tests": [{"input": given, "output": wanted} for given, wanted in made]}
        if "fn" in problem:
            tests = [{"input": "\n".join(map(json.dumps, each)), "output": json.dumps(out)} for each, out in made]
            request = {"tests": tests, "fn_name": problem["fn"]}
        wrong = other["solution"].replace(other.get("fn", "\0"), problem.get("fn", ""))
        for code, good in ((problem["solution"], True), (wrong, False)):
            verdict = judge.verify({**request, "code": code, "time_limit_s": 15.0 if good else 1.5})
            if (verdict["status"] == "accepted") != good:
                mistakes.append((problem["name"], good, verdict["status"], verdict["message"]))
    assert mistakes == []
