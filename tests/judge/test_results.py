"""What a called function may return: other types by their value, deep and long values, whatever the caller's limits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from verifier_app.judge import Judge
from verifier_app.judge.plain_json import is_deep, loads

HOME = Path(__file__).resolve().parents[2]
IMPORTS = """
from fractions import Fraction
from decimal import Decimal
from collections import UserDict, UserList, UserString, ChainMap
from types import MappingProxyType
class Sly:
    def __eq__(self, other): return True
    def __hash__(self): return 0
"""
EQUAL = [  # an expression and the JSON value that Python's == finds equal
    ("Fraction(6)", 6),
    ("[Fraction(1, 2), [Fraction(4, 2)]]", [0.5, [2]]),
    ("Decimal('1.50')", 1.5),
    ("Decimal(10) ** 30", 10**30),
    ("complex(6, 0)", 6),
    ("[1 + 0j]", [1]),
    ("UserList([1, UserList([2])])", [1, [2]]),
    ("UserDict(a=[Fraction(1)])", {"a": [1]}),
    ("ChainMap({'a': 1}, {'b': 2})", {"a": 1, "b": 2}),
    ("MappingProxyType({'a': 1})", {"a": 1}),
    ("UserString('ab')", "ab"),
    ("{UserString('a'): 1}", {"a": 1}),
    ("(Fraction(1), 2)", [1, 2]),
    ("Decimal('Infinity')", float("inf")),
    ("10 ** 6000", 10**6000),
    ("[10 ** 6000, 1]", [10**6000, 1]),
]
DIFFERENT = [
    ("Fraction(1, 3)", 0.3333333333333333),
    ("Decimal('0.1')", 0.1),
    ("complex(6, 1)", 6),
    ("[float('nan')]", [float("nan")]),
    ("{'a': float('nan')}", {"a": float("nan")}),
    ("Decimal('NaN')", float("nan")),
    ("Sly()", 6),
    ("[Sly()]", [6]),
    ("{'a': Sly()}", {"a": 6}),
    ("{Sly(): 6}", {"a": 6}),
    ("{1: 2}", {"1": 2}),
    ("{'a': 1, 'b': 2}", {"a": 1}),
    ("{'b': 1}", {"a": 1}),
    ("range(3)", [0, 1, 2]),
    ("{1}", [1]),
    ("[(1,)]", [[1]]),
    ("10 ** 6000 + 1", 10**6000),
]
NUMPY = [
    ("np.array([6])", 6, True),
    ("np.array([6])", [6], True),
    ("np.array([[6]])", [6], True),
    ("[np.array([6])]", [6], True),
    ("np.array(6)", 6, True),
    ("np.array([6, 6])", [6, 6], False),
    ("np.array([6])", 5, False),
    ("np.complex128(6)", 6, True),
    ("np.longdouble(0.5)", 0.5, True),
    ("[np.float64(0.5), np.int8(3)]", [0.5, 3], True),
]


@pytest.fixture(scope="module")
def judge() -> Any:
    with Judge() as judge:
        yield judge


def dumps(value: Any) -> str:
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return json.dumps(value)
    finally:
        sys.set_int_max_str_digits(limit)


def status(judge: Judge, code: str, expected: str, argument: str = "0") -> str:
    request = {"code": code, "fn_name": "f", "tests": [{"input": argument, "output": expected}]}
    verdict = judge.verify(request)
    assert verdict["status"] in ("accepted", "wrong_answer"), verdict["message"]
    return str(verdict["status"])


@pytest.mark.parametrize(("expression", "expected"), EQUAL, ids=[case[0] for case in EQUAL])
def test_a_value_that_python_finds_equal_is_accepted(judge: Judge, expression: str, expected: Any) -> None:
    assert status(judge, f"{IMPORTS}def f(n): return {expression}", dumps(expected)) == "accepted"


@pytest.mark.parametrize(("expression", "expected"), DIFFERENT, ids=[case[0] for case in DIFFERENT])
def test_no_other_value_is_and_no_equality_of_the_programs_own_decides(
    judge: Judge, expression: str, expected: Any
) -> None:
    assert status(judge, f"{IMPORTS}def f(n): return {expression}", dumps(expected)) == "wrong_answer"


@pytest.mark.parametrize(("expression", "expected", "equal"), NUMPY, ids=[f"{case[0]}-{case[1]}" for case in NUMPY])
def test_arrays_of_one_element_and_scalars_count_by_value(
    judge: Judge, expression: str, expected: Any, equal: bool
) -> None:
    found = status(judge, f"import numpy as np\ndef f(n): return {expression}", dumps(expected))
    assert (found == "accepted") == equal


METHODS = {
    "set in __init__": "class Solution:\n  def __init__(self): self.f = lambda n: n + 1",
    "by __getattr__": "class Solution:\n  def __getattr__(self, name): return lambda n: n + 1",
    "behind a decorator": "def once(cls): return lambda: cls()\n@once\nclass Solution:\n  def f(self, n): return n + 1",
    "inherited": "class Base:\n  def f(self, n): return n + 1\nclass Solution(Base): pass",
    "a function beside a class": "class Solution:\n  def g(self): pass\ndef f(n): return n + 1",
    "a function beside another class": "class Solution:\n  def __init__(self, n): pass\ndef f(n): return n + 1",
    "a class method": "class Solution:\n  @classmethod\n  def f(cls, n): return n + 1",
}


@pytest.mark.parametrize("code", METHODS.values(), ids=METHODS)
def test_the_function_is_found_on_the_instance(judge: Judge, code: str) -> None:
    assert status(judge, code, "1") == "accepted"


DEEP = "def f(n):\n  r = []\n  for _ in range(n): r = [r]\n  return r"
CALLER = """
import decimal, sys
from verifier_app.judge import verify
def deep(n, left): return left(n) if n == 0 else deep(n - 1, left)
def ask(_):
    lists = "[" * 3000 + "]" * 3000
    nested = {"code": '''%s''', "fn_name": "f", "tests": [{"input": "900", "output": "[" * 901 + "]" * 901}]}
    back = {"code": "def f(n): return n", "fn_name": "f", "tests": [{"input": lists, "output": lists}]}
    digits = [{"input": "1" * 5000, "output": "1" * 4999 + "2"}]
    long = {"code": "def f(n): return n + 1", "fn_name": "f", "tests": digits}
    words = {"code": "print('1.0 x')\\nprint(2.50)", "tests": [{"input": "", "output": "1.0 x\\n2.5"}]}
    wrong = {"code": "print('1.0 x')", "tests": [{"input": "", "output": "1 x"}]}
    return [verify(request)["status"] for request in (nested, back, long, words, wrong)]
