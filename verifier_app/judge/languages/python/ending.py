"""The end of a program: what CPython still writes while it goes down, without taking the interpreter apart.

After the main thread: the other threads, atexit, the standard streams; then finalizers (`__del__`, the `finally` of
suspended generators), in the order in which the objects came to be and with all globals still there, as the last
garbage collection runs them; then every stream that the program opened is flushed.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import gc
import os
import sys
import threading
import types
from _io import _IOBase  # io.IOBase is an ABC: its isinstance costs a millisecond of copied pages
from collections.abc import Iterator
from typing import Any

EXIT_EXCEPTION = 1
# Without any of these words in its source a program has nothing that could write after its end but the standard
# streams, and its objects, which may be millions, are not looked through.
_LATE_WRITERS = ("__del__", "yield", "async", "open", "IO", "Buffer", "makefile", "detach", "exec", "eval", "getattr")


def may_write_late(source: str) -> bool:
    """Whether the program may have streams of its own, or objects that write when they go."""
    return any(word in source for word in _LATE_WRITERS)


def report() -> int:
    """Print the traceback's end to stderr: the message that a person will see."""
    with contextlib.suppress(BaseException):
        import traceback

        traceback.print_exc(limit=-4, file=sys.__stderr__)
        if sys.__stderr__ is not None:
            sys.__stderr__.flush()
    return EXIT_EXCEPTION


def leave(status: int, out: Any, raw: Any, writes_late: bool) -> None:
    """End as the interpreter does: wait for threads, run atexit, finalize, flush; without its slow teardown.

    out, raw: the standard output and its buffer as they were before the program ran, which may have parted them.
    """
    try:
        if _thread._count() or threading._threading_atexits:  # type: ignore[attr-defined]
            threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    except BaseException:
        status = status or report()
    flush(sys.stdout)
    if writes_late and not status:
        replaced, sys.stdout = sys.stdout, out
        streams = _finalize()
        for stream in (replaced, *streams):
            flush(stream)
        for stream in streams:
            if type(stream).__module__ not in ("_io", "io"):  # a class of the program's own may write when it closes
                with contextlib.suppress(BaseException):
                    stream.close()
    flush(out)
    flush(raw)
    os._exit(status)


def flush(stream: Any) -> None:
    """Flush a stream, whatever the program made of it."""
    with contextlib.suppress(BaseException):
        stream.flush()


def _finalize() -> list[Any]:
    """Finalize what the program made, the oldest first; its streams, those that write into another one first."""
    finalized, streams = [], []
    for thing in _made_by_the_program():
        if issubclass(type(thing), _IOBase) and type(thing).__del__ is _IOBase.__del__:
            streams.append(thing)
        else:
            finalized.append(thing)
    for thing in finalized:
        with contextlib.suppress(BaseException):
            if isinstance(thing, (types.GeneratorType, types.CoroutineType)):
                thing.close()
            elif not gc.is_finalized(thing):  # one that came back to life is finalized once
                thing.__del__()
    return sorted(streams, key=lambda stream: not hasattr(type(stream), "buffer"))


def _made_by_the_program() -> Iterator[Any]:
    """Objects with a finalizer that came after the program was loaded: what was there before is frozen."""
    plain: set[int] = set()  # ids of types: a metaclass may have an __eq__ of its own
    for generation in (2, 1, 0):
        for thing in gc.get_objects(generation):
            kind = type(thing)
            if id(kind) in plain:
                continue
            if kind in (types.GeneratorType, types.CoroutineType) or hasattr(kind, "__del__"):
                yield thing
            else:
                plain.add(id(kind))
