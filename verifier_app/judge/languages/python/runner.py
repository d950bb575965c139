"""The test's process: confined, it runs the program once and leaves with os._exit.

Everything here shares its memory with untrusted code. Nothing it reports can pass a test: in stdin mode the judge
compares the raw bytes of descriptor 1, in call mode one tagged-JSON value from descriptor 3, and how the process ended
is what the zygote saw in wait4.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

from verifier_app.judge.languages.python import respawn
from verifier_app.judge.languages.python.ending import EXIT_EXCEPTION, leave, report
from verifier_app.judge.value_codec import argument_lines, encode

RESULT_FD = 3
ENCODING_RECURSION = 100_000
EXIT_NO_VALUE = 97  # call mode: the program left before its function returned


def no_other() -> bool:
    """Whether another test follows, where each has a process of its own."""
    return False


def run_stdin(code: types.CodeType, module: types.ModuleType, writes_late: bool, respawned: str | None) -> None:
    """Run the program as __main__ and leave. SystemExit of any code is a normal end (LiveCodeBench).

    writes_late: may_write_late's answer for the source. respawned: the source, if processes may be started that run it.
    """
    status = 0
    out, raw = sys.stdout, sys.stdout.buffer
    try:
        if respawned is not None:
            respawn.prepare(module, respawned)
        exec(code, module.__dict__)
    except SystemExit:
        pass
    except BaseException:
        status = report()
    leave(status, out, raw, writes_late)


def run_call(code: types.CodeType, module: types.ModuleType, fn_name: str) -> None:
    """Define the program, call its function with the arguments on descriptor 0, write the value to descriptor 3."""

    def define() -> Callable[..., Any]:
        exec(code, module.__dict__)
        return _find(module, fn_name)

    run_to_value(define)


def run_to_value(define: Callable[[], Callable[..., Any]], another: Callable[[], bool] = no_other) -> None:
    """Call what `define` gives with the arguments on descriptor 0, write the value to descriptor 3, and leave.

    another: as a guest's `run` has it (languages/language.py); the same function is called for the next test.
    """
    # the program may replace the modules' names
    exit_now, loads, limit, deeper, longer = (
        os._exit, json.loads, sys.getrecursionlimit, sys.setrecursionlimit, _any_digits,
    )  # fmt: skip
    text_of, nothing, write, encoded, close, now_closed = _text_of, _to_nothing, _write, encode, _close, _closed
    status, function = EXIT_NO_VALUE, None
    closed: list[int] = []  # what the program closed stays so in its next test
    try:
        while True:
            text = text_of(0)
            with longer():
                arguments = [loads(line) for line in argument_lines(text)]
            nothing(0)
            close(*closed)
            if function is None:
                function = define()
            value = function(*arguments)
            chosen = limit()
            deeper(ENCODING_RECURSION)  # the program may have chosen less
            write(RESULT_FD, encoded(value))
            closed = now_closed()
            if not another():
                break
            deeper(chosen)
        status = 0
    except SystemExit:
        os.write(2, b"\nSystemExit: the program left before its function returned\n")
    except BaseException:
        status = report()
    exit_now(status)


def run_to_text(printed: Callable[[str], str], another: Callable[[], bool] = no_other) -> None:
    """Run what `printed` runs on the text of descriptor 0, write what it returns to descriptor 1, and leave.

    The program itself finds both descriptors empty. another: as in `run_to_value`.
    """
    exit_now, text_of, nothing, write, dup = os._exit, _text_of, _to_nothing, _write, os.dup
    close, now_closed = _close, _closed
    status = EXIT_EXCEPTION
    closed: list[int] = []
    try:
        while True:
            text = text_of(0)
            out = dup(1)
            nothing(0, 1)
            close(*closed)
            write(out, printed(text).encode("utf-8", "surrogatepass"))
            close(out)
            closed = now_closed()
            if not another():
                break
        status = 0
    except BaseException:
        status = report()
    exit_now(status)


def _closed(fstat: Callable[[int], object] = os.fstat) -> list[int]:
    """Which of the standard descriptors are closed."""
    found = []
    for fd in (0, 1, 2):
        try:
            fstat(fd)
        except OSError:
            found.append(fd)
    return found


def _close(*descriptors: int, close: Callable[[int], None] = os.close) -> None:
    for fd in descriptors:
        close(fd)


def _text_of(fd: int, opened: Callable[..., Any] = open) -> str:
    with opened(fd, "rb", closefd=False) as file:
        text: str = file.read().decode("utf-8", "surrogatepass")
    return text


def _write(fd: int, data: bytes, write: Callable[[int, Any], int] = os.write) -> None:
    left = memoryview(data)
    while left:
        left = left[write(fd, left) :]


def _to_nothing(
    *descriptors: int,
    opened: Callable[..., int] = os.open,
    dup2: Callable[[int, int], int] = os.dup2,
    close: Callable[[int], None] = os.close,
) -> None:
    null = opened("/dev/null", os.O_RDWR)
    for fd in descriptors:
        dup2(null, fd)
    close(null)


@contextlib.contextmanager
def _any_digits() -> Iterator[None]:
    """Read ints of any length, as the tests may hold them; the program's own limit is CPython's."""
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        yield
    finally:
        sys.set_int_max_str_digits(limit)


def _find(module: types.ModuleType, fn_name: str) -> Callable[..., Any]:
    """The attribute of a Solution (its methods, and what __init__ or __getattr__ give), or the plain function."""
    names = module.__dict__
    solution = names.get("Solution")
    if callable(solution):
        try:
            method: Callable[..., Any] = getattr(solution(), fn_name)
            return method
        except Exception:
            if fn_name not in names:
                raise
    if fn_name not in names:
        raise NameError(f"the program defines no {fn_name!r}, neither in class Solution nor as a function")
    function: Callable[..., Any] = names[fn_name]
    return function
