"""The environment in a process that is killed, as by kill -9, at a chosen operation on its files or delivery.

Its state is written by one thread; the kernel stops that at each system call, see tests/api/mortal.py.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from environments.common import worker_threads
from environments.livecode import command
from environments.livecode.config import RunConfig
from environments.livecode.environment import LivecodeEnv
from tests.api.mortal import listener, watch
from verifier_app.judge.layers.syscalls import PR_SET_PDEATHSIG, prctl


def hand_over(channel: socket.socket) -> None:
    """From here on this thread waits in each operation for the parent."""
    fd = listener()
    socket.send_fds(channel, [b"x"], [fd])
    os.close(fd)


class Mortal(LivecodeEnv):
    """It dies before or after its n-th delivery."""

    deliveries = 0

    def _tick(self) -> None:
        Mortal.deliveries -= 1
        if Mortal.deliveries == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    async def deliver(self, body: bytes) -> None:
        self._tick()
        await super().deliver(body)
        self._tick()


def live(options: dict[str, Any], deliveries: int, channel: socket.socket) -> int:
    """Feeds the trainer until the process dies, or to the run's end; its exit code."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    worker_threads.progress.later(lambda: hand_over(channel))
    Mortal.deliveries = deliveries
    return command.run(Mortal, "serve", RunConfig.model_validate(options))


def main() -> None:
    """Forks an environment for each line "OPERATIONS DELIVERIES PATH", says how it ended; imports come once."""
    for line in sys.stdin:
        operations, deliveries, path = line.rstrip("\n").split(" ", 2)
        options = json.loads(Path(path).read_text(encoding="utf-8"))
        here, there = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            here.close()
            try:
                code = live(options, int(deliveries), there)
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
                code = 99
            os._exit(code)
        there.close()
        with closing(here):
            _, (fd, *_), _, _ = socket.recv_fds(here, 1, 1)
        watch(pid, fd, Path(options["env"]["run_dir"]), int(operations))
        os.close(fd)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
