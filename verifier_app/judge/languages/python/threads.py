"""Address space for threads: their stacks are hardly touched, and do not count towards the limit.

RLIMIT_AS bounds what a process may reserve, the watch what its tree really holds. A program without threads is held to
its memory limit by the first, at once; every thread that it starts raises the soft limit by the stack it takes, up to
the hard limit, which has room for as many stacks as there may be tasks (limits.py).
"""

from __future__ import annotations

import _thread
import contextlib
import resource
import threading
from collections.abc import Callable
from typing import Any

from verifier_app.judge.languages.python.prelude import STACK_BYTES

_BESIDE_BYTES = 1 << 20  # a thread's guard pages and its first allocations
_STARTERS = ("start_new_thread", "start_new", "start_joinable_thread")


def install() -> None:
    """Let every way to start a thread in this interpreter make room for the thread's stack first."""
    for name in _STARTERS:
        start = getattr(_thread, name, None)
        if start is not None:
            wrapped = _with_room(start, _thread.stack_size)
            setattr(_thread, name, wrapped)
            if hasattr(threading, f"_{name}"):
                setattr(threading, f"_{name}", wrapped)


def _with_room(start: Callable[..., Any], stack_size: Callable[..., int]) -> Callable[..., Any]:
    get, put, which = resource.getrlimit, resource.setrlimit, resource.RLIMIT_AS

    def start_thread(*arguments: Any, **named: Any) -> Any:
        soft, hard = get(which)
        if soft != hard:
            size = stack_size()  # to ask sets the default
            if size:
                stack_size(size)
            wanted = soft + (size or STACK_BYTES) + _BESIDE_BYTES
            with contextlib.suppress(OSError, ValueError):
                put(which, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
        return start(*arguments, **named)

    return start_thread
