"""The samples of an evaluation: each on the disk when it is judged; a restart generates only what is missing."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from environments.common.record_lines import RecordError, Whole, decode
from environments.livecode.pipeline import JudgedRollout
from environments.livecode.problems.problem import Problem
from environments.livecode.problems.prompts import PromptBuilder
from environments.livecode.records.group_records import append_jsonl, failing_test
from environments.livecode.records.schema import FailingTest, VerdictRecord, verdict_record
from environments.livecode.verification.base import Verdict


class Sample(msgspec.Struct):
    """One judged answer of an evaluation, as its line in the file has it.

    Fields that are UNSET are texts: on the disk only (`without_texts`).
    """

    problem: str
    index: Whole
    status: str | None
    """By the first profile; None: no verdict, asked again."""
    verdicts: dict[str, VerdictRecord] = {}
    """By profile."""
    failing_test: FailingTest | UnsetType | None = UNSET
    length: Whole = 0
    """Tokens."""
    overlong: bool = False
    finish_reason: str | None = None
    message: str | UnsetType | None = UNSET
    code: str | UnsetType | None = UNSET
    text: str | UnsetType = UNSET


logger = logging.getLogger(__name__)


class SampleStore:
    """Samples of one evaluation in FOLDER/NAME.partial.jsonl, which becomes NAME.jsonl when all are there.

    A damaged line is logged, and its sample drawn again. Only an interrupted evaluation is resumed: a finished
    one is repeated, since the server may serve other weights under the same name.

    Args:
        settings: everything that decides what is sampled; another setting is another file.
        reopen: resume a finished one as well, whose score was not recorded before a death.
    """

    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any], *, reopen: bool = False) -> None:
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:8]
        plain = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name.strip("./"))[-60:]
        self.path = folder / f"{plain}-{digest}.jsonl"
        self._partial = self.path.with_suffix(".partial.jsonl")
        self.kept: dict[tuple[str, int], Sample] = {}
        if reopen and self.path.is_file() and not self._partial.is_file():
            self.path.replace(self._partial)
        if self._partial.is_file():
            self._go_on()

    def _go_on(self) -> None:
        whole, damaged, reason = 0, 0, ""
        with self._partial.open("rb") as stream:
            for line in stream:
                if not line.endswith(b"\n"):
                    break  # the line that was being written when the process died: sampled again
                whole += len(line)
                try:
                    sample = decode(line, Sample)
                    self.kept[sample.problem, sample.index] = without_texts(sample)
                except RecordError as error:
                    damaged, reason = damaged + 1, str(error)
        with self._partial.open("r+b") as stream:
            stream.truncate(whole)
        if damaged:
            logger.warning(
                "%s: %d damaged lines (the last: %s): their samples are made again", self._partial, damaged, reason
            )

    def begin(self, problems: Sequence[Problem], prompts: PromptBuilder) -> None:
        """Writes NAME.problems.jsonl: what a reader of the samples wants to know of each problem, once."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_suffix(".problems.jsonl").open("w", encoding="utf-8", errors="backslashreplace") as stream:
            for problem in problems:
                row = {name: getattr(problem, name) for name in ("id", "difficulty", "kind", "platform", "date")}
                stream.write(json.dumps(row | {"prompt": prompts(problem).text}, ensure_ascii=False) + "\n")

    def add(self, sample: Sample) -> None:
        """Keeps a judged sample: its texts on the disk only."""
        self.kept[sample.problem, sample.index] = without_texts(sample)
        append_jsonl(self._partial, sample)

    def discard(self) -> None:
        """Forgets an evaluation that cannot be finished."""
        self.kept.clear()
        self._partial.unlink(missing_ok=True)

    def finish(self, problems: Sequence[Problem]) -> None:
        """Ends the evaluation: NAME.jsonl, and NAME.livecodebench.json, which LiveCodeBench's own tools read."""
        if self._partial.is_file():
            self._partial.replace(self.path)
            write_livecodebench(self.path, problems, self.path.with_suffix(".livecodebench.json"))


def without_texts(sample: Sample) -> Sample:
    """What is counted of a sample."""
    return msgspec.structs.replace(sample, failing_test=UNSET, message=UNSET, code=UNSET, text=UNSET)


