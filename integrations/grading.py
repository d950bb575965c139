"""An answer in, a verdict and its reward out: extraction, judge and reward as in our own environment.

A fault of ours (a judge that cannot be reached, a loaded host) is tried again by the verifier, as in a run of ours;
what is left of it is NoVerdict and never a reward. Each adapter hands it on as its host's way to say "no sample".
"""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from environments.common.errors import ConfigError, LivecodeError
from environments.common.rewards import reward
from environments.livecode.problems.extraction import extract_code
from environments.livecode.problems.problem import Problem
from environments.livecode.verification.base import Verdict, Verifier, VerifierError
from environments.livecode.verification.judge_requests import judge_request
from verifier_app.judge.default_limits import MEMORY_LIMIT_MB, TIME_LIMIT_S

NO_MEMORY_LIMIT_MB = 16384
"""The limit where the official grader has none, as in evaluations."""
NO_CODE: Verdict = {"status": "no_code", "passed": 0, "total": 0, "message": "no fenced block in the answer"}


class NoVerdict(LivecodeError, RuntimeError):
    """There is no verdict on this answer, by no fault of its own: the sample must not be scored."""


@dataclass(frozen=True)
class Grade:
    """A verdict: its status, its reward (+1 accepted, -1 any other) and what the judge says to it."""

    status: str
    reward: float
    verdict: Verdict = field(repr=False)

    @property
    def accepted(self) -> bool:
        """Whether every test passed."""
        return self.status == "accepted"


@dataclass(frozen=True)
class Judging:
    """Where and by which limits programs are judged.

    urls: addresses of `atropos verifier serve`; none: a pool of judge processes on this machine.
    workers: judges of that pool at the same time; None: one for each core.
    time_limit_s, memory_limit_mb: of one test.
    decimal_tolerance: how far two decimal numbers may lie apart; None: they must be equal.
    semantics: "official" judges as LiveCodeBench's grader does; None: each program is a process of its own.
    """

    urls: tuple[str, ...] = ()
    workers: int | None = None
    time_limit_s: float = TIME_LIMIT_S
    memory_limit_mb: int = MEMORY_LIMIT_MB
    decimal_tolerance: float | None = None
    semantics: Literal["official"] | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"workers = {self.workers}: give at least 1, or none for one judge a core")
        if not self.time_limit_s > 0:
            raise ConfigError(f"time_limit_s = {self.time_limit_s}: give a number above 0")
        for url in self.urls:
            if not url.startswith(("http://", "https://")):
                raise ConfigError(f"urls: {url!r} is no address; give http://HOST:PORT of `atropos verifier serve`")

    @classmethod
    def from_environment(cls) -> Judging:
        """By variables, for hosts that call a function without options: LIVECODE_VERIFIER_URLS (separated by commas),
        LIVECODE_VERIFIER_WORKERS, LIVECODE_TIME_LIMIT_S, LIVECODE_MEMORY_LIMIT_MB.

        Raises:
            ConfigError: a value that is no number or no address.
        """
        given: dict[str, Any] = {}
        for name, kind in (("workers", int), ("time_limit_s", float), ("memory_limit_mb", int)):
            variable = "LIVECODE_" + {"workers": "VERIFIER_WORKERS"}.get(name, name.upper())
            if text := os.environ.get(variable, "").strip():
                try:
                    given[name] = kind(text)
                except ValueError:
                    raise ConfigError(f"{variable} = {text!r}: give a number") from None
        urls = os.environ.get("LIVECODE_VERIFIER_URLS", "")
        return cls(tuple(url.strip() for url in urls.split(",") if url.strip()), **given)


class Grader:
    """Grades answers in an event loop; used as an async context manager.

    Args:
        verifier: in place of the one that `judging` names.
    """

    def __init__(self, judging: Judging | None = None, verifier: Verifier | None = None) -> None:
        self.judging = judging or Judging()
        self._verifier = verifier
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        verifier = self._verifier or self._built()
        self._verifier = await self._stack.enter_async_context(verifier)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, error, trace)

    def _built(self) -> Verifier:
        if self.judging.urls:
            from environments.livecode.verification.http import HttpVerifier

            return HttpVerifier(self.judging.urls)
        from environments.livecode.verification.local import LocalVerifier

        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="livecode-tests-"))
        return LocalVerifier(workers=self.judging.workers or len(os.sched_getaffinity(0)), tests_dir=folder)

    async def grade(self, problem: Problem, answer: str, reasoning_open: bool = False) -> Grade:
        """The grade of a model's answer, special tokens removed.

        Args:
            reasoning_open: the prompt opened the reasoning already, so the answer starts inside it.

        Raises:
            NoVerdict: no judge could give one.
        """
        code = extract_code(answer, reasoning_open)
        if code is None:
            return _graded(NO_CODE)
        return await self.grade_program(problem, code)

    async def grade_program(self, problem: Problem, code: str) -> Grade:
        """The grade of a program; raises as `grade`."""
        assert self._verifier is not None
        limits = self.judging
        request = judge_request(
            problem,
            code,
            time_limit_s=limits.time_limit_s,
            memory_limit_mb=limits.memory_limit_mb,
            decimal_tolerance=limits.decimal_tolerance,
            semantics=limits.semantics,
        )
        try:
            return _graded(await self._verifier.verify(request))
        except VerifierError as error:
            raise NoVerdict(f"problem {problem.id}: no verdict: {error}") from error


