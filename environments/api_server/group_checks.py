"""Scored groups on the wire: validated once, kept as the bytes that came."""

from __future__ import annotations

import json
from typing import Annotated, Any

import msgspec
import numpy as np

from environments.api_server.store import Entry, new_id
from environments.common import group_bytes
from environments.common.errors import LivecodeError
from environments.common.group_bytes import UNREADABLE, GroupBytesError, UnpackedGroup

STOCK_FIELDS = (
    *("advantages", "ref_logprobs", "messages", "generation_params", "inference_logprobs", "overrides"),
    *("group_overrides", "images", "env_id", "distill_token_ids", "distill_logprobs"),
)
"""Fields that a stock server always serves, null where the sender left them out."""


PROMPT_MASK = group_bytes.MASKED
"""Entry of `masks` on what is not trained; elsewhere the mask holds the token's id."""
LONGEST_ID = 200
"""Characters of a group's id."""
LARGEST = 3.4e38
Number = Annotated[float, msgspec.Meta(ge=-LARGEST, le=LARGEST)]
"""The trainer computes in float32, where a larger one is infinite."""
Token = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Mask = Annotated[int, msgspec.Meta(ge=PROMPT_MASK, le=2**31 - 1)]


class GroupError(LivecodeError, ValueError):
    """A group that nobody could train on; the message names field, value and fix."""


class Wire(msgspec.Struct, kw_only=True):
    """What of a group is looked at."""

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


class Described(Wire, kw_only=True):
    """The fields beside the numbers that come in binary form."""

    tokens: None = None  # type: ignore[assignment]
    masks: None = None  # type: ignore[assignment]


class Named(msgspec.Struct):
    """What of group_overrides is looked at again."""

    group_id: str | None = None


_named = msgspec.json.Decoder(Named | None)
_groups = msgspec.json.Decoder(list[msgspec.Raw])
_group = msgspec.json.Decoder(Wire)
_described = msgspec.json.Decoder(Described)
_keys = msgspec.json.Decoder(dict[str, msgspec.Raw])


def parse(body: bytes, *, several: bool) -> list[Entry]:
    """The groups of a request's body. NaN and infinity are no JSON and are refused with the rest.

    Raises GroupError for the first that cannot be taken.
    """
    try:
        raws = [bytes(raw) for raw in _groups.decode(body)] if several else [bytes(body)]
    except UNREADABLE as error:
        raise GroupError(f"the body is no list of groups ({error}): send JSON without NaN or Infinity") from None
    return [_entry(raw) for raw in raws]


def parse_packed(body: bytes, most: int) -> list[Entry]:
    """The one group of a body in binary form, see `group_bytes`.

    most: bytes of the longest content that is unpacked. Raises GroupError where it cannot be taken.
    """
    try:
        group = group_bytes.unpack(body, most)
        described = _described.decode(group.rest)
    except GroupBytesError as error:
        raise GroupError(f"the body: {error}") from None
    except UNREADABLE as error:
        raise GroupError(f"{error}: send the fields of Atropos' ScoredData, numbers finite") from None
    _check_sizes(described, len(group.tokens))
    for index, row in enumerate(group.tokens):
        _check_runs(index, group, row)
    for name, rows in group.reals.items():
        for index, row in enumerate(rows):
            if not (np.abs(row) <= LARGEST).all():
                raise GroupError(f"{name}[{index}]: a number that is not finite in float32; send finite ones")
    return [Entry(_group_id(described.group_overrides), len(group.tokens), group.env_id, body)]


def _check_runs(index: int, group: UnpackedGroup, tokens: np.ndarray[Any, Any]) -> None:
    """As `_check_mask`, of a mask that can hold nothing else than -100 and the tokens' ids."""
    given = sum(group.runs[index][::2])
    if given == len(tokens):
        raise no_sampled_token(index, given)
    if not group.runs[index][0]:
        raise GroupError(f"masks[{index}][0]: a sampled token needs one before it; begin with a masked run")
    if tokens.min() < 0:
        raise GroupError(f"tokens[{index}]: {tokens.min()} is no token id; send ids of 0 or more")


