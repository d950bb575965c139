"""Large test sets travel by themselves, once: requests then name them by their hash."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from environments.livecode.problems.stored_tests import StoredTests
from verifier_app.judge.store import encode_tests

INLINE_BYTES = 1 << 20  # smaller sets travel in the request
KEPT_SETS = 8  # encoded sets kept in memory: a group's rollouts come close together


def is_large(tests: Sequence[dict[str, str]], inline_bytes: int | None = None) -> bool:
    """Whether a set travels by itself: from `inline_bytes` characters on (None: INLINE_BYTES)."""
    size = sum(len(test["input"]) + len(test["output"]) for test in tests)
    return size >= (INLINE_BYTES if inline_bytes is None else inline_bytes)


@dataclass(frozen=True)
class LargeTestSet:
    """A test set that travels by itself."""

    sha256: str
    count: int
    read: Callable[[], bytes]  # the canonical bytes; blocks


class TestSetUploads:
    """Large test sets: each encoded once, and uploaded once to each place."""

    def __init__(self) -> None:
        self._kept: OrderedDict[int, tuple[Any, asyncio.Future[LargeTestSet]]] = OrderedDict()
        self._uploads: Counter[tuple[str, str]] = Counter()
        self._locks: dict[tuple[str, str], asyncio.Lock] = {}

    async def refer(
        self, request: dict[str, Any], inline_bytes: int | None = None
    ) -> tuple[dict[str, Any], LargeTestSet | None]:
        """The request, by reference where its tests have `inline_bytes` or more; None: INLINE_BYTES.

        Equal requests of a problem share one list object (`judge_request`), which is what makes them known again.
        """
        inline_bytes = INLINE_BYTES if inline_bytes is None else inline_bytes
        tests = request.get("tests")
        if isinstance(tests, StoredTests):
            if tests.size < inline_bytes:
                return request | {"tests": await asyncio.to_thread(tests.plain)}, None
            large = LargeTestSet(tests.sha256, tests.total, tests.read)
            return request | _reference(large), large
        if not isinstance(tests, list) or not is_large(tests, inline_bytes):
            return request, None
        if id(tests) not in self._kept:
            work = asyncio.ensure_future(asyncio.to_thread(encode_set, tests))
            self._kept[id(tests)] = (tests, work)  # the list is kept with it: its id stays its own
            while len(self._kept) > KEPT_SETS:
                self._kept.popitem(last=False)
        large = await asyncio.shield(self._kept[id(tests)][1])
        return request | _reference(large), large

    def uploads(self, place: str, large: LargeTestSet) -> int:
        """Uploads of this set to this place so far; what `upload` is given as `seen`."""
        return self._uploads[place, large.sha256]

    async def upload(self, place: str, large: LargeTestSet, seen: int, send: Callable[[], Awaitable[None]]) -> None:
        """Sends a set that was missing; not again where another caller did since `seen`."""
        key = (place, large.sha256)
        async with self._locks.setdefault(key, asyncio.Lock()):
            if self._uploads[key] == seen:
                await send()
                self._uploads[key] += 1


def _reference(large: LargeTestSet) -> dict[str, Any]:
    return {"tests": None, "tests_ref": {"sha256": large.sha256, "count": large.count}}


def encode_set(tests: list[dict[str, str]]) -> LargeTestSet:
    """A set's canonical bytes and their hash."""
    data = encode_tests(tests)
    return LargeTestSet(hashlib.sha256(data).hexdigest(), len(tests), lambda: data)
