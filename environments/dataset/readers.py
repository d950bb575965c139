"""A reader for each source: its row in, a `Row` out; `Dropped` for a row that cannot be used.

The formats are those that the data sets' own cards and loaders describe; each quirk is named where it is handled.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from environments.dataset.call_results import wide_integers
from environments.dataset.drop_reasons import Dropped
from environments.dataset.rows import Row, Test, function_name, limits, literal, need, pairs, solutions, split_tests
from environments.dataset.wrappers import unwrap
from environments.livecode.problems.livecodebench import from_livecodebench, iso_date
from environments.livecode.problems.problem import NoTests, ProblemError

Reader = Callable[[dict[str, Any]], Row]


def livecodebench(row: dict[str, Any]) -> Row:
    """livecodebench/code_generation_lite: private tests may be base64 over zlib over a pickle of a string."""
    try:
        problem = from_livecodebench(row)
    except NoTests as error:
        raise Dropped("no_tests", str(error)) from None
    except ProblemError as error:
        raise Dropped("unparsable_tests", str(error)) from None
    time_limit_s, memory_limit_mb = limits(row)
    return Row(
        statement=problem.statement,
        tests=[{"input": test.input, "output": test.output} for test in problem.tests],
        fn_name=problem.fn_name,
        starter_code=problem.starter_code,
        id=problem.id,
        difficulty=problem.difficulty,
        date=problem.date,
        platform=problem.platform,
        time_limit_s=time_limit_s,
        memory_limit_mb=memory_limit_mb,
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
    """DeepCoder's `lcbv5`: tests [{input, output, testtype}], the function's name in metadata.func_name.

    Copies of it keep the metadata in each test instead of a column.
    """
    return _livecodebench_tests(row, need(row, "tests"), need(row, "problem"))


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
    statement = need(row, "prompt", "problem", "problem_statement")
    if not info.get("test_cases") and info.get("ground_truth"):  # LiveCodeBench's problems in copies of the set
        return _livecodebench_tests(row, info["ground_truth"], statement)
    return _test_cases(row, literal(info.get("test_cases") or [], "test_cases"), statement)


def rlvr(row: dict[str, Any]) -> Row:
    """NousResearch/RLVR_Coding_Problems: tests {"input", "output"}; fn_name "none" or missing means stdin.

    Results of LiveCodeBench's calls are JSON text, those of the other sources are wrapped in a list.
    """
    tests = literal(need(row, "tests"), "tests")
    name = row.get("fn_name")
    if isinstance(tests, dict):
        name = tests.get("fn_name", name)
        given = pairs(tests.get("input"), tests.get("output"))
    else:
        given = [(test.get("input"), test.get("output")) for test in _list(tests)]
    fn_name = None if name in ("none", "None") else function_name(name)
    if fn_name is None and row.get("problem_type") == "func":
        raise Dropped("missing_column", "fn_name")
    found, readings = split_tests(given, fn_name, json_text=True)
    return _row(row, need(row, "problem", "question", "prompt"), found, readings, fn_name)


def _livecodebench_tests(row: dict[str, Any], tests: Any, statement: Any) -> Row:
    tests = _list(literal(tests, "tests"))
    kinds = {str(test.get("testtype", "stdin")) for test in tests}
    if len(kinds) > 1:
        raise Dropped("mixed_tests", ", ".join(sorted(kinds)))
    fn_name = None
    if kinds == {"functional"}:
        metadata = [literal(holder.get("metadata") or {}, "metadata") for holder in (row, tests[0])]
        names = [each.get("func_name") for each in metadata if isinstance(each, dict)]
        fn_name = function_name(next((name for name in names if name), None))
        if fn_name is None:
            raise Dropped("missing_column", "metadata.func_name")
    # A LiveCodeBench output is JSON text already: a one-element list is what the function returns.
    found, _ = split_tests([(test.get("input"), test.get("output")) for test in tests], fn_name, json_text=True)
    return _row(row, statement, found, [], fn_name)


def _two_lists(row: dict[str, Any], tests: Any, statement: Any) -> Row:
    kept = literal(tests, "tests")
    if not isinstance(kept, dict):
        raise Dropped("unparsable_tests", f"tests are a {type(kept).__name__}")
    fn_name = function_name(kept.get("fn_name"))
    found, readings = split_tests(pairs(kept.get("inputs") or [], kept.get("outputs") or []), fn_name)
    return _row(row, statement, found, readings, fn_name)


def _test_cases(row: dict[str, Any], cases: Any, statement: Any) -> Row:
    cases = _list(cases)
    kinds = {str(case.get("type") or case.get("testtype") or "stdin_stdout") for case in cases}
    names = {function_name(case.get("fn_name")) for case in cases}
    if len(kinds) > 1 or len(names) > 1:
        raise Dropped("mixed_tests", ", ".join(sorted(kinds)))
    fn_name = names.pop() if kinds == {"function_call"} else None
    if kinds == {"function_call"} and not fn_name:
        raise Dropped("missing_column", "fn_name")
    found, readings = split_tests([(case.get("input"), case.get("output")) for case in cases], fn_name)
    return _row(row, statement, found, readings, fn_name)


def _list(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise Dropped("unparsable_tests", "tests are not a list of objects")
    if not value:
        raise Dropped("no_tests")
    return value


def _row(
    row: dict[str, Any], statement: Any, tests: list[Test], readings: list[list[Test]], fn_name: str | None
) -> Row:
    if not isinstance(statement, str):
        raise Dropped("missing_column", "the statement is no text")
    statement, starter_code = unwrap(statement)
    starter_code = row.get("starter_code") or (starter_code if fn_name and fn_name in starter_code else "")
    if not isinstance(starter_code, str):
        raise Dropped("invalid", f"starter_code is a {type(starter_code).__name__}")
    difficulty = row.get("difficulty")
    known = isinstance(difficulty, str) and difficulty and difficulty.lower() not in ("unknown_difficulty", "unknown")
    try:
        date = iso_date(row.get("contest_date") or row.get("date"))
    except ValueError:
        date = None  # nothing is chosen by it in these sources
    time_limit_s, memory_limit_mb = limits(row)
    return Row(
        statement=statement,
        tests=tests,
        readings=readings,
        fn_name=fn_name,
        starter_code=starter_code,
        solutions=solutions(next((row[name] for name in ("solutions", "gold_standard_solution") if row.get(name)), [])),
        difficulty=str(difficulty).lower() if known else None,
        date=date,
        time_limit_s=time_limit_s,
        memory_limit_mb=memory_limit_mb,
    )


def read_row(reader: str | Reader, raw: dict[str, Any]) -> Row:
    """A source's row by this reader, or by ours of that name; Dropped for one of any other shape, too."""
    read = READERS[reader] if isinstance(reader, str) else reader
    with wide_integers():
        try:
            return read(raw)
        except (TypeError, ValueError, LookupError, AttributeError, RecursionError, OverflowError) as error:
            raise Dropped("malformed", f"{type(error).__name__}: {error}") from None


READERS: dict[str, Reader] = {
    "livecodebench": livecodebench,
    "deepcoder_taco": deepcoder_taco,
    "deepcoder_primeintellect": deepcoder_primeintellect,
    "deepcoder_lcbv5": deepcoder_lcbv5,
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
