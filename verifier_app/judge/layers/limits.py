"""Resource limits of the sandbox, and what takes a limit's place on a kernel that refuses to set it.

gVisor knows a fixed list of limits and answers EPERM to the rest, which CPython raises as ValueError.
"""

from __future__ import annotations

import resource

MAX_OPEN_FILES = 1024
MAX_TASKS = 256
ROOM_FOR_STACKS = MAX_TASKS * (64 << 20)  # the hard limit of address space is so much above the soft one
COVERED = {  # the layer that does a refused limit's work, and how; a limit that is not here must be set
    resource.RLIMIT_CORE: ("rlimits", "a dump is a file like any other, and bounded as one"),
    resource.RLIMIT_CPU: ("rlimits", "the judge's watch stops the test"),
    resource.RLIMIT_FSIZE: ("private_root", "the scratch folders have a size"),
    resource.RLIMIT_MEMLOCK: ("seccomp", "seccomp refuses mlock"),
    resource.RLIMIT_MSGQUEUE: ("seccomp", "seccomp refuses mq_open"),
    resource.RLIMIT_NPROC: ("rlimits", "the judge's watch counts processes"),
}
_NAMES = {getattr(resource, name): name for name in dir(resource) if name.startswith("RLIMIT_")}
_NAMES[resource.RLIMIT_NOFILE] = "RLIMIT_NOFILE"  # RLIMIT_OFILE is the same


class LimitRefused(Exception):
    """This kernel does not set a limit that nothing else replaces."""


class Limits:
    """The limits of one sandbox. `missing`: name of a limit that this kernel refuses -> what covers for it."""

    def __init__(self, layers: list[str]) -> None:
        self.layers = layers
        self.missing: dict[str, str] = {}

    def lower(self, which: int, value: int, room: int = 0) -> None:
        """Set soft and hard limit, where they are not lower already; `room`: the hard one is so much higher."""
        _, hard = resource.getrlimit(which)
        most = value + room if hard == resource.RLIM_INFINITY else min(value + room, hard)
        self._set(which, (min(value, most), most))

    def settable(self, which: int) -> bool:
        """Whether a limit that is for the tests' processes alone can be set."""
        return self._set(which, resource.getrlimit(which))

    def _set(self, which: int, pair: tuple[int, int]) -> bool:
        """Raises LimitRefused where the kernel refuses and no layer covers for it."""
        try:
            resource.setrlimit(which, pair)
        except (OSError, ValueError) as error:
            name = _NAMES[which]
            layer, how = COVERED.get(which, (None, ""))
            if layer not in self.layers:
                raise LimitRefused(f"{name} cannot be set here ({error}), and nothing covers for it") from None
            self.missing[name] = how
            return False
        return True
