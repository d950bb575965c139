"""One call for the programs of one group."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from environments.livecode.verification.base import Verdict, VerifierError


class GroupVerifier:
    """Collects the programs of one group; when the last rollout has one, or has ended, all are judged in one call.

    Args:
        judge: the call; an error takes the place of a missing verdict.
        members: rollouts of the group. Each enters `verify` as often as it likes and ends with `leave`.
    """

    def __init__(
        self, judge: Callable[[Sequence[dict[str, Any]]], Awaitable[list[Verdict | VerifierError]]], members: int
    ) -> None:
        self._judge, self._members = judge, members
        self._waiting: list[tuple[dict[str, Any], asyncio.Future[Verdict]]] = []
        self._calls: set[asyncio.Task[None]] = set()

    async def verify(self, request: dict[str, Any]) -> Verdict:
        """The verdict on this member's program, once all members are here or gone."""
        future: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        self._call_when_complete()
        return await future

    def leave(self) -> None:
        """This member hands in nothing more."""
        self._members -= 1
        self._call_when_complete()
        if self._members == 0:  # nobody waits for a call that is still under way
            for call in self._calls:
                call.cancel()

    def _call_when_complete(self) -> None:
        waiting = [(request, future) for request, future in self._waiting if not future.done()]
        if waiting and len(waiting) >= self._members:
            self._waiting = []
            task = asyncio.create_task(self._call(waiting))
            self._calls.add(task)
            task.add_done_callback(self._calls.discard)

    async def _call(self, waiting: list[tuple[dict[str, Any], asyncio.Future[Verdict]]]) -> None:
        try:
            results: Sequence[Verdict | BaseException] = await self._judge([request for request, _ in waiting])
        except Exception as error:
            results = [error] * len(waiting)
        for (_, future), result in zip(waiting, results, strict=True):
            if future.done():
                continue
            if isinstance(result, BaseException):
                future.set_exception(result)
            else:
                future.set_result(result)
