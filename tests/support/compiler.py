"""Whether this machine can judge C++."""

from __future__ import annotations

import pytest

from verifier_app.judge import JudgeError
from verifier_app.judge.languages.cpp.language import compiler_path


def why_not() -> str:
    """Why no C++ program can be judged here; empty where it can."""
    try:
        compiler_path()
    except JudgeError as error:
        return f"C++ was not judged: {error.message}"
    return ""


needs_compiler = pytest.mark.skipif(bool(why_not()), reason=why_not() or "g++ is here")