"""
LIMITS = {
    "as they are": "print(*ask(0))",
    "no limit on digits": "sys.set_int_max_str_digits(0); print(*ask(0))",
    "the lowest limit on digits": "sys.set_int_max_str_digits(640); print(*ask(0))",
    "a high recursion limit": "sys.setrecursionlimit(10**6); print(*ask(0))",
    "a low recursion limit": "ask(0); sys.setrecursionlimit(120); print(*ask(0))",
    "a decimal context without traps": "decimal.getcontext().traps[decimal.InvalidOperation] = False; print(*ask(0))",
}


@pytest.mark.parametrize("limit", LIMITS.values(), ids=LIMITS)
def test_the_callers_limits_have_no_influence(limit: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CALLER % DEEP + limit],
        env={**os.environ, "PYTHONPATH": str(HOME)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["accepted"] * 4 + ["wrong_answer"], done.stderr[-2000:]


def test_a_program_that_lowers_its_own_recursion_limit_may_return_what_is_deeper(judge: Judge) -> None:
    code = DEEP.replace("  r = []", "  import sys\n  sys.setrecursionlimit(60)\n  r = []")
    assert status(judge, code, "[" * 201 + "]" * 201, "200") == "accepted"


def test_deep_json_is_read_without_recursion_and_as_strictly() -> None:
    depth = 30_000
    value = loads("[" * depth + ' {"a,}": [1, NaN, "]\\""]}' + "]" * depth)
    for _ in range(depth):
        (value,) = value
    assert value["a,}"][0] == 1
    assert value["a,}"][2] == ']"'
    assert is_deep("[" * 101 + "]" * 101)
    assert not is_deep("[]," * 5000 + '"' + "[" * 200 + '"')
    for inner in ("", "1 2]", "1,]", "]]", '{"a" 1}]', "{1: 2}]", "}", '{"a": 1,}]', ",1]", '"]', "nul]"):
        with pytest.raises(ValueError):
            loads("[" * 200 + inner + "]" * 199)
