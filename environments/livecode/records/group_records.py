"""What a run leaves behind of its groups: one line per finished group, and sampled rollouts with text and code."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import UNSET

from environments.common.packed import IDS, REALS, packed
from environments.common.record_lines import encode
from environments.common.run_folder import append_line
from environments.common.settings import ConfigError
from environments.livecode.pipeline import JudgedGroup
from environments.livecode.problems.problem import Problem, TestCase
from environments.livecode.problems.prompts import PromptTooLong
from environments.livecode.problems.stored_tests import StoredTests
from environments.livecode.records.programs import append_programs
from environments.livecode.records.schema import FailingTest, GroupRecord, RolloutRecord, verdict_record
from environments.livecode.verification.base import Verdict
from environments.livecode.verification.uploads import INLINE_BYTES

KEPT_OF_A_TEST = 2000  # characters of a failing test's input and output


class GroupRecords:
    """Writes environment.jsonl and rollouts/step-NNNNN.jsonl into the run's folder.

    Args:
        run_dir: made where it is missing.
        rollouts_per_group: rollouts kept of a recorded group.
        every: every how many finished groups one is recorded with its texts.
        programs: keep every program in programs/ as well.
        tokens: keep the recorded rollouts' token ids and log-probabilities.

    Raises:
        ConfigError: the folder cannot be made or written.
    """

    def __init__(
        self,
        run_dir: str | Path,
        *,
        rollouts_per_group: int = 1,
        every: int = 1,
        programs: bool = False,
        tokens: bool = False,
    ) -> None:
        self.run_dir, self._programs, self._tokens = Path(run_dir), programs, tokens
        self._per_group, self._every = rollouts_per_group, every
        self._finished = 0
        try:
            (self.run_dir / "rollouts").mkdir(parents=True, exist_ok=True)
            (self.run_dir / "environment.jsonl").open("a").close()
        except OSError as error:
            raise ConfigError(
                f"env.run_dir = {self.run_dir}: cannot be written ({error.strerror}). Give another folder."
            ) from None

    def group(self, group: JudgedGroup, *, sent: bool, written: str | None = None) -> None:
        """One finished group, whether it was sent, dropped, or `written` to a file of that name, without a trainer.

        Raises OSError where the disk refuses.
        """
        append_line(self.run_dir / "environment.jsonl", self.line(group, sent=sent, written=written))
        self.sample(group)

    @staticmethod
    def line(group: JudgedGroup, *, sent: bool, written: str | None = None) -> str:
        """The line of environment.jsonl, as `group` writes it."""
        return encode(group_record(group, sent=sent, written=written))

    def sample(self, group: JudgedGroup) -> None:
        """Of a finished group what rollouts/ and programs/ keep. Raises OSError where the disk refuses."""
        if self._programs:
            append_programs(self.run_dir, group)
        if self._per_group and group.rollouts and self._finished % self._every == 0:
            path = self.run_dir / "rollouts" / f"step-{group.weight_version:05d}.jsonl"
            for index in range(min(self._per_group, len(group.rollouts))):
                append_line(path, encode(rollout_record(group, index, tokens=self._tokens)))
        self._finished += 1

    def left_out(self, name: str, problems: Sequence[PromptTooLong]) -> Path:
        """A line for each problem of the set `name` that is not used, once however often a run starts; the file."""
        path = self.run_dir / "left_out.jsonl"
        known = set(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else set()
        for error in problems:
            row = {
                "set": name,
                "problem_id": error.problem.id,
                "source": error.problem.source,
                "prompt_tokens": error.tokens,
                "room": error.limit,
                "reason": "prompt too long",
            }
            if (line := encode(row)) not in known:
                append_line(path, line)
        return path


def group_record(group: JudgedGroup, *, sent: bool, written: str | None = None) -> GroupRecord:
    """A group without its texts. written: the file that it was written to, without a trainer."""
    rollouts = group.rollouts
    return GroupRecord(
        time=round(time.time(), 3),
        group_id=group.group_id,
        problem_id=group.problem.id,
        template=group.problem.template,
        difficulty=group.problem.difficulty,
        source=group.problem.source,
        kind=group.problem.kind,
        date=group.problem.date,
        weight_version=group.weight_version,
        begun_at_version=group.begun_at_version,
        scores=group.scores,
        verdicts=[rollout.status for rollout in rollouts],
        overlong=[rollout.overlong for rollout in rollouts],
        lengths=[len(rollout.sample.ids) for rollout in rollouts],
        prompt_tokens=len(group.prompt.ids),
        dropped=group.dropped,
        reason=group.reason or None,
        sent=sent,
        seconds_generate=round(max((rollout.sample.seconds for rollout in rollouts), default=0.0), 3),
        seconds_verify=round(sum(rollout.verify_seconds for rollout in rollouts), 3),
        seconds=round(group.seconds, 3),
        written=written or UNSET,
    )


def rollout_record(group: JudgedGroup, index: int, *, tokens: bool = False) -> RolloutRecord:
    """One rollout: prompt, answer, program, verdict. tokens: its ids and log-probabilities too, where all are there."""
    rollout = group.rollouts[index]
    sample = rollout.sample
    packs = tokens and sample.ids and len(sample.ids) == len(sample.logprobs)
    return RolloutRecord(
        group_id=group.group_id,
        problem_id=group.problem.id,
        template=group.problem.template,
        difficulty=group.problem.difficulty,
        index=index,
        score=group.scores[index] if group.scores else None,
        status=rollout.status,
        verdict=None if rollout.verdict is None else verdict_record(rollout.verdict),
        failing_test=failing_test(group.problem, rollout.verdict),
        finish_reason=sample.finish_reason,
        prompt_tokens=len(group.prompt.ids),
        length=len(sample.ids),
        versions=list(sample.versions),
        dropped=group.dropped,
        prompt=group.prompt.text,
        completion=rollout.text,
        code=rollout.code,
        token_ids=packed(sample.ids, IDS) if packs else UNSET,
        logprobs=packed(sample.logprobs, REALS) if packs else UNSET,
    )


def count_lines(path: str | Path) -> int:
    """Lines of a file that is added to; it is made with its folder where it is missing."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with Path(path).open("ab+") as stream:
        stream.seek(0)
        return sum(1 for _ in stream)


def append_jsonl(path: str | Path, record: msgspec.Struct | Mapping[str, Any]) -> None:
    """One more line of a JSONL file, made with its folder where missing."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    append_line(Path(path), encode(record))


def failing_test(problem: Problem, verdict: Verdict | None) -> FailingTest | None:
    """The beginning of the first test that failed; None where there is none, or its set is large and on disk."""
    index = verdict.get("failed_test") if verdict else None
    tests: Sequence[TestCase] = problem.tests
    if index is None or (isinstance(tests, StoredTests) and tests.size > INLINE_BYTES):
        return None
    test = tests[index]
    return FailingTest(test.input[:KEPT_OF_A_TEST], test.output[:KEPT_OF_A_TEST])
