"""Problems with several right answers: a checker decides, a program of its own in a sandbox of its own.

A checker is Python and keeps testlib's convention: it is started with three file names (the test's input, the program's
output, the expected answer) and ends with 0 for a right answer, 1 or 2 for a wrong one, 3 for its own failure. What it
prints to stderr is the verdict's message. It runs after the program's process is gone, and neither sees the other's.
For a call, the output is the result as one JSON value; one that JSON cannot hold is a wrong answer.

A checker that ends in any other way (an exception, a limit) is asked about the expected answer itself: where it takes
that, the program's output is what it cannot read, which is a wrong answer; where it does not, the checker is broken,
which is a fault of ours and no verdict.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from verifier_app.judge.default_limits import MEMORY_LIMIT_MB, TIME_LIMIT_S
from verifier_app.judge.languages import registry
from verifier_app.judge.loading import ProgramLoader
from verifier_app.judge.protocol import JudgeError, Request, TestSet, bad_request, check_code, shown

if TYPE_CHECKING:
    from verifier_app.judge.host import ZygoteHandle
    from verifier_app.judge.languages.language import Warm
    from verifier_app.judge.running import TestResult

Bytes = bytes | bytearray
RIGHT, WRONG, FAILED = 0, (1, 2), 3

_WRAPPER = """
import io, os, sys

_NAMES = ("input.txt", "output.txt", "answer.txt")
for _name, _left in zip(_NAMES, map(int, sys.stdin.buffer.readline().split())):
    with open(_name, "wb") as _file:
        while _left:
            _piece = sys.stdin.buffer.read(min(_left, 1 << 20))
            _file.write(_piece)
            _left -= len(_piece) or sys.exit("the input ends early")
sys.argv[:] = ["checker.py", *_NAMES]
sys.stdin = io.StringIO("")
_code = 0
try:
    exec(compile({source!r}, "checker.py", "exec"), {{"__name__": "__main__"}})
except SystemExit as _exit:
    _code = _exit.code if isinstance(_exit.code, int) else 0 if _exit.code is None else 3
except BaseException as _error:
    print(f"{{type(_error).__name__}}: {{_error}}", file=sys.stderr)
    _code = 3
for _name in _NAMES:
    os.unlink(_name)
sys.stderr.flush()
# Not sys.exit: the judge's runner takes every SystemExit for a good end, as LiveCodeBench does.
os._exit(_code if _code in (0, 1, 2) else 3)
"""

_READ = """
import sys
from collections import Counter

def lines(path):
    with open(path, encoding="utf-8", errors="surrogateescape") as stream:
        return [line.strip() for line in stream.read().strip().split("\\n")]

def refuse(why):
    print(why, file=sys.stderr)
    sys.exit(1)

got, wanted = lines(sys.argv[2]), lines(sys.argv[3])
"""
BUILT_IN = {
    "any_order_lines": _READ
    + """
if Counter(got) != Counter(wanted):
    refuse(f"{len(got)} lines, not the {len(wanted)} expected ones in any order")
""",
    "any_order_words": _READ
    + """
if len(got) != len(wanted):
    refuse(f"{len(got)} lines, expected {len(wanted)}")
for number, (mine, theirs) in enumerate(zip(got, wanted), 1):
    if Counter(mine.split()) != Counter(theirs.split()):
        refuse(f"line {number}: not the expected words in any order")
""",
    "floats": _READ
    + """
import math
TOLERANCE = {tolerance!r}

def same(mine, theirs):
    if mine == theirs:
        return True
    try:
        a, b = float(mine), float(theirs)
    except ValueError:
        return False
    return math.isfinite(a) and abs(a - b) <= TOLERANCE * max(1.0, abs(b))

if len(got) != len(wanted):
    refuse(f"{{len(got)}} lines, expected {{len(wanted)}}")
for number, (mine, theirs) in enumerate(zip(got, wanted), 1):
    mine, theirs = mine.split(), theirs.split()
    if len(mine) != len(theirs) or not all(map(same, mine, theirs)):
        refuse(f"line {{number}}: not within {{TOLERANCE:g}} of the expected numbers")
""",
}
"""Checkers of printed outputs by name: the expected lines in any order; each line's words in any order (a permutation);
numbers within a tolerance, absolute below 1 and relative above."""
_READ_JSON = """
import json, math, sys

def value(path):
    with open(path, encoding="utf-8", errors="surrogateescape") as stream:
        return json.load(stream)

def refuse(why):
    print(why, file=sys.stderr)
    sys.exit(1)

sys.set_int_max_str_digits(0)
got, wanted = value(sys.argv[2]), value(sys.argv[3])
"""
BUILT_IN_FOR_CALLS = {
    "any_order_items": _READ_JSON
    + """
from collections import Counter

def hashable(item):
    if isinstance(item, list):
        return ("list", *map(hashable, item))
    if isinstance(item, dict):
        return "dict", frozenset((key, hashable(value)) for key, value in item.items())
    return item

if not isinstance(got, list) or not isinstance(wanted, list) or len(got) != len(wanted):
    refuse("not a list of as many items as expected")
if Counter(map(hashable, got)) != Counter(map(hashable, wanted)):
    refuse("not the expected items in any order")
""",
    "floats": _READ_JSON
    + """
TOLERANCE = {tolerance!r}

