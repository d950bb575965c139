"""Which problems have several right answers, or wrong tests: independent programs are compared with each other.

A known solution that the tests deny tells of one or the other: where another one passes those tests, both may be right
and the problem has several answers; where all agree on an output that the reference denies, the reference is wrong. Of
a run's programs, which nobody calls solutions, only those count that pass most tests. A statement may say itself that
any answer counts. What is found is for a person to look at: a known solution may simply be wrong.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from environments.common.record_lines import read_lines
from environments.common.shards import record_files
from environments.livecode.evaluation.samples import Sample
from environments.livecode.pipeline import all_of
from environments.livecode.problems.problem import Problem, ProblemError
from environments.livecode.records.schema import RolloutRecord
from environments.livecode.verification.base import VerifierError
from environments.livecode.verification.judge_requests import judge_request
from environments.livecode.verification.local import LocalVerifier
from verifier_app.judge.default_limits import MEMORY_LIMIT_MB, TIME_LIMIT_S
from verifier_app.judge.verdict import RanTest

KEPT_BYTES = 4096  # of an output that is compared; longer ones differ where their beginnings do
MOST = 0.5  # of the tests that a program of a run has to pass to be taken for an answer to the problem
AGREEING = 3  # programs of a run that have to agree: models repeat each other's mistakes
ANY = re.compile(
    r"\b(print|output|return|find|report|construct|give|choose)\b[^.;:]{0,60}?(?<!\bif )\bany\s+(one\s+)?"
    r"(of\s+(them|these|those)|valid|correct|such|order|possible|solution|answer|pair|one)\b|"
    r"\bin\s+any\s+order\b|\bany\s+(valid|correct)\s+(answer|output|solution)|"
    r"\b(multiple|several|many|more\s+than\s+one)\s+(possible\s+|valid\s+|correct\s+|optimal\s+)?(answers?|solutions?)\b|"
    r"\b(answer|solution)s?\s+(is|are|may|might)\s+not\s+(be\s+)?unique",
    re.IGNORECASE,
)


class Ran(NamedTuple):
    """What one program did on one test: the judge's status and, where it ended well, the words that it printed."""

    status: str
    words: str | None


@dataclass
class Finding:
    """Why a problem is to be looked at. kinds: statement, several_answers, wrong_tests."""

    problem_id: str
    kinds: set[str] = field(default_factory=set)
    phrase: str | None = None
    tests: list[dict[str, Any]] = field(default_factory=list)
    """Denied tests: {index, input, expected, outputs: {words: programs}}, texts cut."""


def says_any(statement: str) -> str | None:
    """The words of a statement that allow any of several answers."""
    found = ANY.search(statement)
    return None if found is None else " ".join(found[0].split())


async def run_programs(
    verifier: LocalVerifier, problem: Problem, codes: Sequence[str], time_limit_s: float, memory_limit_mb: int
) -> list[list[Ran]]:
    """Each program on every test of the problem, in the tests' order; none for one that no judge takes."""
    found = []
    for code in codes:
        request = judge_request(problem, code, time_limit_s=time_limit_s, memory_limit_mb=memory_limit_mb)
        request |= {"stop_at_first_failure": False, "keep_output_bytes": KEPT_BYTES}
        try:
            verdict = await verifier.verify(request)
        except VerifierError:
            continue
        rows = {test["index"]: test for test in verdict["tests"]}
        if len(rows) == verdict["total"]:
            found.append([_ran(rows[index]) for index in range(len(rows))])
    return found


def _ran(test: RanTest) -> Ran:
    ended = test["status"] in ("accepted", "wrong_answer")
    return Ran(test["status"], " ".join(test.get("output", "").split()) if ended else None)


