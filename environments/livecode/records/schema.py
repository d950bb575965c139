"""The lines of a run folder's records as structs, and how a line is written and read.

One definition each: whoever writes a record and whoever reads it have its fields from here. A field with a default may
be missing from a line: an older version did not write it, or there was nothing to say.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import msgspec
from msgspec import UNSET, UnsetType

from environments.common.errors import LivecodeError
from environments.common.http_clients import whole
from environments.livecode.verification.base import Verdict

T = TypeVar("T", bound=msgspec.Struct)

Whole = Annotated[int, msgspec.Meta(ge=-(2**53), le=2**53)]
"""An integer that every reader of JSON has exactly."""
Finite = Annotated[float, msgspec.Meta(ge=-1e300, le=1e300)]
"""A number that can be drawn: NaN and infinity are none."""


class RecordError(LivecodeError, ValueError):
    """A line that is not the record it should be; the message names the field by its path."""


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


def encode(record: msgspec.Struct | Mapping[str, Any]) -> str:
    """The record's line, without its end. A surrogate without its other half becomes U+FFFD."""
    return whole(json.dumps(msgspec.to_builtins(record), ensure_ascii=False, separators=(",", ":")))


def decode(line: bytes | str, kind: type[T]) -> T:
    """The record in a line; fields that it does not know are left out.

    Raises:
        RecordError: no JSON, or a field that is missing or of another type.
    """
    try:
        return convert(json.loads(line), kind)
    except (ValueError, RecursionError) as error:
        raise RecordError(str(error)) from None


def convert(row: object, kind: type[T]) -> T:
    """As `decode`, of a JSON value that is read already."""
    try:
        return msgspec.convert(row, kind)
    except (ValueError, OverflowError) as error:
        raise RecordError(str(error)) from None


def read_lines(path: Path, kind: type[T]) -> Iterator[T]:
    """The records of a file; a line that is none, as a death tears one, is left out."""
    with path.open("rb") as stream:
        for line in stream:
            with suppress(RecordError):
                yield decode(line, kind)


def tolerant(row: Mapping[str, Any], kind: type[T]) -> T | None:
    """As `convert`, for readers that show what there is: a field of another type counts as missing.

    None: a field without a default is missing.
    """
    try:
        return convert(row, kind)
    except RecordError:
        kept = {}
        for field in msgspec.structs.fields(kind):
            if field.encode_name in row and (value := _tolerant_value(row[field.encode_name], field.type)) is not UNSET:
                kept[field.name] = value
        try:
            return kind(**kept)
        except TypeError:
            return None


def _tolerant_value(value: Any, kind: Any) -> Any:
    try:
        return msgspec.convert(value, kind)
    except (ValueError, OverflowError):
        inner = next((one for one in get_args(kind) if isinstance(one, type) and issubclass(one, msgspec.Struct)), None)
        found = tolerant(value, inner) if inner is not None and isinstance(value, dict) else None
        return UNSET if found is None else found
