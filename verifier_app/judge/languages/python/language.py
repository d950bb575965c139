"""Python, the judge's half."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from verifier_app.judge.languages.language import Image, Language, Warm
from verifier_app.judge.languages.python.packages import PACKAGES, entries

if TYPE_CHECKING:
    from verifier_app.judge.protocol import Request

GUEST = "verifier_app.judge.languages.python.guest"
OFFICIAL = "verifier_app.judge.languages.python.official"
# what the prelude does not bring and small programs use; every further page makes every fork cost more
MODULES = ("threading", "atexit", "array", "decimal", "fractions", "time", "cmath", "types")
# one malloc arena: threads hold the interpreter's lock, and an arena of its own takes each 64 MB of address space
ENVIRONMENT = (("MALLOC_ARENA_MAX", "1"), ("OPENBLAS_NUM_THREADS", "1"), ("OMP_NUM_THREADS", "1"))
WAITING = ("epoll", "add_reader", "connect_read_pipe", "Selector")  # with these a program may wait for its input
PLAIN = Warm(GUEST, MODULES, ENVIRONMENT, entries)


def warm(numpy: bool = False, official: bool = False) -> Warm:
    """An interpreter with the usual imports, and with numpy and what the official semantics need."""
    more = (*(("numpy",) if numpy else ()), *((OFFICIAL,) if official else ()))
    return Warm(GUEST, MODULES + more, ENVIRONMENT, entries, one_process=official) if more else PLAIN


class Python(Language):
    """CPython, the interpreter that runs the judge; see runner.py for what a program meets."""

    name = "python"
    calls = True
    semantics = ("process", "official")
    own_processes = False

    def warm(self, request: Request) -> Warm:
        return warm("numpy" in request.code, request.semantics == "official")

    def usual(self) -> Warm:
        return PLAIN

    def image(self) -> Image:
        return Image(python=PACKAGES)

    def waits_for_input(self, source: str) -> bool:
        return any(word in source for word in WAITING)

    def out_of_memory(self, status: int, last_line: str) -> bool:
        return os.WIFEXITED(status) and last_line.startswith("MemoryError")
