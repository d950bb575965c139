"""A file of the program for processes that start it again, as those of multiprocessing's spawn and forkserver do."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable
from typing import Any

from verifier_app.judge.languages.python.prelude import THREAD_STACK_BYTES, import_lines

_WORDS = ("spawn", "forkserver")
if sys.version_info >= (3, 14):  # no longer fork by default
    _WORDS += ("multiprocessing", "ProcessPool")


# what the template does for the program's own process (threads.py), done at once
_ROOM_FOR_THREADS = f"""
import resource, threading
_, hard = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
threading.stack_size({THREAD_STACK_BYTES})
"""


def may_start(source: str) -> bool:
    """Whether the program may start such processes."""
    return any(word in source for word in _WORDS)


def prepare(module: types.ModuleType, source: str) -> None:
    """Write the program, with the prelude before it, into the current folder, and name the file as the module's."""
    path = os.path.join(os.getcwd(), "solution.py")
    text = f"exec({_ROOM_FOR_THREADS!r}, {{}})\n{import_lines()}"
    text += f"exec(compile({source!r}, 'solution.py', 'exec', dont_inherit=True))\n"
    with open(path, "w", encoding="utf-8", errors="surrogatepass") as file:
        file.write(text)
    module.__dict__["__file__"] = path
    if any(entry.startswith("/proc/self/fd/") for entry in sys.path):
        _keep_own_path()


def _keep_own_path() -> None:
    """Let the new processes find the library where their interpreter has it: our descriptors are not theirs."""
    from multiprocessing import spawn

    prepare: Callable[[str], dict[str, Any]] = spawn.get_preparation_data

    def without_path(name: str) -> dict[str, Any]:
        return {key: value for key, value in prepare(name).items() if key != "sys_path"}

    spawn.get_preparation_data = without_path
