"""Languages by name: our own, then those of installed packages, by the entry-point group livecode.languages."""

from __future__ import annotations

import functools
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from verifier_app.judge.languages.language import Language
from verifier_app.judge.protocol import JudgeError, bad_request, shown

GROUP = "livecode.languages"
DEFAULT = "python"
OF_CHECKERS = "python"
LANGUAGES = {
    "python": "verifier_app.judge.languages.python.language:Python",
    "cpp": "verifier_app.judge.languages.cpp.language:Cpp",
}


def known() -> list[str]:
    """Names of all languages, ours first."""
    return [*LANGUAGES, *sorted(set(_installed()) - set(LANGUAGES))]


def find(name: Any) -> Language:
    """The language of a request; None: Python.

    Raises:
        JudgeError: bad_request, with the known names; language_missing where its package cannot be loaded.
    """
    if name is None:
        name = DEFAULT
    if not isinstance(name, str) or (name not in LANGUAGES and name not in _installed()):
        raise bad_request("language", f"is {shown(name)}", f"give one of {', '.join(known())}")
    return _loaded(name)


@functools.cache
def _loaded(name: str) -> Language:
    if name in LANGUAGES:
        module, _, attribute = LANGUAGES[name].partition(":")
        language: Language = getattr(import_module(module), attribute)()
        return language
    entry = _installed()[name]
    try:
        language = entry.load()()
    except Exception as error:
        problem = f"{entry.value} of group {GROUP} cannot be loaded ({type(error).__name__}: {error})"
        raise JudgeError("language_missing", f"language {name!r}: {problem}; fix or remove its package") from None
    return language


def _installed() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}
