"""The official semantics run a rollout's tests in one process: what stays from test to test, and what nobody gains."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.judge.test_packages import HOSTS
from verifier_app.judge import Judge
from verifier_app.judge.verdict import Verdict

RIGHT, WRONG, FAILS, SLOW = "accepted", "wrong_answer", "runtime_error", "time_limit_exceeded"


@pytest.fixture(scope="module", params=HOSTS)
def judge(request: pytest.FixtureRequest) -> Iterator[Judge]:
    with Judge(deny=HOSTS[request.param]) as judge:
        yield judge


@pytest.fixture(scope="module")
def strong() -> Iterator[Judge]:
    with Judge() as judge:
        yield judge


def official(judge: Judge, code: str, count: int = 3, **fields: Any) -> Verdict:
    """The verdict on tests whose inputs, and outputs, are 1, 2, ..."""
    tests = [{"input": f"{n}\n", "output": f"{n}\n"} for n in range(1, count + 1)]
    request = {"time_limit_s": 20, "memory_limit_mb": 256, "semantics": "official", "code": code, "tests": tests}
    return judge.verify(request | fields)


def called(judge: Judge, code: str, count: int = 3, **fields: Any) -> Verdict:
    tests = [{"input": str(n), "output": str(n)} for n in range(1, count + 1)]
    return official(judge, code, fn_name="f", tests=tests, **fields)


# name: (function, its verdict in processes of its own, in the official grader)
CALLS = {
    "a list of the class grows": (
        "class Solution:\n  seen = []\n  def f(self, n):\n    self.seen.append(n)\n    return sum(self.seen)",
        RIGHT, WRONG),
    "one Solution answers all calls": (
        "class Solution:\n  def __init__(self): self.n = 0\n  def f(self, n):\n    self.n += 1\n    return self.n",
        WRONG, RIGHT),
    "a default argument is remembered": (
        "def f(n, seen=[]):\n  seen.append(n)\n  return len(seen)", WRONG, RIGHT),
    "a cache of the top level": (
        "from functools import cache\n@cache\ndef g(): return [0]\ndef f(n):\n  g()[0] += 1\n  return g()[0]",
        WRONG, RIGHT),
    "a recursion limit that the next test inherits": (
        "import sys\ndef f(n):\n  if n == 1: sys.setrecursionlimit(60)\n  d = lambda k: k and d(k - 1)\n"
        "  if n == 2: d(100)\n  return n", RIGHT, FAILS),
    "a closed descriptor": ("import os\ndef f(n):\n  os.close(0)\n  return n", RIGHT, FAILS),
}  # fmt: skip
PROGRAMS = {
    "names of the body are gone": ("n = 0\ndef g():\n  nonlocal n\n  n += 1\ng()\nprint(int(input()) * n)", RIGHT),
    "what is left in a module stays": (
        "import math\nmath.n = getattr(math, 'n', 0) + 1\nprint(math.n)\nassert math.n == int(input())", RIGHT),
    "a replaced stdin is not there next time": (
        "import io, sys\nn = input()\nsys.stdin = io.StringIO('7')\nprint(n)", RIGHT),
    "a replaced stdout is not there next time": (
        "import io, sys\nprint(input())\nsys.stdout = io.StringIO()\nprint(8)", RIGHT),
    "the state of random": (
        "import random\nn = int(input())\nif n == 1: random.seed(4)\n"
        "print(n if n != 2 or random.random() == random.Random(4).random() else 0)", RIGHT),
    "the readline of an imported stdin": ("from sys import stdin\nprint(stdin.readline())", RIGHT),
    "exit ends a test alone": ("print(input())\nexit()", RIGHT),
    "a thread of the test before writes": (
        "import math, threading\nn = int(input())\nprint(n)\nif n == 1:\n"
        "  math.go, math.done = threading.Event(), threading.Event()\n"
        "  threading.Thread(target=lambda: (math.go.wait(), print(9), math.done.set())).start()\n"
        "if n == 2:\n  math.go.set()\n  math.done.wait()", WRONG),
    "a closed descriptor": ("import os\nos.close(0)\nprint(input())", FAILS),
    "a descriptor that is closed with its file": ("import io\nf = io.open(0)\nf.read()\nprint(input())", FAILS),
    "closed descriptors that the program does not miss": ("import os\nos.closerange(0, 3)\nprint(input())", RIGHT),
}  # fmt: skip


@pytest.mark.parametrize(("code", "alone", "together"), CALLS.values(), ids=CALLS)
def test_what_a_function_finds_in_its_next_call(judge: Judge, code: str, alone: str, together: str) -> None:
    found = [called(judge, code, semantics=name)["status"] for name in ("process", "official")]
    assert found == [alone, together]


@pytest.mark.parametrize(("code", "together"), PROGRAMS.values(), ids=PROGRAMS)
def test_what_a_program_finds_in_its_next_test(judge: Judge, code: str, together: str) -> None:
    assert official(judge, code)["status"] == together


def test_time_is_counted_for_each_test(judge: Judge) -> None:
    spin = "import time\nt = time.process_time()\nwhile time.process_time() < t + 0.6: pass\nprint(input())"
    verdict = official(judge, spin, count=4, time_limit_s=1.2)
    assert verdict["status"] == RIGHT
    assert all(0.5 < test["cpu_s"] < 1.0 for test in verdict["tests"])


@pytest.mark.parametrize("body", ["while True: pass", "time.sleep(60)"], ids=["busy", "asleep"])
def test_a_later_test_has_its_limit(judge: Judge, body: str) -> None:
    verdict = official(judge, f"import time\nn = input()\nprint(n)\nif n == '2':\n  {body}", time_limit_s=1)
    assert (verdict["status"], verdict["failed_test"]) == (SLOW, 1)


def test_memory_adds_up(judge: Judge) -> None:
    verdict = official(
        judge, "import math\nmath.n = getattr(math, 'n', [])\nmath.n.append('x' * (100 << 20))\nprint(input())"
    )
    assert (verdict["status"], verdict["failed_test"]) == ("memory_limit_exceeded", 2)


def test_the_peak_is_the_whole_process(strong: Judge) -> None:
    verdict = official(strong, "import math\nmath.n = getattr(math, 'n', 'x' * (100 << 20))\nprint(input())")
    assert [test["peak_mb"] > 100 for test in verdict["tests"]] == [True] * 3


@pytest.mark.parametrize("end", ["os._exit(0)", "os.kill(os.getpid(), 11)", "1 / 0"], ids=["exit", "signal", "error"])
def test_a_process_that_ends_early_has_not_passed_its_test(judge: Judge, end: str) -> None:
    code = f"import os\nkill = os.kill\nn = input()\nprint(n)\nif n == '2': {end}".replace("os.kill(os", "kill(os")
    verdict = official(judge, code)
    assert verdict["failed_test"] == 1
    assert verdict["status"] in (WRONG, FAILS)


def test_after_a_failure_the_rest_is_judged(judge: Judge) -> None:
    code = "n = input()\nprint(n)\nif n == '2': 1 / 0\nif n == '3':\n  while True: pass"
    verdict = official(judge, code, count=5, time_limit_s=1, stop_at_first_failure=False)
    assert [test["status"] for test in verdict["tests"]] == [RIGHT, FAILS, SLOW, RIGHT, RIGHT]


SOCKET = """import os, socket, struct, sys
n = int(input())
mine = [fd for fd in range(3, 2000) if os.path.exists(f'/proc/self/fd/{fd}')]
mine = [fd for fd in mine if os.readlink(f'/proc/self/fd/{fd}').startswith('socket')]
"""
ATTACKS = {
    "calls its test ended": "[os.write(fd, b'.') for fd in mine]\nwhile True: pass",
    "calls all tests ended": "[os.write(fd, b'.' * 1000) for fd in mine]\nprint(n)\nwhile True: pass",
    "sends descriptors": (
        "s = socket.socket(fileno=mine[0])\nright = [(1, 1, struct.pack('3i', 0, 1, 2))]\n"
        "[s.sendmsg([b'.'], right) for _ in range(100)]\nwhile True: pass"),
    "takes the next test itself": (
        "s = socket.socket(fileno=mine[0])\ns.send(b'.')\nprint(s.recvmsg(9, 99))\nwhile True: pass"),
    "closes the socket": "[os.close(fd) for fd in mine]\nprint(n + 1)",
    "shuts the socket down": "socket.socket(fileno=mine[0]).shutdown(2)\nwhile True: pass",
    "fills the socket": "[[os.write(fd, b'.' * 100000) for _ in range(100)] for fd in mine]\nwhile True: pass",
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_the_end_of_the_socket_buys_nothing(judge: Judge, attack: str) -> None:
    verdict = official(judge, SOCKET + attack, time_limit_s=1)
    assert verdict["status"] in (WRONG, FAILS, SLOW)
    assert verdict["passed"] == 0
    assert official(judge, "print(input())")["status"] == RIGHT


def test_a_process_holds_no_socket_but_its_own(strong: Judge) -> None:
    assert official(strong, SOCKET + "print(n if len(mine) == 1 else mine)")["status"] == RIGHT


def test_the_socket_is_not_in_the_sandboxes_network(strong: Judge) -> None:
    code = "with open('/proc/net/unix') as f: print(len(f.readlines()))"
    verdict = official(strong, code, count=1)  # the head line alone
    assert verdict["status"] == RIGHT or "net_namespace" not in verdict["isolation"]["layers"]


def test_a_hundred_tests_are_one_process(strong: Judge) -> None:
    code = "import math\nmath.n = getattr(math, 'n', 0) + 1\nprint(math.n)"
    verdict = official(strong, code, count=100)
    assert (verdict["status"], verdict["passed"]) == (RIGHT, 100)