def _check_sizes(wire: Wire, size: int) -> None:
    if not size:
        raise GroupError("tokens: empty; send at least one rollout")
    for name in ("masks", "scores", "advantages", "ref_logprobs", "inference_logprobs", "overrides", "messages"):
        column = getattr(wire, name)
        if column is None or (not column and name not in ("masks", "scores")):
            continue  # Atropos' own base class sends an empty list for a column that it does not have
        if len(column) != size:
            raise GroupError(f"{name}: {len(column)} entries for {size} rollouts; send one each")
    for index, messages in enumerate(wire.messages or []):
        if any("role" not in message or "content" not in message for message in messages):
            raise GroupError(f"messages[{index}]: a message without role or content; send both")


def no_sampled_token(index: int, tokens: int) -> GroupError:
    """The refusal of a rollout that nothing can be learned from."""
    return GroupError(
        f"masks[{index}]: no sampled token among {tokens}; send a completion of one token or more, with its ids in the "
        "mask"
    )


def _entry(raw: bytes) -> Entry:
    try:
        wire = _group.decode(raw)
    except UNREADABLE as error:
        raise GroupError(f"{error}: send the fields of Atropos' ScoredData, numbers finite") from None
    size = len(wire.tokens)
    _check_sizes(wire, size)
    for name in ("masks", "inference_logprobs", "ref_logprobs"):
        for index, row in enumerate(getattr(wire, name) or []):
            if len(row) != len(wire.tokens[index]):
                raise GroupError(
                    f"{name}[{index}]: {len(row)} entries for {len(wire.tokens[index])} tokens; send one for each token"
                )
    for index, (tokens, mask) in enumerate(zip(wire.tokens, wire.masks, strict=True)):
        _check_mask(index, tokens, mask)
    return Entry(_group_id(wire.group_overrides), size, wire.env_id, raw)


def _check_mask(index: int, tokens: list[int], mask: list[int]) -> None:
    """A mask is -100 on what is given and the token's id on what was sampled."""
    given = mask.count(PROMPT_MASK)
    if given == len(mask):
        raise no_sampled_token(index, len(mask))
    if mask[0] != PROMPT_MASK:
        raise GroupError(f"masks[{index}][0] is {mask[0]}: a sampled token needs one before it; send -100 there")
    if mask[:given].count(PROMPT_MASK) == given and mask[given:] == tokens[given:]:
        return
    for place, (token, entry) in enumerate(zip(tokens, mask, strict=True)):
        if entry not in (PROMPT_MASK, token):
            raise GroupError(
                f"masks[{index}][{place}] is {entry}: send -100 for what is given, or the token's id, here {token}"
            )


def _group_id(named: dict[str, Any] | None) -> str:
    """The sender's id, or one of our own where there is none."""
    group_id = (named or {}).get("group_id")
    if group_id is None:
        return new_id()
    if not isinstance(group_id, str) or not 1 <= len(group_id) <= LONGEST_ID or not group_id.isprintable():
        raise GroupError(
            f"group_overrides.group_id is {ascii(group_id)[:80]}: send a string of 1 to {LONGEST_ID} printable "
            "characters, such as a UUID, or leave it out"
        )
    return group_id


def stock_form(raw: bytes, group_id: str | None = None) -> bytes:
    """The group's JSON object with null for every field of a stock answer that the sender left out.

    raw: the bytes that came, JSON or binary. group_id: the server's id, added as api_group_id where the sender gave
    the group none.
    """
    raw = group_bytes.as_json(raw)
    there = _keys.decode(raw)
    added = [f'"{name}":null' for name in STOCK_FIELDS if name not in there]
    if group_id is not None and not _is_named(there.get("group_overrides")):
        added.append(f'"api_group_id":{json.dumps(group_id)}')
    if not added:
        return raw
    return b"{" + ",".join(added).encode() + b"," + raw.lstrip()[1:]


def _is_named(overrides: msgspec.Raw | None) -> bool:
    """Whether group_overrides has an id."""
    named = _named.decode(overrides) if overrides is not None else None
    return named is not None and named.group_id is not None