def _graded(verdict: Verdict) -> Grade:
    score = reward(verdict)
    assert score is not None
    return Grade(str(verdict["status"]), score, verdict)


class BlockingGrader:
    """A Grader for hosts without an event loop: it has one in a thread of its own, and any thread may call it."""

    def __init__(self, judging: Judging | None = None, verifier: Verifier | None = None) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="livecode-grader", daemon=True)
        self._thread.start()
        self._grader = Grader(judging, verifier)
        try:
            self._run(self._grader.__aenter__())
        except BaseException:
            self._end()
            raise

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def grade_all(self, answers: Sequence[tuple[Problem, str]]) -> list[Grade | NoVerdict]:
        """The grades of (problem, answer) in order; NoVerdict in the place of those that no judge could give."""

        async def one(problem: Problem, answer: str) -> Grade | NoVerdict:
            try:
                return await self._grader.grade(problem, answer)
            except NoVerdict as error:
                return error

        async def every() -> list[Grade | NoVerdict]:
            return await asyncio.gather(*(one(problem, answer) for problem, answer in answers))

        grades: list[Grade | NoVerdict] = self._run(every())
        return grades

    def grade(self, problem: Problem, answer: str) -> Grade:
        """One grade; NoVerdict where no judge could give it."""
        (grade,) = self.grade_all([(problem, answer)])
        if isinstance(grade, NoVerdict):
            raise grade
        return grade

    def close(self) -> None:
        """Ends the judges and the thread; a second call does nothing."""
        if self._thread.is_alive():
            try:
                self._run(self._grader.__aexit__(None, None, None))
            finally:
                self._end()


_shared: dict[tuple[int, Judging], BlockingGrader] = {}
_sharing = threading.Lock()


def shared_grader(judging: Judging | None = None) -> BlockingGrader:
    """This process's grader for these options, made at first use and closed when the process ends."""
    key = (os.getpid(), judging or Judging.from_environment())  # a forked child has none of its parent's threads
    with _sharing:
        if key not in _shared:
            _shared[key] = BlockingGrader(key[1])
            atexit.register(_shared[key].close)
        return _shared[key]


def answer_text(completion: str | Sequence[Mapping[str, Any]]) -> str:
    """The answer of a completion as hosts have it: a text, or a chat whose last message it is."""
    if isinstance(completion, str):
        return completion
    content = completion[-1].get("content") if completion else ""
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return str(content or "")


def problem_text(problem: Problem) -> str:
    """The problem as one JSON text, for a column of a host's data set; a large test set stays on disk and is named."""
    from environments.livecode.problems.stored_tests import StoredTests

    if not isinstance(problem.tests, StoredTests):
        return problem.model_dump_json()
    stored = problem.tests
    place = {"folder": str(stored.folder.resolve()), "sha256": stored.sha256, "count": stored.total}
    return Problem.model_construct(**{**dict(problem), "tests": {**place, "bytes": stored.size}}).model_dump_json(
        warnings=False
    )


@lru_cache(maxsize=4096)
def problem_of(text: str) -> Problem:
    """The problem of `problem_text`; ProblemError for a text that is none."""
    from environments.livecode.problems.problem import refuse, validated
    from environments.livecode.problems.stored_tests import StoredTests

    try:
        fields = json.loads(text)
    except ValueError as error:
        refuse("in the data set", f"its column is not JSON ({error}); make it by integrations.grading.problem_text")
    if not isinstance(fields, dict):
        refuse("in the data set", f"its column holds a {type(fields).__name__}, need an object")
    tests = fields.get("tests")
    if not isinstance(tests, dict):
        return validated(fields, str(fields.get("id", "without id")))
    stored = StoredTests(Path(tests["folder"]), tests["sha256"], tests["count"], tests["bytes"])
    return Problem.model_construct(**{**fields, "tests": stored})


def problems_named(name: str, seed: int = 0) -> list[Problem]:
    """Problems of a built split, a JSONL file, or a warm-up set (warmup:train); ProblemError where there are none."""
    from environments.livecode.problems.sampler import load_set

    return load_set(name, seed)


def of_profile(name: str) -> Judging:
    """The limits that `atropos evaluate` grades by: livecodebench (the official grader's) or nouscoder.

    Raises:
        ConfigError: no such profile.
    """
    from environments.livecode.evaluation.profiles import grading_profiles

    known = {
        profile.name: profile
        for profile in grading_profiles(
            ["livecodebench", "nouscoder"],
            time_limit_s=TIME_LIMIT_S,
            memory_limit_mb=MEMORY_LIMIT_MB,
            no_memory_limit_mb=NO_MEMORY_LIMIT_MB,
        )
    }
    if name not in known:
        raise ConfigError(f"profile = {name!r}: choose {' or '.join(known)}")
    profile = known[name]
    return replace(
        Judging.from_environment(),
        time_limit_s=profile.time_limit_s,
        memory_limit_mb=profile.memory_limit_mb,
        decimal_tolerance=profile.decimal_tolerance,
    )
