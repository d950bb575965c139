"""A Python below a folder that a program's uid cannot enter (a 0700 home), where no private root has it bound in.

Its folders are reached through descriptors: imports go to /proc/self/fd/N. To execute it takes a path that every user
can walk, since a child process keeps no descriptor of ours.
"""

from __future__ import annotations

import os
import sys


def walkable(path: str) -> bool:
    """Whether every user may walk to this folder, or to this file and execute it."""
    path = os.path.realpath(path)
    while True:
        try:
            if not os.stat(path).st_mode & 0o001:
                return False
        except OSError:
            return False
        if path == "/":
            return True
        path = os.path.dirname(path)


def by_descriptor(first: int) -> int:
    """Open what is on sys.path and cannot be walked to, from descriptor `first` on, and import through the descriptors.

    Packages that are loaded already look for their modules there too. Returns the number behind the last descriptor.
    """
    moved = {}
    for number, path in enumerate(sys.path):
        if os.path.isdir(path) and not walkable(path):
            fd = os.open(path, os.O_PATH)
            os.dup2(fd, first)
            os.close(fd)
            moved[path] = sys.path[number] = f"/proc/self/fd/{first}"
            first += 1
    for module in list(sys.modules.values()):
        places = getattr(module, "__path__", None)
        if isinstance(places, list):
            places[:] = [_moved(place, moved) for place in places]
    sys.path_importer_cache.clear()
    return first


def _moved(place: str, moved: dict[str, str]) -> str:
    """The place of a package; the longest folder of sys.path that it lies in decides."""
    for path in sorted(moved, key=len, reverse=True):
        if place.startswith(path + "/"):
            return moved[path] + place[len(path) :]
    return place


def executable() -> str | None:
    """Point sys.executable at a Python of this version that every user can execute; None: it is one, or why not."""
    old = sys.executable
    if walkable(old):
        return None
    name = "python{}.{}".format(*sys.version_info)
    for folder in ("/usr/local/bin", "/usr/bin"):
        path = f"{folder}/{name}"
        if os.path.isfile(path) and walkable(path):
            sys.executable = path
            return f"{old} is closed to a program's uid; {path} takes its place as sys.executable"
    return f"{old} is closed to a program's uid, and there is no other {name}: a program cannot start Python"
