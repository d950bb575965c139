"""multiprocessing's listeners without sockets, which a program may not have: named pipes in its own folder.

A Manager's processes meet at the address of a listener. Here that is a named pipe: a client makes two more, writes
their name into it, and the listener opens them the other way round. Connections behave as those over sockets do. A
fork server hands descriptors over a socket: processes of that start method are spawned instead, as new as its own.
"""

from __future__ import annotations

import os
import sys
import types
from _frozen_importlib_external import PathFinder
from typing import Any

NAME_BYTES = 16


def install() -> None:
    """Replace them once the program imports the modules; before, nothing of them is loaded."""
    for name, replace in _REPLACE.items():
        if name in sys.modules:
            replace(sys.modules[name])
    sys.meta_path.insert(0, _Finder())


class _Finder:
    """Finds these modules where they always were."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        replace = _REPLACE.get(name)
        if replace is None:
            return None
        spec: Any = PathFinder.find_spec(name, path, target)
        execute = spec.loader.exec_module

        def exec_module(module: types.ModuleType) -> None:
            execute(module)
            replace(module)

        spec.loader.exec_module = exec_module
        return spec


def _spawn(module: Any) -> None:
    from multiprocessing import popen_spawn_posix

    module.Popen = popen_spawn_posix.Popen


def _meet_at_pipes(module: Any) -> None:
    connection = _piped_connection(module)
    listener = _piped_listener(module, connection)
    over_sockets = module.SocketListener, module.SocketClient

    def listen(address: Any, family: str, backlog: int = 1) -> Any:
        piped = family == "AF_UNIX" and isinstance(address, str)
        return (listener if piped else over_sockets[0])(address, family, backlog)

    def connect(address: Any) -> Any:
        return connection(*_knock(address)) if isinstance(address, str) else over_sockets[1](address)

    module.SocketListener, module.SocketClient = listen, connect


def _piped_connection(module: Any) -> Any:
    class PipedConnection(module.Connection):  # type: ignore[misc]
        """A connection that reads from one pipe and writes to another."""

        def __init__(self, reader: int, writer: int) -> None:
            super().__init__(reader)
            self._writer = writer

        def _close(self) -> None:
            os.close(self._handle)
            os.close(self._writer)

        def _send(self, buf: Any) -> None:
            left = memoryview(buf)
            while left:
                left = left[os.write(self._writer, left) :]

    return PipedConnection


def _piped_listener(module: Any, connection: Any) -> Any:
    class PipedListener:
        """What SocketListener is to Listener."""

        def __init__(self, address: str, family: str, backlog: int = 1) -> None:
            os.mkfifo(address, 0o600)
            self._address, self._last_accepted = address, None
            self._unlink = module.util.Finalize(self, os.unlink, args=(address,), exitpriority=0)
            self._door = os.open(address, os.O_RDWR | os.O_CLOEXEC)  # for writing too: it never ends

        def accept(self) -> Any:
            pipe = f"{self._address}.{os.read(self._door, NAME_BYTES).decode()}"
            reader = os.open(f"{pipe}i", os.O_RDONLY | os.O_CLOEXEC)
            writer = os.open(f"{pipe}o", os.O_WRONLY | os.O_CLOEXEC)
            for name in ("i", "o"):
                os.unlink(pipe + name)
            return connection(reader, writer)

        def close(self) -> None:
            door, self._door = self._door, -1
            if door >= 0:
                os.close(door)
                self._unlink()

    return PipedListener


def _knock(address: str) -> tuple[int, int]:
    """A client's two pipes, to read from and to write to, once the listener at this address has opened them."""
    name = os.urandom(NAME_BYTES // 2).hex()
    pipe = f"{address}.{name}"
    try:
        door = os.open(address, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ConnectionRefusedError(error.errno, error.strerror) from None
    for end in ("i", "o"):
        os.mkfifo(pipe + end, 0o600)
    os.write(door, name.encode())
    os.close(door)
    writer = os.open(f"{pipe}i", os.O_WRONLY | os.O_CLOEXEC)
    return os.open(f"{pipe}o", os.O_RDONLY | os.O_CLOEXEC), writer


_REPLACE = {"multiprocessing.connection": _meet_at_pipes, "multiprocessing.popen_forkserver": _spawn}
