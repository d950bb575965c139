"""Verification on Modal: one container per rollout, or one for the rollouts of a group."""

from __future__ import annotations

import asyncio
import io
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from types import TracebackType
from typing import Any, Self, TypeVar

from environments.common.rate import Rate
from environments.livecode.verification.base import Unreachable, Verdict, VerifierError, VerifierUnusable
from environments.livecode.verification.judge_requests import LEAST_WAIT_S, wait_s
from environments.livecode.verification.remote import (
    RetryVerification,
    Streak,
    read_verdict,
    self_test,
    tests_of,
    until_deadline,
)
from environments.livecode.verification.uploads import LargeTestSet, TestSetUploads

logger = logging.getLogger(__name__)

T = TypeVar("T")

DEPLOY = "modal deploy -m verifier_app"
# Of one call. Modal sends an input above 2 MiB by HTTP, which a container without a network cannot fetch.
INPUT_BYTES = 1_900_000
ANSWER_S = 20.0  # for Modal to say that the app is there; its client keeps trying for a minute


class ModalVerifier:
    """Judges in Modal's containers. modal itself is imported when one is made.

    A call that Modal refuses, loses or ends is made again until the deadline; a rollout then has no verdict, and its
    cause (the name of Modal's exception, or of the judge's fault) is counted in `causes`; it is never scored.

    Args:
        app: name of the deployed app (VERIFIER_APP when it was deployed).
        volume: name of the app's volume of test sets (VERIFIER_VOLUME).
        environment: Modal's environment; None: the profile's own.
        concurrency: calls at the same time: the app's max_containers, of which buffer_containers are some, far below
            the 2,000 pending inputs that Modal takes.
        starts_per_s: calls that begin in a second, since each needs a new container: more would wait in Modal's queue,
            where their deadlines run. The wait for the first try of a call does not count towards its deadline.
        deadline_s: longest wait for one verdict, retries included; None: by the request (`wait_s`). A call that is
            given up ends by the request's own deadline: Modal's client cannot cancel it.
    """

    def __init__(
        self,
        *,
        app: str = "livecode-verifier",
        volume: str = "livecode-tests",
        environment: str | None = None,
        concurrency: int = 64,
        starts_per_s: float = 30.0,
        deadline_s: float | None = None,
    ) -> None:
        self.deadline_s = deadline_s
        self.causes: Counter[str] = Counter()
        self._app, self._environment = app, environment
        self.call_s: float | None = None  # after so long Modal ends a call; the self-test's containers say it
        self._streak = Streak()
        self._bound, self._starts = asyncio.Semaphore(concurrency), Rate(starts_per_s)
        self._sets = TestSetUploads()
        self._modal = _import_modal()
        self._volume = self._modal.Volume.from_name(volume, environment_name=environment)
        self._verify, self._verify_many = (
            self._modal.Function.from_name(app, name, environment_name=environment)
            for name in ("verify", "verify_many")
        )

    async def __aenter__(self) -> Self:
        """Asks Modal for the app: VerifierError with the command to run where there is none, or no account."""
        modal = self._modal
        try:
            async with asyncio.timeout(ANSWER_S):
                for function in (self._verify, self._verify_many):
                    await function.hydrate.aio()
        except modal.exception.NotFoundError:
            where = f" in environment {self._environment}" if self._environment else ""
            raise VerifierError(f"env.modal_app = {self._app}: no such app{where}. Run: {self._command()}") from None
        except modal.exception.AuthError as error:
            raise VerifierError(f"env.verifier = modal: no valid account ({error}). Run: modal token new") from None
        except modal.exception.Error as error:
            raise Unreachable(f"env.verifier = modal: Modal does not answer ({error})") from None
        except TimeoutError:
            raise Unreachable(f"env.verifier = modal: Modal does not answer within {ANSWER_S:g} s") from None
        return self

    def _command(self) -> str:
        where = f" --env {self._environment}" if self._environment else ""
        name = f"VERIFIER_APP={self._app} " if self._app != "livecode-verifier" else ""
        return f"{name}{DEPLOY}{where}"

    async def self_test(self) -> None:
        """Has containers judge a right and a wrong program.

        Raises:
            VerifierError, VerifierUnusable: there is no verdict, or a wrong one.
        """
        await self_test(self._tested, "modal")

    async def _tested(self, request: dict[str, Any]) -> Verdict:
        async def attempt() -> Verdict:
            (answer,) = await self._call(self._verify, request, large=None)
            self.call_s = answer.get("timeout_s") if isinstance(answer, dict) else None
            return read_verdict(answer, "modal", tests_of(request))

        return await until_deadline(attempt, self.deadline_s or LEAST_WAIT_S, self.causes, Streak(3))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.causes:
            logger.info("verification on Modal: tries without a verdict, by cause: %s", dict(self.causes))

    async def verify(self, request: dict[str, Any]) -> Verdict:
        """The verdict on a request, from a container of its own.

        Raises:
            VerifierError: a request that no judge can take.
            DeadlineExceeded: no verdict in time; the message ends with the last failure.
        """
        code = request.get("code")
        request, large = await self._referred(request, input_bytes(code))
        if input_bytes(request) + input_bytes(code) > INPUT_BYTES:
            raise too_large(input_bytes(code))
        request["code"] = code

        async def attempt() -> Verdict:
            (answer,) = await self._call(self._verify, request, large=large)
            return read_verdict(answer, "modal", tests_of(request))

        async with self._bound:
            deadline_s = wait_s(request, self.deadline_s)
            return await until_deadline(await self._begun(attempt), deadline_s, self.causes, self._streak)

    async def verify_many(self, requests: Sequence[dict[str, Any]]) -> list[Verdict | VerifierError]:
        """The verdicts on the programs of one problem, from one container, in order; an error where there is none.

        A program without a verdict is judged again, in a new container, together with the others that have none.
        """
        own = ("code", "order")
        sizes = [input_bytes({name: request.get(name) for name in own}) for request in requests]
        first, large = await self._referred(requests[0], sum(sizes))
        shared = {name: value for name, value in first.items() if name not in own}
        room = INPUT_BYTES - input_bytes(shared)
        results: list[Verdict | VerifierError | None] = [too_large(size) if size > room else None for size in sizes]

        async def attempt() -> None:
            left = [index for index, result in enumerate(results) if result is None]
            for number, part in enumerate(parts(left, [sizes[index] for index in left], room)):
                if number:
                    await self._starts.turn()
                await judged(part)

        async def judged(left: list[int]) -> None:
            programs = [{name: requests[index].get(name) for name in own} for index in left]
            answers = await self._call(self._verify_many, shared, programs, large=large)
            if len(answers) != len(left):
                raise VerifierError(f"modal: {len(answers)} answers for {len(left)} programs; is it of this version?")
            again: RetryVerification | None = None
            for index, answer in zip(left, answers, strict=True):
                try:
                    results[index] = read_verdict(answer, "modal", tests_of(first))
                    self._streak.judged()
                except RetryVerification as error:
                    again = error
                except VerifierError as error:
                    results[index] = error
            if again is not None:
                raise again

        # Each program may take its time, and a call that runs out of its own is followed by another.
        deadline_s = self.deadline_s or wait_s(first, None) + (len(requests) - 1) * (first.get("deadline_s") or 0.0)
        try:
            async with self._bound:
                await until_deadline(await self._begun(attempt), deadline_s, self.causes, self._streak)
        except VerifierError as error:
            return [error if result is None else result for result in results]
        return [result for result in results if result is not None]

    async def _begun(self, attempt: Callable[[], Awaitable[T]]) -> Callable[[], Awaitable[T]]:
        """The attempt, once its first try may start a container; each further try waits for a turn of its own."""
        await self._starts.turn()
        tries = count()

        async def one() -> T:
            if next(tries):
                await self._starts.turn()
            return await attempt()

        return one

    async def _referred(
        self, request: dict[str, Any], programs_bytes: int
    ) -> tuple[dict[str, Any], LargeTestSet | None]:
        """The request without its code, its tests by reference where they do not fit one input beside the programs."""
        request = request | {"code": ""}
        referred, large = await self._sets.refer(request)
        if large is None and input_bytes(referred) + programs_bytes > INPUT_BYTES:
            referred, large = await self._sets.refer(request, 0)
        return referred, large

    async def _call(self, function: Any, *arguments: Any, large: LargeTestSet | None) -> list[Any]:
        """The answers of one call; a test set that the volume lacks is uploaded first."""
        seen = self._sets.uploads("", large) if large else 0
        answer = await self._remote(function, *arguments)
        answers = answer if isinstance(answer, list) else [answer]
        if large is None or not any(_missing(answer) for answer in answers):
            return answers
        await self._sets.upload("", large, seen, lambda: self._upload(large))
        answer = await self._remote(function, *arguments)
        answers = answer if isinstance(answer, list) else [answer]
        if any(_missing(answer) for answer in answers):
            # a container that was warm before the upload still sees the volume as it was
            raise RetryVerification("test_set_missing", f"the volume does not show {large.sha256} yet")
        return answers

    async def _remote(self, function: Any, *arguments: Any) -> Any:
        exceptions = self._modal.exception
        try:
            return await function.remote.aio(*arguments)
        except exceptions.AuthError as error:
            raise VerifierUnusable(f"modal: {error}. Run: modal token new") from error
        except (exceptions.NotFoundError, exceptions.PermissionDeniedError) as error:
            raise VerifierUnusable(f"modal: {error}. Is the app deployed? Run: {self._command()}") from error
        except (exceptions.UnimplementedError, exceptions.VersionError) as error:
            raise VerifierUnusable(f"modal: {error}. Client and service do not fit: pip install -U modal") from error
        except exceptions.ConflictError as error:  # ABORTED: an InvalidError by name only
            raise RetryVerification(type(error).__name__, f"modal: {type(error).__name__}: {error}") from error
        except (exceptions.InvalidError, exceptions.RequestSizeError, exceptions.SerializationError) as error:
            raise VerifierError(f"modal: {type(error).__name__}: {error}") from error
        except Exception as error:  # whatever came from there, it is no verdict
            raise RetryVerification(type(error).__name__, f"modal: {type(error).__name__}: {error}") from error

    async def _upload(self, large: LargeTestSet) -> None:
        try:
            await upload_sets(self._volume, [(large.sha256, await asyncio.to_thread(large.read))])
        except self._modal.exception.Error as error:
            raise RetryVerification(type(error).__name__, f"modal: the upload failed: {error}") from error


