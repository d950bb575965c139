"""The packages that a program may import beside the standard library, wherever the judge runs.

PACKAGES is the one list: the template shows no other installed package to programs, and the container image is built
with these, in the versions that the deploying machine has (requirements/ pins them).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    ModuleSpec,
    SourceFileLoader,
    SourcelessFileLoader,
)
from typing import Any

PACKAGES = ("numpy", "sortedcontainers")


def entries(folders: Sequence[str]) -> list[str]:
    """The names in these package folders that belong to PACKAGES; for the judge's side."""
    from importlib.metadata import distributions

    found: set[str] = set()
    for package in PACKAGES:
        for distribution in distributions(name=package, path=list(folders)):
            found |= {file.parts[0] for file in distribution.files or ()} or {package}
    return sorted(found - {"..", "__pycache__"})


class _ListedFinder(FileFinder):
    """Finds the listed names in one folder."""

    def __init__(self, path: str, names: frozenset[str]) -> None:
        super().__init__(
            path,
            (ExtensionFileLoader, EXTENSION_SUFFIXES),
            (SourceFileLoader, SOURCE_SUFFIXES),
            (SourcelessFileLoader, BYTECODE_SUFFIXES),
        )
        self.names = names

    def find_spec(self, fullname: str, target: Any = None) -> ModuleSpec | None:
        return super().find_spec(fullname, target) if fullname in self.names else None


def path_hook(folders: Sequence[str], names: Sequence[str]) -> Callable[[str], _ListedFinder]:
    """An entry for sys.path_hooks that shows of these folders only the modules with these names.

    A folder is known by its inode: on some hosts it is on sys.path by a descriptor.
    """
    modules = frozenset(name.partition(".")[0] for name in names)
    known = set()
    for folder in folders:
        if os.path.isdir(folder):
            there = os.stat(folder)
            known.add((there.st_dev, there.st_ino))

    def hook(path: str) -> _ListedFinder:
        try:
            there = os.stat(path)
        except OSError:
            raise ImportError from None
        if (there.st_dev, there.st_ino) not in known:
            raise ImportError
        return _ListedFinder(path, modules)

    return hook
