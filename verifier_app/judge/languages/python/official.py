"""LiveCodeBench's official grader, as a program meets it: the semantics `official` of a request.

That grader (lcb_runner/evaluation/testing_util.py) runs a program inside its own process. Seen from the program:

- Its imports run first, wherever they stand at top level; everything else is the body of a function, so a top-level
  `return` ends it, `nonlocal` reaches it, and `global` does not name its variables. `__future__` imports come too late.
  A guard `if __name__ == '__main__':` that is the last statement counts as its body; any other guard is false.
- Standard input is the text of the test: `sys.stdin` gives lines by `readline` and `input`, the whole text at each
  `read`, the lines without their ends at each `readlines`, cannot be iterated, and its `buffer` gives the whole at each
  `read` and the first line at each `readline`. What was imported from sys before is another object, whose methods
  give the lines without their ends. Descriptor 0 is empty.
- Output is what was printed to `sys.stdout`, a text object without a buffer, when the main thread ended. Descriptor 1,
  other threads, atexit and finalizers come to nothing.
- Functions that could harm the grader are None: no fork, no process, no current folder, no removal of files, no quit.
- Its tests run in this one process: its top level runs once, before the first, and one Solution answers all calls, so
  what a program leaves in a class, a module or a cache is there in the next test. After a test `sys.stdin`,
  `sys.stdout` and `open` are as they were.
"""

from __future__ import annotations

import ast
import builtins
import io
import os
import shutil
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

from verifier_app.judge.languages.python import runner
from verifier_app.judge.languages.python.packages import PACKAGES

FUNCTION = "wrapped_function"
MODULE = "tmp_sol"
_GUARD = ast.unparse(ast.parse("__name__ == '__main__'"))
_NO_OS = (
    "chdir chmod chown chroot fchdir fchmod fchown fork forkpty getcwd kill killpg lchflags lchmod lchown putenv "
    "remove removedirs rename renames replace rmdir setuid system truncate unlink"
).split()
_NO_SHUTIL = ("chown", "move", "rmtree")
_NO_MODULES = {"ipdb", "joblib", "psutil", "resource", "tkinter", *PACKAGES} - {"numpy"}


class NoSource(SyntaxError):
    """What this grader makes of a source that Python would run."""


def compile_program(source: str, filename: str, fn_name: str | None) -> types.CodeType:
    """The program as that grader compiles it. SyntaxError and what compile raises: it cannot."""
    tree = ast.parse(source, filename)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            raise NoSource("from __future__ imports come after the grader's own imports")
    if fn_name is not None:
        return compile(tree, filename, "exec", dont_inherit=True)
    body = _without_guard(tree.body)
    imports = [node for node in body if isinstance(node, (ast.Import, ast.ImportFrom))]
    rest = [node for node in body if not isinstance(node, (ast.Import, ast.ImportFrom))]
    if not rest:
        raise NoSource("expected an indented block: there is nothing but imports")
    function = ast.parse(f"def {FUNCTION}(): pass").body[0]
    assert isinstance(function, ast.FunctionDef)
    function.body = rest
    module = ast.Module(body=[*imports, function], type_ignores=[])
    return compile(module, filename, "exec", dont_inherit=True)


def _without_guard(body: list[ast.stmt]) -> list[ast.stmt]:
    if body and isinstance(body[-1], ast.If) and ast.unparse(body[-1].test) == _GUARD:
        return [*body[:-1], *body[-1].body]
    return body


def holds_a_solution(source: str) -> bool:
    """Whether that grader takes the program for a class Solution: it looks for these words in the source."""
    return "class Solution" in source and "class Solution" in ast.unparse(ast.parse(source))


def disarm(names: dict[str, Any]) -> None:
    """Take away what that grader takes away; `names` are the program's globals, which hold builtins too."""
    for name in _NO_OS:
        setattr(os, name, None)
    for name in _NO_SHUTIL:
        setattr(shutil, name, None)
    setattr(subprocess, "Popen", None)  # noqa: B010
    for name in ("quit", "help"):
        setattr(builtins, name, None)
        names[name] = None
    for name in _NO_MODULES:
        sys.modules[name] = None  # type: ignore[assignment]


class Stdin:
    """Standard input as that grader gives it."""

    def __init__(self, text: str) -> None:
        self._text, self._lines = text, io.StringIO(text)
        self.buffer = StdinBuffer(text)

    def read(self, *_: Any) -> str:
        """All of the text, each time."""
        return self._text

    def readline(self, *size: Any) -> str:
        """The next line with its end."""
        return self._lines.readline(*size)

    def readlines(self, *_: Any) -> list[str]:
        """All lines without their ends, each time; after a final newline an empty one."""
        return self._text.split("\n")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lines, name)


class StdinBuffer:
    """Its bytes."""

    def __init__(self, text: str) -> None:
        self._data = text.encode("utf-8", "surrogatepass")

    def read(self, *_: Any) -> bytes:
        """All of them, each time."""
        return self._data

    def readline(self, *_: Any) -> bytes:
        """The first line, each time."""
        return self._data.split(b"\n")[0] + b"\n"


def _open(text: str) -> Callable[..., Any]:
    """builtins.open: whatever is opened holds the test's text."""

    def opened(*_: Any, **__: Any) -> io.StringIO:
        return io.StringIO(text)

    return opened


class Program:
    """A compiled program; `run` is for a test's process."""

    def __init__(self, code: types.CodeType, module: types.ModuleType, source: str, fn_name: str | None) -> None:
        self.code, self.module, self.fn_name = code, module, fn_name
        self.solution = "class Solution" in source if fn_name is not None else holds_a_solution(source)
        self.function: Callable[[], object] | None = None

    def run(self, another: Callable[[], bool]) -> None:
        """Run its tests as that grader does and leave. another: as in runner.py."""
        disarm(self.module.__dict__)
        if self.fn_name is None:
            runner.run_to_text(self._printed, another)
        else:
            runner.run_to_value(self._function, another)

    def _function(self) -> Callable[..., Any]:
        exec(self.code, self.module.__dict__)
        assert self.fn_name is not None
        found: Callable[..., Any] = getattr(self.module.Solution() if self.solution else self.module, self.fn_name)
        return found

    def _printed(self, text: str) -> str:
        """What the program prints on the text of a test. Raises what it raises, SystemExit excepted."""
        if self.function is None:
            exec(self.code, self.module.__dict__)
            if self.solution:  # that grader makes one, and here it is inside the function
                self.module.Solution()
            self.function = self.module.__dict__[FUNCTION]
        before = sys.stdin, sys.stdout, builtins.open
        imported: Any = sys.stdin
        lines: Iterator[str] = iter(text.split("\n"))
        imported.read = lambda *_: text
        imported.readlines = lambda *_: text.split("\n")
        imported.readline = lambda *_: next(lines)
        printed: Any = io.StringIO()
        printed.close = lambda _: 1
        sys.stdin = Stdin(text)
        sys.stdout = printed
        builtins.open = _open(text)  # the program's own `open` came from builtins before
        try:
            self.function()
        except SystemExit:
            pass
        finally:
            sys.stdin, sys.stdout, builtins.open = before
        return str(printed.getvalue())
