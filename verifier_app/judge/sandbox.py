"""The layers around a program: set up once in the zygote, entered by every test's process."""

from __future__ import annotations

import os
import resource
import signal

from verifier_app.judge import kernel

MAX_FILE_BYTES = 256 << 20
MAX_OPEN_FILES = 256
STACK_BYTES = 256 << 20
MAX_PROCESSES = 128


def address_space_kb() -> int:
    """VmSize of this process in KiB: what the interpreter itself needs of RLIMIT_AS."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * (resource.getpagesize() // 1024)


class Box:
    """One rollout's sandbox."""

    def __init__(self, memory_mb: int) -> None:
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
        kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE_BYTES, MAX_FILE_BYTES))
        resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_OPEN_FILES, MAX_OPEN_FILES))
        self.address_space = (address_space_kb() << 10) + (memory_mb << 20)
        self.report = {"level": "weak", "layers": ["rlimits"]}

    def enter(self) -> None:
        """In the test's process, before the program."""
        resource.setrlimit(resource.RLIMIT_AS, (self.address_space, self.address_space))
        kernel.prctl(kernel.PR_SET_DUMPABLE, 1)

    def sweep(self, child: int) -> None:
        """Kill what the program left behind."""
        try:
            os.killpg(child, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return

    def clean(self) -> bool:
        """Whether another test may run in this zygote."""
        return True
