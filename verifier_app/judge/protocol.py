"""What goes into the judge and what comes out: the request, checked, and the one exception.

JudgeError                a fault that is not the program's: never a verdict, never a reward
  .kind "bad_request"       a field is missing, unknown or has the wrong type (the message names it)
        "test_set_missing"  tests_ref names a set that the store does not hold: upload it and ask again
        "test_set_corrupt"  the stored set does not have the hash it is stored under
        "host_overloaded"   wall time passed while the program waited for a core: retry, never score
        "sandbox_failed"    the sandbox could not start or broke without the program's doing
        "checker_failed"    a problem's checker fails at the expected answer itself: fix the problem
        "language_missing"  this machine lacks what a language needs, such as a compiler: the message says what
        "weak_isolation"    the host offers too little and strong isolation was required
        "judge_died"        a judge process died twice under the same request
        "judge_fault"       the judge itself failed at this request: it does so again, and no other request is touched
        "closed"            the judge or the pool was closed
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from verifier_app.judge import plain_json
from verifier_app.judge.default_limits import MEMORY_LIMIT_MB, TIME_LIMIT_S
from verifier_app.judge.value_codec import argument_lines

if TYPE_CHECKING:
    from verifier_app.judge.languages.language import Language

MAX_CODE_BYTES = 4 << 20  # a rollout of 40k tokens is about 200 KB of source
MAX_TIME_LIMIT_S = 3600.0
MIN_MEMORY_MB = 32
MAX_TESTS = 1_000_000
STATUSES = (
    "accepted",
    "wrong_answer",
    "time_limit_exceeded",
    "memory_limit_exceeded",
    "runtime_error",
    "compile_error",
    "output_limit_exceeded",
)


def printable(text: str) -> str:
    """The text with everything escaped that is no character for a person, such as lone surrogates and controls."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def encodable(text: str) -> bool:
    """Whether it is text: a lone surrogate is no character and has no bytes."""
    try:
        if not text.isascii():
            text.encode()
    except UnicodeEncodeError:
        return False
    return True


class JudgeError(Exception):
    """A fault on our side. `kind` is one of the words in the module's docstring."""

    def __init__(self, kind: str, message: str) -> None:
        message = printable(message)
        super().__init__(f"{kind}: {message}")
        self.kind = kind
        self.message = message

    def __reduce__(self) -> tuple[type[JudgeError], tuple[str, str]]:
        return type(self), (self.kind, self.message)


def bad_request(field: str, problem: str, fix: str) -> JudgeError:
    """The error of a malformed request: what is wrong with which field, and what to do."""
    return JudgeError("bad_request", f"{field}: {problem}; {fix}")


def judge_fault(error: BaseException) -> JudgeError:
    """The error of an exception that nobody foresaw, with the place where it was raised."""
    place, trace = "", error.__traceback__
    while trace is not None:
        place = f" at {os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}"
        trace = trace.tb_next
    return JudgeError("judge_fault", f"{type(error).__name__}{place}: {str(error)[:200]}")


