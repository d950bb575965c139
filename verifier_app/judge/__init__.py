"""The judge of untrusted programs: standard library only, plain JSON types in and out.

`verify(request, store=None) -> verdict` judges one program, `verify_many(tests_ref, codes)` several against one test
set, `Judge` holds the settings and the warm templates, `JudgeError` is every fault that is not the program's.
The README beside this file says how it works. Names are resolved at first use, so that the sandboxed side, which
imports modules of this package too, never loads the judge's half.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from verifier_app.judge.judging import Judge, verify, verify_many
    from verifier_app.judge.protocol import JudgeError
    from verifier_app.judge.store import TestStore

__all__ = ["Judge", "JudgeError", "TestStore", "verify", "verify_many"]

_HOME = {
    "Judge": "judging",
    "JudgeError": "protocol",
    "TestStore": "store",
    "verify": "judging",
    "verify_many": "judging",
}


def __getattr__(name: str) -> Any:
    """Import the public names lazily (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