def input_bytes(value: Any) -> int:
    """About what a value takes in a call's input."""
    if isinstance(value, str):
        return 9 + (len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass")))
    if isinstance(value, dict):
        return 9 + sum(input_bytes(name) + input_bytes(item) for name, item in value.items())
    if isinstance(value, list | tuple):
        return 9 + sum(map(input_bytes, value))
    return 9


def too_large(size: int) -> VerifierError:
    """The error of a program that no call takes."""
    return VerifierError(f"code: {size} bytes; a call to Modal takes {INPUT_BYTES} in all")


def parts(indices: Sequence[int], sizes: Sequence[int], room: int) -> list[list[int]]:
    """The indices in groups whose sizes add up to at most `room`."""
    found: list[list[int]] = []
    left = 0
    for index, size in zip(indices, sizes, strict=True):
        if not found or size > left:
            found.append([])
            left = room
        found[-1].append(index)
        left -= size
    return found


async def upload_sets(volume: Any, sets: Sequence[tuple[str, bytes]]) -> None:
    """Puts test sets [(sha256, canonical bytes)] into the volume, where the judge's store looks for them.

    What Modal holds already is not sent again; a file is only ever replaced by its own bytes.
    """
    async with volume.batch_upload(force=True) as batch:
        for sha, data in sets:
            batch.put_file(io.BytesIO(data), f"/{sha[:2]}/{sha}")


def _missing(answer: Any) -> bool:
    fault = answer.get("error") if isinstance(answer, dict) else None
    return isinstance(fault, dict) and fault.get("kind") == "test_set_missing"


def _import_modal() -> Any:
    try:
        import modal
        import modal.exception
    except ModuleNotFoundError:
        raise VerifierError("env.verifier = modal: the package modal is missing. Run: pip install modal") from None
    return modal
