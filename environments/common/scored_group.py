"""The one schema of a scored group on the wire: Atropos' fields with their types, and the facts in its overrides.

The environment writes it, the API server checks it once, the trainer reads it. A field's description is the fix that an
error names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args

import msgspec
import numpy as np

from environments.common.errors import LivecodeError
from environments.common.group_bytes import MASKED, UNREADABLE, UnpackedGroup

LARGEST = 3.4e38
Number = Annotated[float, msgspec.Meta(ge=-LARGEST, le=LARGEST)]
"""The trainer computes in float32, where a larger one is infinite."""
Token = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Mask = Annotated[int, msgspec.Meta(ge=MASKED, le=2**31 - 1)]
"""-100 on what is given; on what was sampled the token's id."""

F = TypeVar("F", bound=msgspec.Struct)


class GroupError(LivecodeError, ValueError):
    """A group that nobody could train on; the message names field, value and fix."""


class RolloutFacts(msgspec.Struct, kw_only=True):
    """What a group's `overrides` say of one rollout."""

    set_advantage_to_zero: Annotated[bool, msgspec.Meta(description="send true for a truncated rollout, else false")]
    finish_reason: Annotated[
        Literal["stop", "length"],
        msgspec.Meta(description="send stop or length; an aborted rollout is unfinished"),
    ]
    """abort is unfinished: it is resubmitted or discarded, never scored."""
    versions: Annotated[
        list[tuple[Token, Token, Token]] | None,
        msgspec.Meta(description="send [version, start, end] spans, the first from 0, without gaps"),
    ]
    """Weights that the sampled tokens are of; None: not known."""
    verdict: Any = msgspec.UNSET
    """Its status, for people: nobody computes with it."""


class GroupFacts(msgspec.Struct, kw_only=True):
    """What a group's `group_overrides` say of all its rollouts."""

    group_id: Annotated[str, msgspec.Meta(min_length=1, description="the environment gives each group a UUID string")]
    problem_id: Annotated[str, msgspec.Meta(min_length=1, description="send the problem's id as a string")]
    temperature: Annotated[
        float,
        msgspec.Meta(
            gt=0,
            le=LARGEST,
            description="send the sampling temperature, above 0: the trainer divides its logits by it",
        ),
    ]
    context: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1, description="send the context length in tokens")]


class ScoredGroup(msgspec.Struct, kw_only=True):
    """A group as Atropos' ScoredData, as far as it is looked at: columns with an entry for each rollout.

    Environments written for plain Atropos send facts of their own, or none, so those are any objects here.
    """

    tokens: list[list[Token]]
    masks: list[list[Mask]]
    scores: list[Number]
    advantages: list[list[Number]] | None = None
    ref_logprobs: list[list[Number]] | None = None
    inference_logprobs: list[list[Number]] | None = None
    overrides: list[dict[str, Any]] | None = None
    group_overrides: dict[str, Any] | None = None
    messages: list[list[dict[str, Any]]] | None = None
    env_id: Token | None = None


class Described(ScoredGroup, kw_only=True):
    """The fields beside the numbers that come in binary form."""

    tokens: None = None  # type: ignore[assignment]
    masks: None = None  # type: ignore[assignment]


_group = msgspec.json.Decoder(ScoredGroup)
_described = msgspec.json.Decoder(Described)


def fault(field: str, value: object, fix: str) -> GroupError:
    """The error of a field; a value that is long is shortened."""
    if not isinstance(value, str | int | float | None):
        value = short(value)
    return GroupError(f"{field} is {value!r}: {fix}")