def as_sample(
    problem: Problem, index: int, judged: JudgedRollout | None, verdicts: Mapping[str, Verdict] | None = None
) -> Sample:
    """A rollout as it is kept.

    Args:
        verdicts: of each profile, the first one's first; without them the rollout's own alone.
    """
    if judged is None:
        return Sample(problem.id, index, None)
    return Sample(
        problem=problem.id,
        index=index,
        status=judged.status,
        verdicts={name: verdict_record(verdict) for name, verdict in (verdicts or {}).items()},
        failing_test=failing_test(problem, judged.verdict),
        length=judged.sample.length,
        overlong=judged.overlong,
        finish_reason=judged.sample.finish_reason,
        message=judged.verdict.get("message") if judged.verdict else None,
        code=judged.code,
        text=judged.text,
    )


def request_seed(seed: int, problem_id: str, index: int) -> int:
    """A request's sampling seed (31 bits), the same in every process."""
    digest = hashlib.sha256(f"{seed}/{problem_id}/{index}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def pass_at_k(correct: int, total: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k samples is right (Chen et al. 2021, equation 1)."""
    if not 1 <= k <= total:
        raise ValueError(f"k = {k}: need 1 <= k <= the {total} samples of a problem")
    return 1.0 - math.comb(total - correct, k) / math.comb(total, k)


def estimates(samples: Sequence[Sample]) -> dict[str, Any]:
    """{"pass_at_k": {k: mean over problems}, "pass_at_1_first"} for each k up to the fewest samples of a problem;
    samples without a verdict are in neither."""
    right: dict[str, list[bool]] = {}
    for sample in samples:
        if sample.status is not None:
            right.setdefault(sample.problem, []).append(sample.status == "accepted")
    fewest = min(len(row) for row in right.values())
    firsts = [one.status == "accepted" for one in samples if one.index == 0 and one.status is not None]
    return {
        "pass_at_k": {
            str(k): sum(pass_at_k(sum(row), len(row), k) for row in right.values()) / len(right)
            for k in range(1, fewest + 1)
        },
        "pass_at_1_first": sum(firsts) / len(firsts) if firsts else None,
    }


def write_livecodebench(path: Path, problems: Sequence[Problem], out: Path) -> None:
    """Writes the samples of a finished evaluation as a list with one object for each problem.

    One problem at a time is in memory: answers of 40k tokens would not fit otherwise.
    """
    places: dict[str, list[tuple[int, int]]] = {}
    with path.open("rb") as stream, out.open("w", encoding="utf-8", errors="backslashreplace") as target:
        position = 0
        for line in stream:
            try:
                sample = decode(line, Sample)
                if sample.status is not None:
                    places.setdefault(sample.problem, []).append((sample.index, position))
            except RecordError:
                pass  # damaged: logged when it was read, and sampled again further down
            position += len(line)
        target.write("[")
        for number, problem in enumerate(problems):
            own = []
            for _, place in sorted(places.get(problem.id, ())):
                stream.seek(place)
                own.append(decode(stream.readline(), Sample))
            target.write((",\n" if number else "\n") + json.dumps(_livecodebench_row(problem, own), ensure_ascii=False))
        target.write("\n]\n")


def _livecodebench_row(problem: Problem, samples: Sequence[Sample]) -> dict[str, Any]:
    # The official grader's verdict, where it is one of the profiles.
    verdicts = [
        one.verdicts.get("livecodebench", VerdictRecord(one.status or "", message=one.message)) for one in samples
    ]
    graded = [verdict.status == "accepted" for verdict in verdicts]
    return {
        "question_id": problem.id,
        "contest_date": problem.date,
        "difficulty": problem.difficulty,
        "platform": problem.platform,
        "output_list": [sample.text or "" for sample in samples],
        "code_list": [sample.code or "" for sample in samples],
        "graded_list": graded,
        "metadata": [json.dumps({"status": verdict.status, "message": verdict.said}) for verdict in verdicts],
        "pass@1": sum(graded) / len(graded) if graded else None,
    }
