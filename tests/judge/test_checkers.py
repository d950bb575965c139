"""Problems with several right answers: what a checker decides, and what it cannot be made to do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from verifier_app.judge import Judge, JudgeError
from verifier_app.judge.verdict import Verdict

TESTS = [{"input": "6\n", "output": "2 3\n"}, {"input": "15\n", "output": "3 5\n"}]
DIVISORS = """
import sys
n = int(open(sys.argv[1]).read())
try:
    a, b = map(int, open(sys.argv[2]).read().split())
except ValueError:
    print("not two integers", file=sys.stderr)
    sys.exit(2)
if a * b != n or 1 in (a, b):
    print(f"{a} times {b} is not {n}", file=sys.stderr)
    sys.exit(1)
"""
SMALL_FIRST = "n = int(input())\nd = next(d for d in range(2, n) if n % d == 0)\nprint(d, n // d)"
LARGE_FIRST = "n = int(input())\nd = next(d for d in range(2, n) if n % d == 0)\nprint(n // d, d)"


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with Judge() as judge:
        yield judge


def verdict(judge: Judge, code: str, checker: Any, tests: Any = TESTS, **fields: Any) -> Verdict:
    return judge.verify({"code": code, "tests": tests, "checker": checker, **fields})


def test_every_right_answer_is_accepted_and_a_wrong_one_is_not(judge: Judge) -> None:
    checker = {"code": DIVISORS}
    assert judge.verify({"code": LARGE_FIRST, "tests": TESTS})["status"] == "wrong_answer"
    assert verdict(judge, SMALL_FIRST, checker)["status"] == "accepted"
    assert verdict(judge, LARGE_FIRST, checker)["status"] == "accepted"
    wrong = verdict(judge, "print(2, 3)", checker)
    assert (wrong["status"], wrong["failed_test"], wrong["message"]) == ("wrong_answer", 1, "2 times 3 is not 15")
    unreadable = verdict(judge, "print('two', 3)", checker)
    assert (unreadable["status"], unreadable["message"]) == ("wrong_answer", "not two integers")


def test_what_is_no_answer_is_no_matter_for_the_checker(judge: Judge) -> None:
    yes = {"code": "pass"}
    assert verdict(judge, "1 / 0", yes)["status"] == "runtime_error"
    assert verdict(judge, "while True: pass", yes, time_limit_s=0.3)["status"] == "time_limit_exceeded"
    assert verdict(judge, "print(", yes)["status"] == "compile_error"
    assert verdict(judge, "print('anything')", yes)["status"] == "accepted"


@pytest.mark.parametrize(
    ("checker", "output", "expected", "status"),
    [
        ({"name": "any_order_lines"}, "b\na\na", "a\nb\na", "accepted"),
        ({"name": "any_order_lines"}, "a\nb", "a\nb\nb", "wrong_answer"),
        ({"name": "any_order_words"}, "3 1 2\nx", "1 2 3\nx", "accepted"),
        ({"name": "any_order_words"}, "3 1 2\nx", "1 2 3\ny", "wrong_answer"),
        ({"name": "any_order_words"}, "1 2 2", "1 1 2", "wrong_answer"),
        ({"name": "floats", "tolerance": 1e-6}, "0.3333334 yes", "0.3333333 yes", "accepted"),
        ({"name": "floats", "tolerance": 1e-6}, "1000000.5", "1000000.0", "accepted"),
        ({"name": "floats", "tolerance": 1e-6}, "0.34", "0.33", "wrong_answer"),
        ({"name": "floats", "tolerance": 1e-6}, "nan", "0.33", "wrong_answer"),
        ({"name": "floats", "tolerance": 1e-6}, "inf", "0.33", "wrong_answer"),
    ],
)
def test_the_checkers_that_come_with_the_judge(
    judge: Judge, checker: Any, output: str, expected: str, status: str
) -> None:
    assert verdict(judge, f"print({output!r})", checker, [{"input": "", "output": expected}])["status"] == status


def test_a_checker_sees_each_test_by_itself_and_leaves_nothing_behind(judge: Judge) -> None:
    checker = {"code": "import os, sys\nprint(sorted(os.listdir('.')), file=sys.stderr)\nsys.exit(1)"}
    tests = [{"input": str(n), "output": ""} for n in range(3)]
    seen = verdict(judge, "print(input())", checker, tests, stop_at_first_failure=False)
    assert seen["message"] == "['answer.txt', 'input.txt', 'output.txt']"
    assert [test["status"] for test in seen["tests"]] == ["wrong_answer"] * 3


@pytest.mark.parametrize(
    "code",
    [
        "import sys\nsys.exit(3)",
        "import sys\nsys.exit(256)",
        "import sys\nsys.exit('why')",
        "raise ValueError('no')",
        "while True: pass",
        "import os\nos.kill(os.getpid(), 9)",
        "(",
    ],
)
def test_a_broken_checker_is_our_fault_and_never_a_verdict(
    judge: Judge, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("verifier_app.judge.checkers.TIME_LIMIT_S", 0.3)
    with pytest.raises(JudgeError) as caught:
        verdict(judge, SMALL_FIRST, {"code": code})
    assert caught.value.kind == "checker_failed"


HOSTILE = {
    "an output that breaks the checker": "print('x')",
    "an output that keeps it busy": "print('slow')",
    "an output that is no text": "import sys\nsys.stdout.buffer.write(b'\\xff\\xfe')",
    "nothing at all": "pass",
}


@pytest.mark.parametrize("code", HOSTILE.values(), ids=HOSTILE)
def test_a_program_cannot_make_its_wrong_answer_a_fault_of_ours(
    judge: Judge, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("verifier_app.judge.checkers.TIME_LIMIT_S", 1.0)
    fragile = "import sys\ntext = open(sys.argv[2]).read()\nwhile 'slow' in text: pass\nint(text.split()[0])"
    seen = verdict(judge, code, {"code": fragile})
    assert (seen["status"], seen["failed_test"]) == ("wrong_answer", 0)
    assert seen["message"].startswith("the checker cannot read the output")


def test_a_program_does_not_reach_its_checker_and_sees_no_answer(judge: Judge) -> None:
    code = (
        "import glob, os, sys\n"
        "found = [p for p in glob.glob('*') + glob.glob('/tmp/**', recursive=True) if os.path.isfile(p)]\n"
        "open('checker.py', 'w').write('import sys; sys.exit(0)')\n"
        "print(found, sys.argv)"
    )
    seen = verdict(judge, code, {"code": DIVISORS}, stop_at_first_failure=False, keep_output_bytes=200)
    assert seen["status"] == "wrong_answer"
    assert [test["output"] for test in seen["tests"]] == ["[] ['solution.py']\n"] * 2


def test_a_right_program_keeps_its_verdict_beside_a_slow_checker(judge: Judge) -> None:
    slow = {"code": "import time\ntime.sleep(0.6)"}
    assert verdict(judge, SMALL_FIRST, slow, deadline_s=0.5, time_limit_s=5)["status"] == "accepted"


@pytest.mark.parametrize(
    ("checker", "field"),
    [
        ("floats", "checker"), ({"name": "magic"}, "checker.name"), ({"name": "floats"}, "checker"),
        ({"name": "floats", "tolerance": 2}, "checker.tolerance"), ({"code": 1}, "checker.code"),
        ({"name": "any_order_lines", "code": "pass"}, "checker"), ({}, "checker.name"),
    ],
)  # fmt: skip
def test_a_checker_that_is_none_is_one_clear_error(judge: Judge, checker: Any, field: str) -> None:
    with pytest.raises(JudgeError, match=rf"^bad_request: {field}\b") as caught:
        verdict(judge, SMALL_FIRST, checker)
    assert caught.value.kind == "bad_request"


def called(judge: Judge, result: str, expected: str, checker: Any, **fields: Any) -> Verdict:
    """The verdict on a function that returns the result of this expression."""
    code = f"def f(n):\n    return {result}"
    return judge.verify(
        {"code": code, "fn_name": "f", "tests": [{"input": "1", "output": expected}], "checker": checker, **fields}
    )


DEEP = "__import__('functools').reduce(lambda inner, _: [inner], range(5000), [])"
ITEMS, FLOATS = {"name": "any_order_items"}, {"name": "floats", "tolerance": 1e-6}


@pytest.mark.parametrize(
    ("checker", "result", "expected", "status"),
    [
        (ITEMS, "[3, 1, 2]", "[1, 2, 3]", "accepted"),
        (ITEMS, "((2, 'b'), [1, 'a'])", '[[1, "a"], [2, "b"]]', "accepted"),  # a tuple stands for a list, as elsewhere
        (ITEMS, "[1.0, 2]", "[2, 1]", "accepted"),
        (ITEMS, "[{'b': [1], 'a': None}]", '[{"a": null, "b": [1]}]', "accepted"),
        (ITEMS, "[1, 1, 2]", "[1, 2, 2]", "wrong_answer"),
        (ITEMS, "[[2, 1]]", "[[1, 2]]", "wrong_answer"),  # the outer list's order alone
        (ITEMS, "[1, 2]", "[1, 2, 3]", "wrong_answer"),
        (ITEMS, "'123'", "[1, 2, 3]", "wrong_answer"),
        (ITEMS, "[10**5000, 1]", f"[1, 1{'0' * 5000}]", "accepted"),
        (ITEMS, "list(range(100000, 0, -1))", str(list(range(1, 100001))), "accepted"),
        (FLOATS, "[0.3333334, {'a': 2}]", '[0.3333333, {"a": 2.0000001}]', "accepted"),
        (FLOATS, "0.34", "0.33", "wrong_answer"),
        (FLOATS, "float('nan')", "0.33", "wrong_answer"),
        (FLOATS, "10**400", "0.33", "wrong_answer"),
        (FLOATS, "'0.33'", "0.33", "wrong_answer"),
        (FLOATS, "True", "0.9999999", "wrong_answer"),
        (FLOATS, "[0.33]", "0.33", "wrong_answer"),
        ({"code": "pass"}, "{1, 2}", "[1, 2]", "wrong_answer"),  # a set is no value of JSON: nothing to check
        ({"code": "pass"}, "{1: 2}", "{}", "wrong_answer"),
        ({"code": "pass"}, "'\\udc80'", '""', "accepted"),
        ({"code": "pass"}, DEEP, "[]", "accepted"),
        (ITEMS, DEEP, "[[]]", "wrong_answer"),
        ({"code": "pass"}, "1 / 0", "[]", "runtime_error"),
    ],
)
def test_a_calls_result_is_checked_as_json(judge: Judge, checker: Any, result: str, expected: str, status: str) -> None:
    assert called(judge, result, expected, checker)["status"] == status


def test_a_calls_checker_reads_arguments_result_and_expected_value(judge: Judge) -> None:
    show = {"code": "import sys\nprint(*(open(p).read() for p in sys.argv[1:]), file=sys.stderr)\nsys.exit(1)"}
    seen = called(judge, "{'a': (n, None, 1.5, 'é')}", "[2]", show, keep_output_bytes=100)
    assert seen["message"] == '1 {"a":[1,null,1.5,"\\u00e9"]} [2]'
    assert seen["tests"][0]["output"] == '{"a":[1,null,1.5,"\\u00e9"]}'


def test_a_right_result_may_be_much_longer_than_the_expected_one(judge: Judge) -> None:
    size = {"code": "import json, sys\nsys.exit(len(json.load(open(sys.argv[2]))) != 500_000)"}
    assert called(judge, "[n] * 500_000", "[]", size)["status"] == "accepted"


def test_a_result_that_would_fill_the_judges_memory_is_not_read(judge: Judge) -> None:
    assert called(judge, "[n] * 5_000_000", "[]", {"code": "pass"})["status"] == "output_limit_exceeded"
    assert called(judge, "[2, 1]", "[1, 2]", ITEMS)["status"] == "accepted"


@pytest.mark.parametrize("semantics", ["process", "official"])
def test_a_checker_holds_under_both_semantics(judge: Judge, semantics: str) -> None:
    assert called(judge, "[2, 1]", "[1, 2]", ITEMS, semantics=semantics)["status"] == "accepted"
    assert called(judge, "[2, 2]", "[1, 2]", ITEMS, semantics=semantics)["status"] == "wrong_answer"
    assert verdict(judge, LARGE_FIRST, {"code": DIVISORS}, semantics=semantics)["status"] == "accepted"


def test_a_checker_of_the_other_kind_is_refused(judge: Judge) -> None:
    with pytest.raises(JudgeError, match=r"checker\.name: is 'any_order_lines'; give .* any_order_items, floats"):
        called(judge, "1", "1", {"name": "any_order_lines"})
    with pytest.raises(JudgeError, match=r"checker\.name: is 'any_order_items'"):
        verdict(judge, SMALL_FIRST, ITEMS)


def test_the_programs_own_output_is_handed_out_where_it_is_asked_for(judge: Judge) -> None:
    tests = [{"input": "5\n", "output": "6\n"}, {"input": "7\n", "output": "0\n"}]
    request = {"code": "print(int(input()) + 1)", "tests": tests, "stop_at_first_failure": False}
    assert "output" not in judge.verify(request)["tests"][0]
    assert [test["output"] for test in judge.verify(request | {"keep_output_bytes": 64})["tests"]] == ["6\n", "8\n"]
    assert [test["output"] for test in judge.verify(request | {"keep_output_bytes": 1})["tests"]] == ["6", "8"]
    call = {"code": "def f(n):\n    return {'a': [n, None]}", "fn_name": "f", "keep_output_bytes": 64}
    (only,) = judge.verify(call | {"tests": [{"input": "1", "output": "2"}]})["tests"]
    assert only["output"] == "{'a': [1, None]}"
    with pytest.raises(JudgeError, match="keep_output_bytes"):
        judge.verify(request | {"keep_output_bytes": -1})