def compare(problem: Problem, ran: Sequence[Sequence[Ran]], agreeing: int = 2, most: float = 0.0) -> Finding | None:
    """What the programs say about the problem; None: nothing.

    Args:
        ran: by program, by test.
        agreeing: programs that have to agree against the reference.
        most: share of the tests that a program has to pass to count.
    """
    finding = Finding(problem.id, phrase=says_any(problem.statement))
    if finding.phrase:
        finding.kinds.add("statement")
    good = [tests for tests in ran if sum(one.status == "accepted" for one in tests) >= most * len(tests)]
    for index in range(len(problem.tests)):
        here = [tests[index] for tests in good if tests[index].words is not None]
        denied = Counter(one.words for one in here if one.status == "wrong_answer")
        if not denied:
            continue
        accepted = any(one.status == "accepted" for one in here)
        together = max(denied.values())
        if not accepted and len(denied) == 1 and together >= agreeing:
            finding.kinds.add("wrong_tests")
        elif (accepted and together >= agreeing - 1) or (len(denied) > 1 and sum(denied.values()) >= agreeing):
            finding.kinds.add("several_answers")
        else:
            continue
        test = problem.tests[index]
        outputs = {str(words)[:200]: count for words, count in denied.most_common(5)}
        finding.tests.append(
            {"index": index, "input": test.input[:200], "expected": test.output[:200], "outputs": outputs}
        )
    return finding if finding.kinds else None


async def audit(
    problems: Sequence[tuple[Problem, Sequence[str]]],
    workers: int,
    progress: Callable[[], None],
    *,
    agreeing: int = 2,
    most: float = 0.0,
    time_limit_s: float = TIME_LIMIT_S,
    memory_limit_mb: int = MEMORY_LIMIT_MB,
    tests_dir: Path | None = None,
) -> list[Finding]:
    """The findings of all problems, each with its distinct programs, in their order."""
    bound = asyncio.Semaphore(2 * workers)

    async with LocalVerifier(workers=workers, tests_dir=tests_dir) as verifier:

        async def one(problem: Problem, codes: Sequence[str]) -> Finding | None:
            async with bound:
                distinct = list(dict.fromkeys(codes))
                ran = await run_programs(verifier, problem, distinct, time_limit_s, memory_limit_mb)
            progress()
            return compare(problem, ran, agreeing, most)

        found = await all_of([one(problem, codes) for problem, codes in problems])
    return [finding for finding in found if finding is not None]


def known_solutions(split: Path) -> dict[str, list[str]]:
    """The known solutions of a built split by problem, from the parts that lie beside it; none for another file."""
    parts = (split if split.is_dir() else split.parent).parent / "parts"
    found: dict[str, list[str]] = {}
    for path in sorted(parts.glob("*.jsonl")):
        with path.open(encoding="utf-8") as stream:
            for line in stream:
                try:
                    row = json.loads(line)
                except ValueError:  # torn by a death: the rest is as good
                    continue
                if isinstance(row, dict) and isinstance(row.get("id"), str):
                    found.setdefault(row["id"], []).extend(row.get("solutions") or [])
    return found


def programs_of_run(run: Path) -> dict[str, list[str]]:
    """The recorded programs of a run and its evaluations by problem.

    Raises:
        ProblemError: the folder holds none.
    """
    found: dict[str, list[str]] = {}
    for path in record_files(run, "rollouts"):
        for rollout in read_lines(path, RolloutRecord):
            if rollout.code is not None:
                found.setdefault(rollout.problem_id, []).append(rollout.code)
    for path in sorted((run / "evaluations").glob("*.jsonl")):
        for sample in read_lines(path, Sample):
            if isinstance(sample.code, str):
                found.setdefault(sample.problem, []).append(sample.code)
    if not found:
        raise ProblemError(f"--run {run}: no recorded program there; give a run's folder (env.run_dir)")
    return found


def write(findings: Sequence[Finding], path: Path) -> None:
    """One JSON object a line: {problem_id, kinds, phrase, tests}."""
    lines = [json.dumps(asdict(finding) | {"kinds": sorted(finding.kinds)}, ensure_ascii=False) for finding in findings]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