class TestSet:
    """Inputs and expected outputs of one problem, checked once and kept by the judge alone.

    For a call-based problem `expected[i]` is the parsed output, otherwise the text.
    """

    __test__ = False  # not a pytest class
    __slots__ = ("_values", "inputs", "outputs")

    def __init__(self, tests: Any, field: str = "tests") -> None:
        if not isinstance(tests, list):
            raise bad_request(field, f"is {type(tests).__name__}", "give a list of {input, output}")
        if not tests:
            raise bad_request(field, "is empty", "a program without tests has no verdict")
        for index, test in enumerate(tests):
            if not isinstance(test, dict) or set(test) != {"input", "output"}:
                raise bad_request(f"{field}[{index}]", "is not an {input, output} object", "give exactly these keys")
            for key in ("input", "output"):
                if not isinstance(test[key], str):
                    kind = type(test[key]).__name__
                    raise bad_request(f"{field}[{index}].{key}", f"is {kind}", "give a string")
                if not encodable(test[key]):
                    raise bad_request(f"{field}[{index}].{key}", "has a lone surrogate", "give text")
        self.inputs: list[str] = [test["input"] for test in tests]
        self.outputs: list[str] = [test["output"] for test in tests]
        self._values: list[Any] | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    def values(self) -> list[Any]:
        """Expected values of a call-based problem; checks that inputs and outputs are JSON (once)."""
        if self._values is None:
            values = []
            for index, (text, output) in enumerate(zip(self.inputs, self.outputs, strict=True)):
                try:
                    for line in argument_lines(text):
                        plain_json.loads(line)
                except ValueError:
                    fix = "give one JSON value a line for a call-based problem"
                    raise bad_request(f"tests[{index}].input", "is not JSON", fix) from None
                try:
                    values.append(plain_json.loads(output))
                except ValueError:
                    fix = "give one JSON value for a call-based problem"
                    raise bad_request(f"tests[{index}].output", "is not JSON", fix) from None
            self._values = values
        return self._values


@dataclass(frozen=True)
class Request:
    """One rollout to judge, checked. Times in seconds, memory in MiB."""

    code: str
    fn_name: str | None
    tests: TestSet
    order: Sequence[int]
    time_limit_s: float
    memory_limit_mb: int
    deadline_s: float | None
    stop_at_first_failure: bool
    decimal_tolerance: float | None
    semantics: str
    language: Language
    checker: str | None = None
    """Source of the program that decides about an output, where the expected one is not the only right one."""
    keep_output_bytes: int = 0
    """Of each test's output, handed out with the verdict."""


FIELDS = {
    "code",
    "fn_name",
    "tests",
    "tests_ref",
    "order",
    "time_limit_s",
    "memory_limit_mb",
    "deadline_s",
    "stop_at_first_failure",
    "decimal_tolerance",
    "semantics",
    "language",
    "checker",
    "keep_output_bytes",
}
MAX_KEPT_OUTPUT = 1 << 16


def shown(value: Any) -> str:
    """A value in a message: its repr's beginning; one that has none, such as an int of 5000 digits, by its type."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return f"of type {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


def _number(request: dict[str, Any], field: str, default: Any, low: float, high: float) -> Any:
    """A finite number in (low, high], or the default when the field is absent or None."""
    value = request.get(field)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value or abs(value) == math.inf:
        raise bad_request(field, f"is {shown(value)}", "give a finite number")
    if not low < value <= high:
        raise bad_request(field, f"is {shown(value)}", f"give a number above {low:g} and at most {high:g}")
    return value


def check_reference(reference: Any) -> tuple[str, int]:
    """(sha256, count) of a tests_ref."""
    fix = 'give {"sha256": 64 hex digits, "count": number of tests}'
    if not isinstance(reference, dict) or set(reference) != {"sha256", "count"}:
        raise bad_request("tests_ref", "is not a {sha256, count} object", fix)
    sha, count = reference["sha256"], reference["count"]
    if not isinstance(sha, str) or len(sha) != 64 or set(sha) - set("0123456789abcdef"):
        raise bad_request("tests_ref.sha256", f"is {str(sha)[:80]!r}", fix)
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MAX_TESTS:
        raise bad_request("tests_ref.count", f"is {shown(count)}", fix)
    return sha, count


def check_code(code: Any, field: str = "code") -> str:
    """The program's source: a string of at most MAX_CODE_BYTES."""
    if not isinstance(code, str):
        raise bad_request(field, f"is {type(code).__name__}", "give the program's source as a string")
    if len(code) > MAX_CODE_BYTES:
        raise bad_request(field, f"has {len(code)} characters", f"give at most {MAX_CODE_BYTES}")
    return code


