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


def run_to_value(define: Callable[[], Callable[..., Any]]) -> None:
    """Call what `define` gives with the arguments on descriptor 0, write the value to descriptor 3, and leave."""
    # the program may replace the modules' names
    write, exit_now, loads, deeper, longer = os.write, os._exit, json.loads, sys.setrecursionlimit, _any_digits
    status = EXIT_NO_VALUE
    try:
        with open(0, "rb", closefd=False) as file:
            text = file.read().decode("utf-8", "surrogatepass")
        with longer():
            arguments = [loads(line) for line in argument_lines(text)]
        _to_nothing(0)
        value = define()(*arguments)
        deeper(ENCODING_RECURSION)  # the program may have chosen less
        data = memoryview(encode(value))
        while data:
            data = data[write(RESULT_FD, data) :]
        status = 0
    except SystemExit:
        os.write(2, b"\nSystemExit: the program left before its function returned\n")
    except BaseException:
        status = report()
    exit_now(status)


def run_to_text(printed: Callable[[str], str]) -> None:
    """Run what `printed` runs on the text of descriptor 0, write what it returns to descriptor 1, and leave.

    The program itself finds both descriptors empty.
    """
    write, exit_now, status = os.write, os._exit, EXIT_EXCEPTION
    try:
        with open(0, "rb", closefd=False) as file:
            text = file.read().decode("utf-8", "surrogatepass")
        out = os.dup(1)
        _to_nothing(0, 1)
        data = memoryview(printed(text).encode("utf-8", "surrogatepass"))
        while data:
            data = data[write(out, data) :]
        status = 0
    except BaseException:
        status = report()
    exit_now(status)


def _to_nothing(*descriptors: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for fd in descriptors:
        os.dup2(null, fd)
    os.close(null)


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
