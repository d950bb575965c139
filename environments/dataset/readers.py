"""A reader for each source: its row in, a `Row` out; `Dropped` for a row that cannot be used.

The formats are those that the data sets' own cards and loaders describe; each quirk is named where it is handled.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from environments.dataset.rows import Dropped, Row, literal, need, pairs, solutions, split_tests
from environments.livecode.problems import ProblemError, from_livecodebench

Reader = Callable[[dict[str, Any]], Row]


def livecodebench(row: dict[str, Any]) -> Row:
    """livecodebench/code_generation_lite: private tests may be base64 over zlib over a pickle of a string."""
    try:
        problem = from_livecodebench(row)
    except ProblemError as error:
        reason = "no_tests" if "no tests" in str(error) else "unparsable_tests"
        raise Dropped(reason, str(error)) from None
    return Row(
        statement=problem.statement,
        tests=[{"input": test.input, "output": test.output} for test in problem.tests],
        fn_name=problem.fn_name,
        starter_code=problem.starter_code,
        id=problem.id,
        difficulty=problem.difficulty,
        date=problem.date,
        platform=problem.platform,
    )


def deepcoder_taco(row: dict[str, Any]) -> Row:
    """DeepCoder's `taco`: tests {"inputs", "outputs", "fn_name"?}; a call's outputs may be wrapped in a list."""
    return _two_lists(row, need(row, "tests"), statement=need(row, "problem"))


def taco_verified(row: dict[str, Any]) -> Row:
    """likaixin/TACO-verified: `input_output` is JSON or a Python literal; its items are strings or lists."""
    return _two_lists(row, need(row, "input_output"), statement=need(row, "question", "problem"))


def deepcoder_primeintellect(row: dict[str, Any]) -> Row:
    """DeepCoder's `primeintellect`: tests [{type, input, output, fn_name?}]."""
    return _test_cases(row, literal(need(row, "tests"), "tests"), statement=need(row, "problem"))


def deepcoder_lcbv5(row: dict[str, Any]) -> Row:
    """DeepCoder's `lcbv5`: tests [{input, output, testtype}], the function's name in metadata.func_name."""
    tests = _list(literal(need(row, "tests"), "tests"))
    kinds = {str(test.get("testtype", "stdin")) for test in tests}
    if len(kinds) > 1:
        raise Dropped("mixed_tests", ", ".join(sorted(kinds)))
    metadata = literal(row.get("metadata") or "{}", "metadata")
    fn_name = metadata.get("func_name") if isinstance(metadata, dict) and kinds == {"functional"} else None
    if kinds == {"functional"} and not fn_name:
        raise Dropped("missing_column", "metadata.func_name")
    found, unwrapped = split_tests([(test.get("input"), test.get("output")) for test in tests], fn_name)
    # a LiveCodeBench output is JSON text already; a one-element list is what the function returns
    del unwrapped
    return _row(row, need(row, "problem"), found, None, fn_name)


def deepcoder_codeforces(row: dict[str, Any]) -> Row:
    """DeepCoder's `codeforces`: tests [{input, output}], all over stdin."""
    tests = _list(literal(need(row, "tests"), "tests"))
    found, _ = split_tests([(test.get("input"), test.get("output")) for test in tests], None)
    return _row(row, need(row, "problem"), found, None, None)


def synthetic1(row: dict[str, Any]) -> Row:
    """PrimeIntellect/SYNTHETIC-1 and verifiable-coding-problems: `verification_info` is JSON or a Python literal."""
    kind = row.get("task_type", "verifiable_code")
    if kind != "verifiable_code":
        raise Dropped("not_code", str(kind))
    info = literal(need(row, "verification_info"), "verification_info")
    if not isinstance(info, dict):
        raise Dropped("unparsable_tests", f"verification_info is a {type(info).__name__}")
    if str(info.get("language", "python")).lower() not in ("python", "python3"):
        raise Dropped("not_python", str(info["language"]))
    cases = literal(info.get("test_cases", []), "test_cases")
    return _test_cases(row, cases, statement=need(row, "prompt", "problem"))


def rlvr(row: dict[str, Any]) -> Row:
    """NousResearch/RLVR_Coding_Problems: tests {"input", "output"}; fn_name "none" or missing means stdin."""
    tests = literal(need(row, "tests"), "tests")
    fn_name = row.get("fn_name")
    if isinstance(tests, dict):
        fn_name = tests.get("fn_name", fn_name)
        given = pairs(tests.get("input"), tests.get("output"))
    else:
        given = [(test.get("input"), test.get("output")) for test in _list(tests)]
    fn_name = None if fn_name in (None, "", "none", "None") else str(fn_name)
    found, unwrapped = split_tests(given, fn_name)
    return _row(row, need(row, "problem", "question", "prompt"), found, unwrapped, fn_name)


def _two_lists(row: dict[str, Any], tests: Any, statement: str) -> Row:
    kept = literal(tests, "tests")
    if not isinstance(kept, dict):
        raise Dropped("unparsable_tests", f"tests are a {type(kept).__name__}")
    fn_name = kept.get("fn_name") or None
    found, unwrapped = split_tests(pairs(kept.get("inputs", []), kept.get("outputs", [])), fn_name)
    return _row(row, statement, found, unwrapped, fn_name)


def _test_cases(row: dict[str, Any], cases: Any, statement: str) -> Row:
    cases = _list(cases)
    kinds = {str(case.get("type", "stdin_stdout")) for case in cases}
    names = {case.get("fn_name") for case in cases}
    if len(kinds) > 1 or len(names) > 1:
        raise Dropped("mixed_tests", ", ".join(sorted(kinds)))
    fn_name = names.pop() if kinds == {"function_call"} and names else None
    if kinds == {"function_call"} and not fn_name:
        raise Dropped("missing_column", "fn_name")
    found, unwrapped = split_tests([(case.get("input"), case.get("output")) for case in cases], fn_name)
    return _row(row, statement, found, unwrapped, fn_name)


def _list(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise Dropped("unparsable_tests", "tests are not a list of objects")
    if not value:
        raise Dropped("no_tests")
    return value


def _row(
    row: dict[str, Any], statement: Any, tests: list[Any], unwrapped: list[Any] | None, fn_name: str | None
) -> Row:
    if not isinstance(statement, str):
        raise Dropped("missing_column", "the statement is no text")
    difficulty = row.get("difficulty")
    date = row.get("contest_date") or row.get("date")
    return Row(
        statement=statement,
        tests=tests,
        unwrapped=unwrapped,
        fn_name=fn_name,
        starter_code=row.get("starter_code") or "",
        solutions=solutions(next((row[name] for name in ("solutions", "gold_standard_solution") if row.get(name)), [])),
        difficulty=difficulty.lower() if isinstance(difficulty, str) and difficulty else None,
        date=date if isinstance(date, str) else None,
    )


READERS: dict[str, Reader] = {
    "livecodebench": livecodebench,
    "deepcoder_taco": deepcoder_taco,
    "deepcoder_primeintellect": deepcoder_primeintellect,
    "deepcoder_lcbv5": deepcoder_lcbv5,
    "deepcoder_codeforces": deepcoder_codeforces,
    "taco_verified": taco_verified,
    "synthetic1": synthetic1,
    "rlvr": rlvr,
}


def parse_line(line: bytes | str) -> dict[str, Any]:
    """A JSON line's object; Dropped where it is none."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Dropped("invalid_json", str(error)) from None
    if not isinstance(value, dict):
        raise Dropped("invalid_json", f"a {type(value).__name__}, not an object")
    return value
