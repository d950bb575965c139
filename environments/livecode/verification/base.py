"""The interface of a verifier, and its errors: a fault on our side is an error, never a verdict.

VerifierError            no verdict: a request that no judge can take, or retries that did not help
├── JudgeFault           the judge failed at this one program, as it would again
├── Unreachable          the judge cannot be reached or cannot start
└── DeadlineExceeded     no verdict in time

VerifierUnusable         no further verdict is to be had, or none to be trusted: the run ends
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

from environments.common.errors import LivecodeError
from verifier_app.judge.verdict import Verdict as Verdict


class VerifierError(LivecodeError, RuntimeError):
    """There is no verdict; the message says why."""


class Unreachable(VerifierError):
    """The judge cannot be reached, or cannot start."""


class DeadlineExceeded(VerifierError):
    """There was no verdict within the deadline."""


class JudgeFault(VerifierError):
    """The judge itself failed at this program. It would again, and it says nothing of any other program."""


class VerifierUnusable(LivecodeError, RuntimeError):
    """Every further verification would end like this one: the run ends, and the message says what to do."""


class Verifier(Protocol):
    """Judges one program. Used as an async context manager, so that nothing of it outlives the environment."""

    async def verify(self, request: dict[str, Any]) -> Verdict:
        """The verdict on a request (verifier_app.judge.verify's form); VerifierError where there is none."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@runtime_checkable
class ManyVerifier(Protocol):
    """Judges the programs of one problem in one call."""

    async def verify_many(self, requests: Sequence[dict[str, Any]]) -> list[Verdict | VerifierError]:
        """The verdicts in order; an error where there is none."""
        ...


@runtime_checkable
class SelfTested(Protocol):
    """Judges elsewhere, which may be of another version, or in a place where nothing can be judged."""

    async def self_test(self) -> None:
        """Judges known programs; VerifierError or VerifierUnusable where the verdicts are not what they must be."""
        ...
