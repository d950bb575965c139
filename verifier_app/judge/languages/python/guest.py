"""Python, the sandboxed half: what the template has ready, and a program from its source to its run.

A page that zygote or child writes to after the fork is a page fault, mostly with a copy; so what runs between two tests
is kept to few calls on few objects.
"""

from __future__ import annotations

import _random
import _signal  # signal.signal wraps it in enums
import contextlib
import importlib
import io
import os
import random
import site
import sys
import threading
import types
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from verifier_app.judge.languages.python import ending, rendezvous, respawn, runner, threads
from verifier_app.judge.languages.python.packages import path_hook
from verifier_app.judge.languages.python.prelude import RECURSION_LIMIT, STACK_BYTES, THREAD_STACK_BYTES, make_module
from verifier_app.judge.languages.python.warm_up import REHEARSALS, warm_up
from verifier_app.judge.layers.setup import Setup

__all__ = ["STACK_BYTES", "Program", "preload"]

FILENAME = "solution.py"


def _standard_streams() -> None:
    """Point 0 at a file, 1 and 2 at a pipe, and reopen Python's streams on them, as a program under a judge has them.

    A stream asks once whether it can seek; where a test's input comes by a pipe it finds out when it does.
    """
    reader, writer = os.pipe()
    try:
        file = os.memfd_create("stdin")
    except OSError:
        file = os.dup(reader)
    for fd, end in ((0, file), (1, writer), (2, writer)):
        os.dup2(end, fd)
    for fd in (reader, writer, file):
        os.close(fd)
    for name, fd, mode, errors in (
        ("stdin", 0, "r", "surrogateescape"),
        ("stdout", 1, "w", "surrogateescape"),
        ("stderr", 2, "w", "backslashreplace"),
    ):  # no newline is translated, as in CPython on Linux: a carriage return is data
        stream = io.open(fd, mode, encoding="utf-8", errors=errors, newline="\n", closefd=False)  # noqa: SIM115, UP020
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    null = os.open(os.devnull, os.O_RDWR)  # nobody reads the pipes: who fills one here would wait forever
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)


def preload(setup: Setup) -> None:
    """Everything that programs use and that is slow to import, once."""
    _standard_streams()
    site.setquit()
    site.setcopyright()
    site.sethelper()
    sys.path[:] = [path for path in sys.path if path not in ("", *setup.homes)] + setup.folders
    sys.path_hooks.insert(0, path_hook(setup.folders, setup.packages))
    sys.argv[:] = ["solution.py"]
    for name in setup.modules:
        with contextlib.suppress(ImportError):  # numpy may not be installed: then the program's import fails
            importlib.import_module(name)
    sys.setrecursionlimit(RECURSION_LIMIT)
    threading.stack_size(THREAD_STACK_BYTES)
    threads.install()
    rendezvous.install()
    warm_up()
    _rehearse()
    sys.modules["__main__"] = make_module("__main__")


def compile_program(compiler: Callable[[], types.CodeType]) -> tuple[types.CodeType | None, str]:
    """(code, "") or (None, what is wrong with the source)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a source may hold any number
            return compiler(), ""
    except SyntaxError as error:
        line = f" (line {error.lineno})" if error.lineno else ""
        return None, f"{type(error).__name__}: {error.msg}{line}"
    except (ValueError, RecursionError, MemoryError, OverflowError) as error:
        return None, f"{type(error).__name__}: {error}"


class Program:
    """One program in its zygote, run in a fork of it for each test."""

    def __init__(self) -> None:
        self.call = False
        self.start: Callable[..., object] = _nothing  # runs the program and leaves

    def load(self, message: dict[str, Any], file: int) -> str | None:
        """Compile the source; what is wrong with it."""
        main, fn_name = sys.modules["__main__"], message["fn_name"]
        self.call = fn_name is not None
        if message["semantics"] == "official":
            return self._load_official(message["load"], main, fn_name)
        if fn_name is not None:
            main.__name__ = main.__dict__["__name__"] = "solution"  # a main guard does not run (LiveCodeBench)
            sys.modules["solution"] = main
        source = message["load"].removeprefix("\ufeff")  # a byte order mark, as CPython reads a file
        code, problem = compile_program(lambda: compile(source, FILENAME, "exec", dont_inherit=True))
        if code is None:
            return problem
        if fn_name is None:
            respawned = source if respawn.may_start(source) else None
            self.start = partial(runner.run_stdin, code, main, ending.may_write_late(source), respawned)
        else:
            self.start = partial(runner.run_call, code, main, fn_name)
        return None

    def _load_official(self, source: str, main: types.ModuleType, fn_name: str | None) -> str | None:
        from verifier_app.judge.languages.python import official  # loaded by the template for it alone

        main.__name__ = main.__dict__["__name__"] = official.MODULE
        code, problem = compile_program(lambda: official.compile_program(source, FILENAME, fn_name))
        if code is None:
            return problem
        self.start = official.Program(code, main, source, fn_name).run
        return None

    def run(self, alarm: int, *another: Callable[[], bool]) -> None:
        """In the forked child, confined. Never returns."""
        _signal.signal(_signal.SIGINT, _signal.default_int_handler)  # the zygote ignores it
        _random.Random.seed(random._inst)  # as os.fork does
        os.close(alarm)
        self.start(*another)


def _nothing() -> None:
    """What is run in a rehearsal."""


def _rehearse() -> None:
    """Run `Program.run` often enough for its bytecode to be specialized: each test's process would do that again."""
    handler = _signal.getsignal(_signal.SIGINT)
    for _ in range(REHEARSALS):
        Program().run(os.open(os.devnull, os.O_RDONLY))
    _signal.signal(_signal.SIGINT, handler)
