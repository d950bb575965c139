"""What a run folder's environment.jsonl, rollouts/ and programs/ hold; `record_lines` reads and writes the lines.

One definition each: whoever writes a record and whoever reads it have its fields from here.
"""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from environments.common.record_lines import Finite, Whole
from environments.livecode.verification.base import Verdict


class VerdictRecord(msgspec.Struct):
    """What a reader of a verdict wants to know, where it is known. Fields in the judge's order."""

    status: str = ""
    passed: Whole | UnsetType = UNSET
    ran: Whole | UnsetType = UNSET
    total: Whole | UnsetType = UNSET
    failed_test: Whole | UnsetType | None = UNSET
    message: str | UnsetType | None = UNSET
    attempts: dict[str, Whole] | UnsetType | None = UNSET
    """Calls that the sandbox refused, by kind; None: the kernel does not tell."""

    @property
    def said(self) -> str | None:
        """The message, where there is one."""
        return None if self.message is UNSET else self.message


class FailingTest(msgspec.Struct):
    """The beginning of the first test that failed."""

    input: str
    output: str


class GroupRecord(msgspec.Struct, kw_only=True):
    """A line of environment.jsonl: a finished group without its texts.

    Lists have an entry for each rollout. Seconds: `seconds_generate` until the last token, `seconds_verify` summed over
    the rollouts, `seconds` of the whole group.
    """

    time: Finite | None = None
    """When it was finished, seconds since 1970."""
    group_id: str = ""
    problem_id: str = ""
    template: str | None = None
    difficulty: str | None = None
    source: str | None = None
    kind: str | UnsetType = UNSET
    date: str | UnsetType | None = UNSET
    weight_version: Whole | None = None
    """The oldest weights that a token was sampled with."""
    begun_at_version: Whole | None = None
    scores: list[Finite] = []
    verdicts: list[str] = []
    """Their status."""
    overlong: list[bool] = []
    lengths: list[Whole] = []
    """Sampled tokens."""
    prompt_tokens: Whole | None = None
    dropped: str | None = None
    """Why it is not trained on."""
    reason: str | None = None
    """What the error said that it was dropped for."""
    sent: bool = False
    seconds_generate: Finite | None = None
    seconds_verify: Whole | Finite | None = None  # 0 of no rollouts was written without its point
    seconds: Finite | None = None
    written: str | UnsetType = UNSET
    """The file that `process` wrote it to, without a trainer."""


class RolloutRecord(msgspec.Struct, kw_only=True):
    """A line of rollouts/step-NNNNN.jsonl: one rollout as a user debugs it."""

    group_id: str | None = None
    problem_id: str = ""
    template: str | None = None
    difficulty: str | UnsetType | None = UNSET
    index: Whole | None = None
    """Its place in the group."""
    score: Finite | None = None
    status: str = ""
    verdict: VerdictRecord | None = None
    failing_test: FailingTest | UnsetType | None = UNSET
    finish_reason: str | None = None
    prompt_tokens: Whole | None = None
    length: Whole | None = None
    """Sampled tokens."""
    versions: list[tuple[Whole, Whole, Whole]] = []
    """(weight version, start, end) spans of the sampled tokens."""
    dropped: str | None = None
    prompt: str = ""
    completion: str = ""
    code: str | None = None
    token_ids: str | UnsetType = UNSET
    """Sampled, packed."""
    logprobs: str | UnsetType = UNSET
    """The sampler's, packed."""


class ProgramRecord(msgspec.Struct, kw_only=True):
    """A program of a group as programs/ keeps it."""

    index: Whole
    """Its rollout's place in the group."""
    status: str
    verdict: VerdictRecord | None
    score: Finite | None
    overlong: bool
    code: str | None


class ProgramsRecord(msgspec.Struct, kw_only=True):
    """A line of programs/step-NNNNN.jsonl: a group's `ProgramRecord`s, packed."""

    group_id: str
    problem_id: str
    programs: str


def verdict_record(verdict: Verdict) -> VerdictRecord:
    """What records keep of a verdict."""
    return VerdictRecord(**{name: verdict[name] for name in VerdictRecord.__struct_fields__ if name in verdict})  # type: ignore[literal-required]
