"""Work on whole answers and groups, away from the event loop.

An answer of 30,000 tokens takes 30 ms of CPU to read and decode, a group of sixteen 0.4 s to encode, most of it in C
code that holds the interpreter. Hundreds of rollouts end in the same moment where a server decodes in step: on
the loop, or in as many threads as there is work, they would hold up every other request for seconds. One thread
for each kind of work lets the loop turn between two pieces, and bounds what is in memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class SerialExecutor:
    """One thread, started at first use; its calls come in the order they were asked for."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)

    async def __call__(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of `work`, or what it raises."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: work(*args, **kwargs))

    def later(self, work: Callable[[], None]) -> None:
        """Asks for `work` and does not wait; what it raises is lost."""
        self._thread.submit(work)


answers = SerialExecutor("answers")  # reading and decoding; short, and a generation slot waits for some of it
groups = SerialExecutor("groups")  # encoding; longer, and nothing waits for it
progress = SerialExecutor("progress")  # the environment's state, on the disk in the order of its changes
