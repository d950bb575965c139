"""Reading /proc. Each listing has an open file description of its own: an offset that others share can be moved."""

from __future__ import annotations

import os


def read(path: str, dir_fd: int, size: int = 4096) -> bytes:
    """The beginning of a file."""
    fd = os.open(path, os.O_RDONLY, dir_fd=dir_fd)
    try:
        return os.read(fd, size)
    finally:
        os.close(fd)


def read_all(path: str, dir_fd: int, most: int = 16 << 20) -> bytes:
    """The whole file, which the kernel gives in pieces; not more than `most` bytes."""
    fd = os.open(path, os.O_RDONLY, dir_fd=dir_fd)
    try:
        pieces, length = [], 0
        while length < most and (piece := os.read(fd, 65536)):
            pieces.append(piece)
            length += len(piece)
        return b"".join(pieces)
    finally:
        os.close(fd)


def listing(path: str, dir_fd: int | None = None) -> list[str]:
    """The names in a folder; "." with a descriptor lists that one from its beginning."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=dir_fd)
    try:
        return os.listdir(fd)
    finally:
        os.close(fd)


def fields_of(path: str, dir_fd: int) -> list[bytes]:
    """The fields of a stat file after the name, which may hold anything."""
    return read(path, dir_fd).rpartition(b")")[2].split()


def tree(proc: int, root: int, own_namespace: bool, spare: frozenset[int] = frozenset()) -> dict[int, list[bytes]]:
    """pid -> fields of stat after the name, of all processes below `root` (left out, as are `spare`'s).

    proc: descriptor of /proc; in a pid namespace of its own that is everything but pid 1.
    """
    found = everything(proc)
    if own_namespace:
        found.pop(1, None)
        return found
    return below(found, root, spare)


def everything(proc: int) -> dict[int, list[bytes]]:
    """pid -> fields of stat, of all processes."""
    found: dict[int, list[bytes]] = {}
    for name in listing(".", proc):
        if name.isdigit():
            try:
                found[int(name)] = fields_of(f"{name}/stat", proc)
            except OSError:
                continue
    return found


def below(found: dict[int, list[bytes]], root: int, spare: frozenset[int] = frozenset()) -> dict[int, list[bytes]]:
    """Those of the processes that descend from `root`, without itself and without the subtrees of `spare`."""
    children: dict[int, list[int]] = {}
    for pid, fields in found.items():
        children.setdefault(int(fields[1]), []).append(pid)
    descendants, queue = {}, children.get(root, [])[:]
    while queue:
        pid = queue.pop()
        if pid in spare:
            continue
        descendants[pid] = found[pid]
        queue += children.get(pid, [])
    return descendants
