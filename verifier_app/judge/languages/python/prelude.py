"""What LiveCodeBench imports before a program: the same star imports in the same order, and its recursion limit."""

from __future__ import annotations

import types

STAR_IMPORTS = [
    "string",
    "re",
    "datetime",
    "collections",
    "heapq",
    "bisect",
    "copy",
    "math",
    "random",
    "statistics",
    "itertools",
    "functools",
    "operator",
    "io",
    "sys",
    "json",
    "builtins",
    "typing",
]
PLAIN_IMPORTS = STAR_IMPORTS[:-2]
RECURSION_LIMIT = 50_000
STACK_BYTES = 256 << 20  # lru_cache recursion 1e5 deep overflows 32 MiB
THREAD_STACK_BYTES = 64 << 20  # the same depth fits; more would fill a small address space with few threads


def import_lines() -> str:
    """The prelude as source."""
    return "".join(f"from {module} import *\n" for module in STAR_IMPORTS) + "".join(
        f"import {module}\n" for module in PLAIN_IMPORTS
    )


def make_module(name: str) -> types.ModuleType:
    """A fresh module with the prelude's names in it: the program's globals."""
    module = types.ModuleType(name)
    exec(import_lines(), module.__dict__)
    return module
