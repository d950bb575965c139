"""The API server in a process that kills itself, as by kill -9, at a chosen operation on the disk."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import uvicorn

from environments.api_server import journal as journal_module
from environments.api_server import store as store_module
from environments.api_server.journal import Journal
from environments.api_server.launch import bind
from environments.api_server.server import build
from environments.api_server.store import Store


class Mortal:
    """The module `os` for the journal: it dies before, in the middle of, or after the n-th change to the disk."""

    def __init__(self, operations: int) -> None:
        self.left = operations

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def _tick(self) -> bool:
        self.left -= 1
        return self.left == 0

    def _die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def _around(self, name: str, *arguments: Any) -> Any:
        if self._tick():
            self._die()
        result = getattr(os, name)(*arguments)
        if self._tick():
            self._die()
        return result

    def pwrite(self, fd: int, data: bytes, at: int) -> int:
        if self._tick():
            os.pwrite(fd, bytes(data)[: len(data) // 2], at)  # torn
            self._die()
        written = os.pwrite(fd, data, at)
        if self._tick():
            self._die()
        return written

    def fsync(self, *arguments: Any) -> Any:
        return self._around("fsync", *arguments)

    def replace(self, *arguments: Any) -> Any:
        return self._around("replace", *arguments)

    def ftruncate(self, *arguments: Any) -> Any:
        return self._around("ftruncate", *arguments)


def live(path: Path, port: int, operations: int) -> None:
    """Serves until the process dies."""
    journal_module.os = Mortal(operations)  # type: ignore[attr-defined]
    store_module.COMPACT_ABOVE = 1200  # bytes, so that it happens
    app = build(Store(Journal(path)))
    config = uvicorn.Config(app, log_level="critical", ws="none", lifespan="off")
    uvicorn.Server(config).run(sockets=[bind("127.0.0.1", port)])


def main() -> None:
    """Forks a server for each line "PORT OPERATIONS PATH", says its pid, and how it ended; imports come once."""
    for line in sys.stdin:
        port, operations, path = line.rstrip("\n").split(" ", 2)
        pid = os.fork()
        if pid == 0:
            live(Path(path), int(port), int(operations))
            os._exit(0)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
