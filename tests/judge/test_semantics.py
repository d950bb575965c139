"""LiveCodeBench's official semantics beside the real process: programs that each kind of grader sees differently."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from verifier_app.judge import Judge, JudgeError

LINES = {"input": "1\n2\n", "output": "3"}
RIGHT, WRONG, FAILS, NONE = "accepted", "wrong_answer", "runtime_error", "compile_error"
SUM = "print(sum(map(int, {})))"
# name: (program, its verdict as a process, its verdict in the official grader)
PROGRAMS = {
    "input": ("print(int(input()) + int(input()))", RIGHT, RIGHT),
    "stdin read": ("import sys\n" + SUM.format("sys.stdin.read().split()"), RIGHT, RIGHT),
    "stdin readline": ("import sys\nread = sys.stdin.readline\nprint(int(read()) + int(read()))", RIGHT, RIGHT),
    "readline of an imported stdin": (
        "from sys import stdin\nread = stdin.readline\nprint(int(read()) + int(read()))", RIGHT, RIGHT),
    "read of an imported stdin": ("from sys import stdin\n" + SUM.format("stdin.read().split()"), RIGHT, RIGHT),
    "lines of an imported stdin have no ends": (
        "from sys import stdin\nprint(3 if stdin.readline() == '1\\n' else 0)", RIGHT, WRONG),
    "the end of an imported stdin": (
        "from sys import stdin\nstdin.readline(), stdin.readline(), stdin.readline()\nprint(stdin.readline() or 3)",
        RIGHT, FAILS),
    "the last of readlines": ("import sys\n" + SUM.format("sys.stdin.readlines()"), RIGHT, FAILS),
    "readlines keeps line ends": ("import sys\nprint(3 if sys.stdin.readlines()[0] == '1\\n' else 0)", RIGHT, WRONG),
    "lines of stdin": ("import sys\n" + SUM.format("sys.stdin"), RIGHT, FAILS),
    "open 0": (SUM.format("open(0).read().split()"), RIGHT, WRONG),
    "os.read": ("import os\n" + SUM.format("os.read(0, 99).split()"), RIGHT, WRONG),
    "buffer": ("import sys\n" + SUM.format("sys.stdin.buffer.read().split()"), RIGHT, RIGHT),
    "buffer read twice": (
        "import sys\nsys.stdin.buffer.read()\n" + SUM.format("sys.stdin.buffer.read().split()"), WRONG, RIGHT),
    "lines of the buffer": (
        "import sys\nread = sys.stdin.buffer.readline\nprint(int(read()) + int(read()))", RIGHT, WRONG),
    "read twice": ("import sys\nsys.stdin.read()\n" + SUM.format("sys.stdin.read().split()"), WRONG, RIGHT),
    "seek": ("import sys\nsys.stdin.readline()\nsys.stdin.seek(0)\nprint(int(input()) + int(input()))", RIGHT, RIGHT),
    "input at the end": (
        "n = 0\ntry:\n  while True: n += int(input())\nexcept EOFError: print(n)", RIGHT, RIGHT),
    "top-level return": ("print(3)\nif True: return\nprint(4)", NONE, RIGHT),
    "nonlocal of the top level": ("n = 1\ndef f():\n  nonlocal n\n  n = 3\nf()\nprint(n)", NONE, RIGHT),
    "global of the top level": ("n = 1\ndef f():\n  global n\n  n += 2\nf()\nprint(n)", RIGHT, FAILS),
    "yield at the top level": ("print(3)\nif False: yield", NONE, WRONG),
    "main guard": ("def main(): print(3)\nif __name__ == '__main__': main()", RIGHT, RIGHT),
    "main guard in other quotes": ('def main(): print(3)\nif __name__ == "__main__":\n    main()', RIGHT, RIGHT),
    "main guard the other way round": ("def main(): print(3)\nif '__main__' == __name__: main()", RIGHT, WRONG),
    "main guard before the end": ("if __name__ == '__main__': print(3)\nn = 0", RIGHT, WRONG),
    "future import": ("from __future__ import annotations\nprint(3)", RIGHT, NONE),
    "nothing but imports": ("import math", WRONG, NONE),
    "an import after its use": ("print(bisect.bisect([1, 2], 2) + k)\nfrom os import EX_OK as z\nimport os\nk = 1",
                                FAILS, FAILS),
    "imports run first": ("print(dumps(3))\nfrom json import dumps", RIGHT, RIGHT),
    "print of a joined thread": (
        "import threading\nt = threading.Thread(target=lambda: print(3))\nt.start()\nt.join()", RIGHT, RIGHT),
    "print of a thread that nobody joins": (
        "import threading, time\nthreading.Thread(target=lambda: (time.sleep(0.3), print(3))).start()", RIGHT, WRONG),
    "print at exit": ("import atexit\natexit.register(lambda: print(3))", RIGHT, WRONG),
    "print of a finalizer": ("class T:\n  def __del__(self): print(3)\nt = T()", RIGHT, RIGHT),
    "write to the imported stdout": ("from sys import stdout\nstdout.write('3')", RIGHT, WRONG),
    "write to stdout": ("import sys\nsys.stdout.write('3')", RIGHT, RIGHT),
    "buffer of stdout": ("import sys\nsys.stdout.buffer.write(b'3')", RIGHT, FAILS),
    "os.write": ("import os\nos.write(1, b'3')", RIGHT, WRONG),
    "own stream": ("out = open(1, 'w')\nout.write('3')", RIGHT, WRONG),
    "closed stdout": ("import sys\nprint(3)\nsys.stdout.close()", RIGHT, FAILS),
    "replaced stdout": ("import io, sys\nprint(3)\nsys.stdout = io.StringIO()\nprint(4)", RIGHT, RIGHT),
    "exit": ("print(3)\nexit()", RIGHT, RIGHT),
    "sys.exit": ("import sys\nprint(3)\nsys.exit(1)", RIGHT, RIGHT),
    "quit": ("print(3)\nquit()", RIGHT, FAILS),
    "os._exit": ("import os\nprint(3, flush=True)\nos._exit(0)", RIGHT, WRONG),
    "exception after the answer": ("print(3)\n1 / 0", FAILS, FAILS),
    "pool": ("from multiprocessing import Pool\nwith Pool(2) as p: print(sum(p.map(int, ['1', '2'])))", RIGHT, FAILS),
    "fork": ("import os\nif os.fork() == 0: os._exit(0)\nos.wait()\nprint(3)", RIGHT, FAILS),
    "subprocess": ("import subprocess\nprint(subprocess.run(['echo', '3'], capture_output=True, text=True).stdout)",
                   RIGHT, FAILS),
    "current folder": ("import os\nos.getcwd()\nprint(3)", RIGHT, FAILS),
    "resource": ("import resource\nprint(3)", RIGHT, FAILS),
    "sorted containers": ("from sortedcontainers import SortedList\nprint(SortedList([3])[0])", RIGHT, FAILS),
    "numpy": ("import numpy as np\nprint(np.array([1, 2]).sum())", RIGHT, RIGHT),
    "class Solution": ("class Solution:\n  def f(self): return 3\nprint(Solution().f())", RIGHT, FAILS),
    "class Solution in a comment": ("# class Solution\nprint(3)", RIGHT, RIGHT),
    "syntax error": ("print(3", NONE, NONE),
    "byte order mark": ("\ufeffprint(3)", RIGHT, NONE),
}  # fmt: skip
CALLS = {
    "method": ("class Solution:\n  def f(self, n): return n + 1", RIGHT, RIGHT),
    "function": ("def f(n): return n + 1", RIGHT, RIGHT),
    "function beside a class": ("class Solution: pass\ndef f(n): return n + 1", RIGHT, FAILS),
    "the words in a comment": ("# no class Solution\ndef f(n): return n + 1", RIGHT, FAILS),
    "future import": ("from __future__ import annotations\ndef f(n): return n + 1", RIGHT, NONE),
    "fork": ("import os\ndef f(n):\n  if os.fork() == 0: os._exit(0)\n  return n + 1", RIGHT, FAILS),
    "main guard": ("def f(n): return n + 1\nif __name__ == '__main__': 1 / 0", RIGHT, RIGHT),
}  # fmt: skip


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with Judge() as judge:
        yield judge


def verdicts(judge: Judge, request: dict[str, Any]) -> list[str]:
    found = [judge.verify({**request, "time_limit_s": 20, "semantics": name}) for name in ("process", "official")]
    return [verdict["status"] for verdict in found]


@pytest.mark.parametrize(("code", "process", "official"), PROGRAMS.values(), ids=PROGRAMS)
def test_a_program_in_either_semantics(judge: Judge, code: str, process: str, official: str) -> None:
    assert verdicts(judge, {"code": code, "tests": [LINES]}) == [process, official]


@pytest.mark.parametrize(("code", "process", "official"), CALLS.values(), ids=CALLS)
def test_a_function_in_either_semantics(judge: Judge, code: str, process: str, official: str) -> None:
    request = {"code": code, "fn_name": "f", "tests": [{"input": "2", "output": "3"}]}
    assert verdicts(judge, request) == [process, official]


def test_without_the_field_programs_are_processes(judge: Judge) -> None:
    for fields in ({}, {"semantics": None}):
        verdict = judge.verify({"code": "import os\nos.write(1, b'3')", "tests": [LINES], **fields})
        assert verdict["status"] == "accepted"


def test_official_tests_are_as_isolated_and_limited(judge: Judge) -> None:
    request = {"tests": [LINES], "semantics": "official", "time_limit_s": 1, "memory_limit_mb": 256}
    loop = judge.verify({**request, "code": "while True: pass"})
    assert loop["status"] == "time_limit_exceeded"
    assert judge.verify({**request, "code": "x = 'x' * (1 << 29)"})["status"] == "memory_limit_exceeded"
    assert loop["isolation"] == judge.verify({"code": "", "tests": [LINES]})["isolation"]


@pytest.mark.parametrize("value", ["Official", "", 1, ["official"]])
def test_other_semantics_are_refused(judge: Judge, value: Any) -> None:
    with pytest.raises(JudgeError, match=r"semantics: is .*; give process or official"):
        judge.verify({"code": "", "tests": [LINES], "semantics": value})
