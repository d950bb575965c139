"""The environment in a process that kills itself, as by kill -9, at a chosen change of its files or delivery."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from environments.livecode import command, environment
from environments.livecode.config import RunConfig
from environments.livecode.environment import LivecodeEnv
from environments.livecode.recovery import outbox, progress


class Mortal:
    """The module `os`: it dies before, in the middle of, or after the n-th change to the disk."""

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

    def write(self, fd: int, data: bytes) -> int:
        if self._tick():
            os.write(fd, data[: len(data) // 2])  # torn
            self._die()
        return int(self._around("write", fd, data))

    def fdatasync(self, *arguments: Any) -> Any:
        return self._around("fdatasync", *arguments)

    def fsync(self, *arguments: Any) -> Any:
        return self._around("fsync", *arguments)

    def replace(self, *arguments: Any) -> Any:
        return self._around("replace", *arguments)

    def ftruncate(self, *arguments: Any) -> Any:
        return self._around("ftruncate", *arguments)


def live(options: dict[str, Any], operations: int) -> int:
    """Feeds the trainer until the process dies, or to the run's end; its exit code."""
    mortal = Mortal(operations)
    vars(progress)["os"] = vars(outbox)["os"] = mortal
    whole = environment.LivecodeEnv.deliver

    async def deliver(self: Any, body: bytes) -> None:
        if mortal._tick():
            mortal._die()
        await whole(self, body)
        if mortal._tick():
            mortal._die()

    environment.LivecodeEnv.deliver = deliver  # type: ignore[method-assign]
    return command.run(LivecodeEnv, "serve", RunConfig.model_validate(options))


def main() -> None:
    """Forks an environment for each line "OPERATIONS PATH", says how it ended; imports come once."""
    for line in sys.stdin:
        operations, path = line.rstrip("\n").split(" ", 1)
        pid = os.fork()
        if pid == 0:
            try:
                code = live(json.loads(Path(path).read_text(encoding="utf-8")), int(operations))
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
                code = 99
            os._exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
