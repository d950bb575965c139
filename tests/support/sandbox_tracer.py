"""A tracer for the judge's sandboxed side (sandbox_lines.py puts this text before the template's own program).

It marks each step from line to line in a mapped file, which every fork shares and no kill takes back. A program runs
untraced, so it is no slower: tracing ends as the program begins, and is back when the runner takes over again.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Callable
from opcode import opmap
from types import FrameType
from typing import Any

SIDE = 400  # more than a file has lines
STEP, ENTRY, EXIT = 0, 1, 2  # kinds of steps: line to line, into a function, out of it
RESUME, PUSH_EXC_INFO = opmap.get("RESUME", -1), opmap.get("PUSH_EXC_INFO", -1)
RUNNERS = ("/python/runner.py", "/python/official.py")
PROGRAM = "solution.py"

Traced = Callable[[FrameType, str, Any], Any]


def trace(path: str, files: dict[str, int]) -> None:
    """Trace this process and its forks.

    Args:
        path: the file of marks, SIDE² bytes for each kind of step of each file.
        files: paths of sources -> their places in it.
    """
    with open(path, "r+b") as file:
        marks = mmap.mmap(file.fileno(), 0)

    def called(frame: FrameType, _event: str, _argument: Any) -> Traced | None:
        name = frame.f_code.co_filename
        if name == PROGRAM:
            sys.settrace(None)
        number = files.get(name)
        if number is None:
            return None
        if name.endswith(RUNNERS) and frame.f_code.co_name != "<module>":
            _part_from_programs(frame.f_globals, called)
        return _stepper(frame, marks, number)

    sys.settrace(called)


def _stepper(frame: FrameType, marks: mmap.mmap, number: int) -> Traced:
    """Marks the steps of one frame. (What counts as one is coverage's: pytracer.py.)"""
    bytecode, first = frame.f_code.co_code, frame.f_code.co_firstlineno
    last: int | None = None
    if frame.f_lasti >= 0 and bytecode[frame.f_lasti + 1]:  # a generator resumes
        last = frame.f_lineno

    def mark(kind: int, start: int, end: int) -> None:
        marks[((number * 3 + kind) * SIDE + start) * SIDE + end] = 1

    def stepped(frame: FrameType, event: str, _argument: Any) -> Traced:
        nonlocal last
        if event == "line" and bytecode[frame.f_lasti] != PUSH_EXC_INFO:
            line = frame.f_lineno
            if last is None:
                mark(ENTRY, first, line)
            else:
                mark(STEP, last, line)
            last = line
        elif event == "return" and last is not None:
            following = frame.f_lasti + 2
            if following >= len(bytecode) or bytecode[following] != RESUME:  # or it yields
                mark(EXIT, last, first)
        return stepped

    return stepped


def _part_from_programs(names: dict[str, Any], called: Traced) -> None:
    """In a runner's globals: no trace while a program is executed, and again from what follows its end."""
    if "exec" in names:
        return

    def untraced(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            sys.settrace(None)
            try:
                return function(*arguments)
            finally:
                sys.settrace(called)

        return call

    def traced(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            sys.settrace(called)
            return function(*arguments)

        return call

    names["exec"] = untraced(exec)
    if find := names.get("_find"):
        names["_find"] = lambda module, name: untraced(find(module, name))
    for name in ("encode", "report", "leave"):
        if name in names:
            names[name] = traced(names[name])
