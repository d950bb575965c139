"""The test's process: confined, it runs the program once and leaves with os._exit.

Everything here shares its memory with untrusted code. Nothing it reports can pass a test: in stdin mode the judge
compares the raw bytes of descriptor 1, in call mode one tagged-JSON value from descriptor 3, and how the process ended
is what the zygote saw in wait4.
"""

from __future__ import annotations

import _thread
import atexit
import json
import os
import sys
import threading
import types
from _io import _IOBase  # io.IOBase is an ABC: its isinstance costs a millisecond of copied pages
from collections.abc import Callable
from typing import Any

from verifier_app.judge.wire import argument_lines, encode

RESULT_FD = 3
EXIT_EXCEPTION = 1
EXIT_NO_VALUE = 97  # call mode: the program left before its function returned


def run_stdin(code: types.CodeType, module: types.ModuleType, prelude_end: str) -> None:
    """Run the program as __main__ and leave. SystemExit of any code is a normal end (LiveCodeBench)."""
    status = 0
    try:
        exec(code, module.__dict__)
    except SystemExit:
        pass
    except BaseException:
        status = _report()
    _leave(status, module, prelude_end)


def run_call(code: types.CodeType, module: types.ModuleType, fn_name: str) -> None:
    """Define the program, call its function with the arguments on descriptor 0, write the value to descriptor 3."""
    write, exit_now, loads = os.write, os._exit, json.loads  # the program may replace the module's names
    status = EXIT_NO_VALUE
    try:
        with open(0, "rb", closefd=False) as file:
            arguments = [loads(line) for line in argument_lines(file.read().decode("utf-8", "surrogatepass"))]
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        exec(code, module.__dict__)
        value = _find(module, fn_name)(*arguments)
        data = memoryview(encode(value))
        while data:
            data = data[write(RESULT_FD, data) :]
        status = 0
    except SystemExit:
        os.write(2, b"\nSystemExit: the program left before its function returned\n")
    except BaseException:
        status = _report()
    exit_now(status)


def _find(module: types.ModuleType, fn_name: str) -> Callable[..., Any]:
    """The method of class Solution, or the plain function."""
    solution = module.__dict__.get("Solution")
    if isinstance(solution, type) and hasattr(solution, fn_name):
        return getattr(solution(), fn_name)
    if fn_name not in module.__dict__:
        raise NameError(f"the program defines no {fn_name!r}, neither in class Solution nor as a function")
    return module.__dict__[fn_name]


def _report() -> int:
    """Print the traceback's end to stderr: the message that a person will see."""
    try:
        import traceback

        traceback.print_exc(limit=-4, file=sys.__stderr__)
        if sys.__stderr__ is not None:
            sys.__stderr__.flush()
    except BaseException:
        return EXIT_EXCEPTION
    return EXIT_EXCEPTION


def _leave(status: int, module: types.ModuleType, prelude_end: str) -> None:
    """End as the interpreter does: wait for threads, run atexit, flush; without its slow teardown."""
    try:
        if _thread._count() or threading._threading_atexits:  # type: ignore[attr-defined]
            threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    except BaseException:
        status = status or _report()
    # the program's own streams, which the interpreter would flush as it goes down; the prelude's names come first, and
    # to walk over them would copy the pages of all their values
    names = module.__dict__
    own: list[Any] = []
    for name in reversed(names):
        if name == prelude_end:
            break
        own.append(names[name])
    for stream in [sys.stdout, sys.__stdout__, names.get("stdout"), *reversed(own)]:
        try:
            if stream is sys.stdout or (isinstance(stream, _IOBase) and not stream.closed):
                stream.flush()
        except BaseException:
            continue
    os._exit(status)
