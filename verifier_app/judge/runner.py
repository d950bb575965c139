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

from verifier_app.judge import respawn
from verifier_app.judge.ending import leave, report
from verifier_app.judge.wire import argument_lines, encode

RESULT_FD = 3
ENCODING_RECURSION = 100_000
EXIT_NO_VALUE = 97  # call mode: the program left before its function returned


def run_stdin(code: types.CodeType, module: types.ModuleType, writes_late: bool, respawned: str | None) -> None:
    """Run the program as __main__ and leave. SystemExit of any code is a normal end (LiveCodeBench).

    writes_late: what may_write_late said of the source. respawned: the source, if processes may be started that run it.
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
    # the program may replace the modules' names
    write, exit_now, loads, deeper, longer = os.write, os._exit, json.loads, sys.setrecursionlimit, _any_digits
    status = EXIT_NO_VALUE
    try:
        with open(0, "rb", closefd=False) as file:
            text = file.read().decode("utf-8", "surrogatepass")
        with longer():
            arguments = [loads(line) for line in argument_lines(text)]
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        exec(code, module.__dict__)
        value = _find(module, fn_name)(*arguments)
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
            return getattr(solution(), fn_name)
        except Exception:
            if fn_name not in names:
                raise
    if fn_name not in names:
        raise NameError(f"the program defines no {fn_name!r}, neither in class Solution nor as a function")
    return names[fn_name]