def short(value: object) -> str:
    """A value's beginning as text."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def facts(value: object, kind: type[F], field: str) -> F:
    """The facts in one of a group's objects.

    Raises:
        GroupError: one that is missing or wrong.
    """
    if not isinstance(value, Mapping):
        raise fault(field, short(value), "send an object; the environment of this project does")
    try:
        return msgspec.convert(value, kind)
    except (ValueError, OverflowError):
        for one in msgspec.structs.fields(kind):
            given = value.get(one.encode_name, msgspec.UNSET)
            try:
                msgspec.convert(given, one.type)
            except (ValueError, OverflowError):
                (fix,) = (meta.description for meta in get_args(one.type) if isinstance(meta, msgspec.Meta))
                shown = None if given is msgspec.UNSET else given
                raise fault(f"{field}.{one.encode_name}", shown, str(fix)) from None
        raise


def decode(raw: bytes) -> ScoredGroup:
    """A group from its JSON object, checked.

    Raises:
        GroupError: no group that could be trained on. NaN and infinity are no JSON.
    """
    try:
        group = _group.decode(raw)
    except UNREADABLE as error:
        raise GroupError(f"{error}: send the fields of Atropos' ScoredData, numbers finite") from None
    _check_sizes(group, len(group.tokens))
    for name in ("masks", "inference_logprobs", "ref_logprobs"):
        for index, row in enumerate(getattr(group, name) or []):
            if len(row) != len(group.tokens[index]):
                tokens = len(group.tokens[index])
                raise GroupError(f"{name}[{index}]: {len(row)} entries for {tokens} tokens; send one for each token")
    for index, (ids, mask) in enumerate(zip(group.tokens, group.masks, strict=True)):
        _check_mask(index, ids, mask)
    return group


def described(group: UnpackedGroup) -> Described:
    """As `decode`, of a group that came in binary form: its other fields.

    Raises:
        As `decode`.
    """
    try:
        found = _described.decode(group.rest)
    except UNREADABLE as error:
        raise GroupError(f"{error}: send the fields of Atropos' ScoredData, numbers finite") from None
    _check_sizes(found, len(group.tokens))
    for index, row in enumerate(group.tokens):
        _check_runs(index, group.runs[index], row)
    for name, rows in group.reals.items():
        for index, numbers in enumerate(rows):
            if not (np.abs(numbers) <= LARGEST).all():
                raise GroupError(f"{name}[{index}]: a number that is not finite in float32; send finite ones")
    return found


def _check_sizes(group: ScoredGroup, size: int) -> None:
    if not size:
        raise GroupError("tokens: empty; send at least one rollout")
    for name in ("masks", "scores", "advantages", "ref_logprobs", "inference_logprobs", "overrides", "messages"):
        column = getattr(group, name)
        if column is None or (not column and name not in ("masks", "scores")):
            continue  # Atropos' own base class sends an empty list for a column that it does not have
        if len(column) != size:
            raise GroupError(f"{name}: {len(column)} entries for {size} rollouts; send one each")
    for index, messages in enumerate(group.messages or []):
        if any("role" not in message or "content" not in message for message in messages):
            raise GroupError(f"messages[{index}]: a message without role or content; send both")


def _check_mask(index: int, tokens: list[int], mask: list[int]) -> None:
    """A mask is -100 on what is given and the token's id on what was sampled."""
    given = mask.count(MASKED)
    if given == len(mask):
        raise _no_sampled_token(index, len(mask))
    if mask[0] != MASKED:
        raise GroupError(f"masks[{index}][0] is {mask[0]}: a sampled token needs one before it; send -100 there")
    if mask[:given].count(MASKED) == given and mask[given:] == tokens[given:]:
        return
    for place, (token, entry) in enumerate(zip(tokens, mask, strict=True)):
        if entry not in (MASKED, token):
            raise GroupError(
                f"masks[{index}][{place}] is {entry}: send -100 for what is given, or the token's id, here {token}"
            )


def _check_runs(index: int, runs: list[int], tokens: np.ndarray[Any, Any]) -> None:
    """As `_check_mask`, of a mask that can hold nothing else than -100 and the tokens' ids."""
    given = sum(runs[::2])
    if given == len(tokens):
        raise _no_sampled_token(index, given)
    if not runs[0]:
        raise GroupError(f"masks[{index}][0]: a sampled token needs one before it; begin with a masked run")
    if tokens.min() < 0:
        raise GroupError(f"tokens[{index}]: {tokens.min()} is no token id; send ids of 0 or more")


def _no_sampled_token(index: int, tokens: int) -> GroupError:
    return GroupError(
        f"masks[{index}]: no sampled token among {tokens}; send a completion of one token or more, with its ids in the "
        "mask"
    )
