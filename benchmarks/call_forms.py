"""Whether calls of torch, transformers and vLLM in our sources fit the installed versions: names and arguments, unrun.

Calls whose function is imported, or an attribute of something imported, are bound to its signature; calls of methods on
values are not seen, and functions without a signature (many of torch's, written in C++) only have to exist.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

CHECKED = ("torch", "transformers", "safetensors", "vllm")
"""Packages whose calls are checked, where they are installed."""


class Misfit(NamedTuple):
    """A call that the installed version does not take."""

    place: str
    call: str
    why: str

    def __str__(self) -> str:
        return f"{self.place}: {self.call}: {self.why}"


def misfits(files: Sequence[Path], packages: Sequence[str] = CHECKED) -> tuple[int, list[Misfit]]:
    """How many calls were looked at, and those that do not fit."""
    here = tuple(name for name in packages if find_spec(name) is not None)
    count, found = 0, []
    for file in files:
        for call, names in _calls(ast.parse(file.read_text(encoding="utf-8")), here):
            count += 1
            why = _why_not(call, names)
            if why is not None:
                found.append(Misfit(f"{file.name}:{call.lineno}", ".".join(names), why))
    return count, found


def _calls(tree: ast.Module, packages: tuple[str, ...]) -> Iterator[tuple[ast.Call, list[str]]]:
    """Calls of imported things, each with the full dotted name of its function."""
    known = _imported(tree, packages)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            chain = _chain(node.func)
            if chain and chain[0] in known:
                yield node, [*known[chain[0]], *chain[1:]]


def _imported(tree: ast.Module, packages: tuple[str, ...]) -> dict[str, list[str]]:
    """Local name -> dotted name of what it stands for."""
    found: dict[str, list[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                path = alias.name.split(".")
                if path[0] in packages:
                    found[alias.asname or path[0]] = path if alias.asname else path[:1]
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in packages:
            for alias in node.names:
                found[alias.asname or alias.name] = [*node.module.split("."), alias.name]
    return found


def _chain(node: ast.expr) -> list[str]:
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute):
        before = _chain(node.value)
        return [*before, node.attr] if before else []
    return []


def _resolve(names: list[str]) -> Any:
    """The object of a dotted name: the longest module, then attributes. Raises ImportError or AttributeError."""
    for length in range(len(names), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(names[:length]))
        except ModuleNotFoundError:
            continue
        for name in names[length:]:
            found = getattr(found, name)
        return found
    raise ImportError(f"no module {names[0]}")


def _why_not(call: ast.Call, names: list[str]) -> str | None:
    try:
        function = _resolve(names)
    except (ImportError, AttributeError) as error:
        return str(error)
    if not callable(function):
        return f"is a {type(function).__name__}, not a function"
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        return None
    if all(one.kind is inspect.Parameter.VAR_KEYWORD for one in signature.parameters.values()) and call.args:
        return None  # a decorator's signature, as transformers' documentation leaves it
    open_ended = any(isinstance(one, ast.Starred) for one in call.args) or any(one.arg is None for one in call.keywords)
    bind = signature.bind_partial if open_ended else signature.bind
    positional = [one for one in call.args if not isinstance(one, ast.Starred)]
    try:
        bind(*positional, **{one.arg: one.value for one in call.keywords if one.arg is not None})
    except TypeError as error:
        return f"{error}; it takes {signature}"
    return None