def _language(request: dict[str, Any]) -> tuple[Language, str]:
    """Language and semantics, which the language has to know."""
    from verifier_app.judge.languages.registry import find

    language, semantics = find(request.get("language")), request.get("semantics")
    if semantics not in (None, *language.semantics):
        more = f" with language {language.name}" if request.get("language") else ""
        raise bad_request("semantics", f"is {shown(semantics)}{more}", f"give {' or '.join(language.semantics)}")
    if request.get("fn_name") is not None and not language.calls:
        fix = "leave it out: its programs read standard input"
        raise bad_request("fn_name", f"is {shown(request['fn_name'])} with language {language.name}", fix)
    return language, semantics or language.semantics[0]


def _tests(request: dict[str, Any], store: Any) -> TestSet:
    """The request's own tests, or those that it names in the store."""
    inline, reference = request.get("tests"), request.get("tests_ref")
    if (inline is None) == (reference is None):
        state = "and tests_ref are both missing" if inline is None else "and tests_ref are both given"
        raise bad_request("tests", state, "give exactly one of them")
    if inline is not None:
        return TestSet(inline)
    sha, count = check_reference(reference)
    if store is None:
        raise JudgeError("test_set_missing", f"{sha}: no store: pass one or set VERIFIER_TESTS_DIR")
    found: TestSet = store.get(sha, count)
    return found


def _order(order: Any, count: int) -> Sequence[int]:
    """Indices of the tests as they run; None: as they are given."""
    if order is None:
        return range(count)
    if (
        not isinstance(order, list)
        or any(isinstance(i, bool) or not isinstance(i, int) for i in order)
        or sorted(order) != list(range(count))
    ):
        raise bad_request("order", "is not a permutation of the tests", f"give each of 0..{count - 1} once")
    return order


def parse_request(request: Any, store: Any) -> Request:
    """Check a request; `store` (get(sha256, count) -> TestSet) resolves tests_ref. Raises JudgeError."""
    if not isinstance(request, dict):
        raise bad_request("request", f"is {type(request).__name__}", "give a JSON object")
    unknown = sorted(str(key) for key in set(request) - FIELDS)
    if unknown:
        raise bad_request(unknown[0][:80], "is an unknown field", f"known fields: {', '.join(sorted(FIELDS))}")
    if "code" not in request:
        raise bad_request("code", "is missing", "give the program's source")
    code = check_code(request["code"])
    fn_name = request.get("fn_name")
    if fn_name is not None and not (isinstance(fn_name, str) and fn_name.isidentifier()):
        raise bad_request("fn_name", f"is {shown(fn_name)}", "give a Python identifier, or null for stdin")
    tests = _tests(request, store)
    order = _order(request.get("order"), len(tests))
    stop = request.get("stop_at_first_failure", True)
    if not isinstance(stop, bool):
        raise bad_request("stop_at_first_failure", f"is {shown(stop)}", "give true or false")
    language, semantics = _language(request)
    checker = request.get("checker")
    if checker is not None:
        from verifier_app.judge.checkers import source_of

        checker = source_of(checker, call=fn_name is not None)
    kept = request.get("keep_output_bytes", 0)
    if isinstance(kept, bool) or not isinstance(kept, int) or not 0 <= kept <= MAX_KEPT_OUTPUT:
        raise bad_request("keep_output_bytes", f"is {shown(kept)}", f"give an integer from 0 to {MAX_KEPT_OUTPUT}")
    if fn_name is not None:
        tests.values()
    return Request(
        code=code,
        fn_name=fn_name,
        tests=tests,
        order=order,
        time_limit_s=float(_number(request, "time_limit_s", TIME_LIMIT_S, 0, MAX_TIME_LIMIT_S)),
        memory_limit_mb=int(_number(request, "memory_limit_mb", MEMORY_LIMIT_MB, MIN_MEMORY_MB - 1, 1 << 20)),
        deadline_s=_number(request, "deadline_s", None, 0, 1e6),
        stop_at_first_failure=stop,
        decimal_tolerance=_number(request, "decimal_tolerance", None, 0, 1.0),
        semantics=semantics,
        language=language,
        checker=checker,
        keep_output_bytes=kept,
    )