def number(one):
    return isinstance(one, (int, float)) and not isinstance(one, bool)

def same(mine, theirs):
    if isinstance(mine, list) and isinstance(theirs, list):
        return len(mine) == len(theirs) and all(map(same, mine, theirs))
    if isinstance(mine, dict) and isinstance(theirs, dict):
        return mine.keys() == theirs.keys() and all(same(mine[key], theirs[key]) for key in mine)
    if mine == theirs or not (number(mine) and number(theirs)):
        return mine == theirs
    try:
        return math.isfinite(mine) and abs(mine - theirs) <= TOLERANCE * max(1.0, abs(theirs))
    except OverflowError:  # an int beyond every float
        return False

if not same(got, wanted):
    refuse(f"not within {{TOLERANCE:g}} of the expected numbers")
""",
}
"""Checkers of a call's result by name: the expected list's items in any order; numbers anywhere in it within a
tolerance."""


def source_of(checker: Any, call: bool) -> str:
    """The checker's program: {"code": ...}, {"name": ...} of a built-in one, "floats" with a "tolerance".

    Args:
        call: it checks a function's result; else what a program prints.

    Raises:
        JudgeError: bad_request, naming the field and the fix.
    """
    built_in = BUILT_IN_FOR_CALLS if call else BUILT_IN
    fix = f'give {{"code": source}} or {{"name": one of {", ".join(built_in)}}}'
    if not isinstance(checker, dict):
        raise bad_request("checker", f"is {shown(checker)}", fix)
    if set(checker) == {"code"}:
        return check_code(checker["code"], "checker.code")
    name = checker.get("name")
    if not isinstance(name, str) or name not in built_in:
        raise bad_request("checker.name", f"is {shown(name)}", fix)
    wanted = {"name", "tolerance"} if name == "floats" else {"name"}
    if set(checker) != wanted:
        raise bad_request("checker", f"has {', '.join(sorted(map(str, checker)))}", f"give exactly {sorted(wanted)}")
    if name != "floats":
        return built_in[name]
    tolerance = checker["tolerance"]
    if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)) or not 0 < tolerance < 1:
        raise bad_request("checker.tolerance", f"is {shown(tolerance)}", "give a number above 0 and below 1")
    return built_in["floats"].format(tolerance=float(tolerance))


class Checker:
    """The checker of one rollout. Its sandbox is started when the first output is there.

    Args:
        spawn: makes a sandbox, as in ProgramLoader.
        run: runs one test of a request in it, with what follows the test's input; None when the sandbox died.
    """

    def __init__(
        self,
        request: Request,
        spawn: Callable[[Warm, int], ZygoteHandle],
        run: Callable[[ZygoteHandle, Request, int, Sequence[Bytes]], TestResult | None],
    ) -> None:
        assert request.checker is not None
        self._judged = request
        self._request = replace(
            request,
            code=_WRAPPER.format(source=request.checker),
            checker=None,
            fn_name=None,
            order=[0],
            time_limit_s=TIME_LIMIT_S,
            memory_limit_mb=MEMORY_LIMIT_MB,
            deadline_s=None,
            semantics="process",
            language=registry.find(registry.OF_CHECKERS),
        )
        self._spawn, self._run = spawn, run
        self._zygote: ZygoteHandle | None = None
        self._works: set[int] = set()  # tests whose expected answer it took
        self.seconds = 0.0
        """Of the clock, which are not the program's."""

    def check(self, index: int, output: Bytes) -> tuple[str, str]:
        """(status, message) of a program's output for one test. JudgeError checker_failed where there is none."""
        began = time.monotonic()
        try:
            return self._check(index, output)
        finally:
            self.seconds += time.monotonic() - began

    def _check(self, index: int, output: Bytes) -> tuple[str, str]:
        code, message = self._ask(index, output)
        if code == RIGHT:
            self._works.add(index)
            return "accepted", ""
        if code in WRONG:
            return "wrong_answer", message or "the checker refuses the output"
        if index not in self._works:
            own, why = self._ask(index, self._judged.tests.outputs[index].encode())
            if own != RIGHT:
                raise JudgeError("checker_failed", f"test {index}: on the expected answer itself: {why or own}")
            self._works.add(index)
        return "wrong_answer", f"the checker cannot read the output: {message}"

    def _ask(self, index: int, output: Bytes) -> tuple[int | None, str]:
        """The checker's exit code, None for one that a limit or a signal ended, and its output.

        The output goes there as it came, after the sizes of the three: 64 MB of it become no text on this side.
        """
        tests = self._judged.tests
        three = [tests.inputs[index].encode(), output, tests.outputs[index].encode()]
        sizes = " ".join(str(len(part)) for part in three)
        request = replace(self._request, tests=TestSet([{"input": f"{sizes}\n", "output": ""}]))
        for _ in range(2):
            if self._zygote is None or not self._zygote.open:
                self._zygote, complaint = ProgramLoader(request, self._spawn).load()
                if complaint is not None:
                    raise JudgeError("checker_failed", f"does not compile: {complaint}")
            result = self._run(self._zygote, request, 0, three)
            if result is not None and not result.killed:
                return result.exit_code, result.message
            self._zygote.close()
        return None, "its sandbox was killed twice"

    def close(self) -> None:
        """End the checker's sandbox."""
        if self._zygote is not None:
            self._zygote.close()
