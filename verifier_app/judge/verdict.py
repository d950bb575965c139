"""A verdict's fields, as they travel as JSON."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict


class RanTest(TypedDict):
    """What one test came to: its place in the request, status, seconds, and megabytes at the peak."""

    index: int
    status: str
    wall_s: float
    cpu_s: float
    peak_mb: float
    output: NotRequired[str]  # where the request asks for it


class Verdict(TypedDict):
    """On one program. The judge gives every field; what only replaces a verdict, as `no_code`, has the first three.

    passed, ran, total: numbers of tests. failed_test: the first failed one's place in the request; None: none failed.
    attempts: what the kernel refused the program, by kind; None: it does not tell. isolation: the sandbox's layers.
    """

    status: str
    passed: int
    total: int
    ran: NotRequired[int]
    failed_test: NotRequired[int | None]
    tests: NotRequired[list[RanTest]]
    message: NotRequired[str]
    attempts: NotRequired[dict[str, int] | None]
    isolation: NotRequired[dict[str, Any]]
