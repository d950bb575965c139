"""Whether time limits tell right programs from slow ones: what known solutions take, and what brute force may take."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from environments.livecode.pipeline import all_of
from environments.livecode.problems.problem import Problem, ProblemError
from environments.livecode.verification.base import VerifierError
from environments.livecode.verification.judge_requests import judge_request
from environments.livecode.verification.local import LocalVerifier
from environments.livecode.verification.own_limits import OwnLimits
from verifier_app.judge.default_limits import MEMORY_LIMIT_MB, TIME_LIMIT_S

NEAR = 3.0
"""A right solution that takes more than the limit over this is near it: another machine may be so much slower."""


@dataclass(frozen=True)
class Calibration:
    """One problem's limit against its programs.

    limit_s: CPU seconds for a test. slowest_s: the most that a test of a right known solution took, over those
    solutions; None where none is right within NEAR times the limit. solutions, right: how many there are, and how many
    of them are. slow_s: the same for each program that should be too slow and passes.
    """

    problem_id: str
    limit_s: float
    solutions: int
    right: int
    slowest_s: float | None
    slow_s: tuple[float, ...] = ()

    @property
    def complaints(self) -> list[str]:
        """What a person should look at."""
        found = []
        if self.slowest_s is not None and self.slowest_s * NEAR > self.limit_s:
            found.append(
                f"its slowest right solution takes {self.slowest_s:.2f} s of CPU time in a test: "
                f"the limit of {self.limit_s:g} s is {self.limit_s / self.slowest_s:.1f} times that"
            )
        if self.solutions and not self.right:
            found.append(f"none of {self.solutions} known solutions is right within {NEAR:g} times {self.limit_s:g} s")
        if self.slow_s:
            found.append(
                f"{len(self.slow_s)} programs that should be too slow pass, the slowest test of each in "
                f"{', '.join(f'{seconds:.2f}' for seconds in self.slow_s)} s of {self.limit_s:g} s"
            )
        return found


async def calibrate(
    problems: Sequence[Problem],
    solutions: Mapping[str, Sequence[str]],
    slow: Mapping[str, Sequence[str]],
    own_limits: OwnLimits,
    workers: int,
    progress: Callable[[], None],
    tests_dir: Path | None = None,
) -> list[Calibration]:
    """The calibration of every problem, in order.

    Args:
        solutions: known right programs by problem.
        slow: programs by problem that the limit is there to refuse.
        own_limits: what the problems' own limits count; the recipe's hold for the others.
        tests_dir: the store of a built split's test sets.
    """
    bound = asyncio.Semaphore(2 * workers)
    async with LocalVerifier(workers=workers, tests_dir=tests_dir) as verifier:

        async def one(problem: Problem) -> Calibration:
            limit_s, memory_mb = own_limits.of(problem, TIME_LIMIT_S, MEMORY_LIMIT_MB)
            known = list(dict.fromkeys(solutions.get(problem.id, ())))
            async with bound:
                took = [await _longest_s(verifier, problem, code, NEAR * limit_s, memory_mb) for code in known]
                passing = [
                    await _longest_s(verifier, problem, code, limit_s, memory_mb) for code in slow.get(problem.id, ())
                ]
            progress()
            right = [seconds for seconds in took if seconds is not None]
            return Calibration(
                problem.id, limit_s, len(known), len(right), max(right, default=None),
                tuple(seconds for seconds in passing if seconds is not None),
            )  # fmt: skip

        return await all_of([one(problem) for problem in problems])


async def _longest_s(
    verifier: LocalVerifier, problem: Problem, code: str, time_limit_s: float, memory_limit_mb: int
) -> float | None:
    """CPU seconds of a program's slowest test, None where it does not pass them all."""
    request = judge_request(problem, code, time_limit_s=time_limit_s, memory_limit_mb=memory_limit_mb)
    try:
        verdict = await verifier.verify(request)
    except VerifierError as error:
        if "bad_request" in str(error):  # a program that no judge takes: too long, say
            return None
        raise
    return max(test["cpu_s"] for test in verdict["tests"]) if verdict["status"] == "accepted" else None


def read_programs(path: Path) -> dict[str, list[str]]:
    """Programs by problem from a file of {"problem_id", "code"}, one JSON object a line.

    Raises:
        ProblemError: a file that cannot be read, a line of another form.
    """
    found: dict[str, list[str]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ProblemError(f"--slow {path}: cannot be read ({error}); give a JSONL file") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            problem_id, code = row["problem_id"], row["code"]
        except (ValueError, LookupError, TypeError):
            problem_id = code = None
        if not isinstance(problem_id, str) or not isinstance(code, str):
            raise ProblemError(f'{path}:{number}: need {{"problem_id": text, "code": text}}')
        found.setdefault(problem_id, []).append(code)
    return found


def write(calibrations: Sequence[Calibration], path: Path) -> None:
    """One JSON object a line: the fields of `Calibration`."""
    path.write_text("".join(json.dumps(asdict(one)) + "\n" for one in calibrations), encoding="utf-8")
