"""Scored groups on the wire: validated once, kept as the bytes that came."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from environments.api_server.store import Entry, new_id
from environments.errors import LivecodeError

STOCK_FIELDS = (
    *("advantages", "ref_logprobs", "messages", "generation_params", "inference_logprobs", "overrides"),
    *("group_overrides", "images", "env_id", "distill_token_ids", "distill_logprobs"),
)
"""Fields that a stock server always serves, null where the sender left them out."""


UNREADABLE = (msgspec.MsgspecError, RecursionError, UnicodeError)
"""What the decoder raises for a body that is no JSON, or not ours: wrong types, too deep, not UTF-8."""


class GroupError(LivecodeError, ValueError):
    """A group that nobody could train on; the message names field, value and fix."""


class Wire(msgspec.Struct):
    """What of a group is looked at."""

    tokens: list[list[int]]
    masks: list[list[int]]
    scores: list[float]
    advantages: list[list[float]] | None = None
    ref_logprobs: list[list[float]] | None = None
    inference_logprobs: list[list[float]] | None = None
    overrides: list[dict[str, Any]] | None = None
    group_overrides: dict[str, Any] | None = None
    messages: list[list[dict[str, Any]]] | None = None
    env_id: int | None = None


_groups = msgspec.json.Decoder(list[msgspec.Raw])
_group = msgspec.json.Decoder(Wire)
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


def _entry(raw: bytes) -> Entry:
    try:
        wire = _group.decode(raw)
    except UNREADABLE as error:
        raise GroupError(f"{error}: send the fields of Atropos' ScoredData, numbers finite") from None
    size = len(wire.tokens)
    if not size:
        raise GroupError("tokens: empty; send at least one rollout")
    for name in ("masks", "scores", "advantages", "ref_logprobs", "inference_logprobs", "overrides", "messages"):
        column = getattr(wire, name)
        if column is not None and len(column) != size:
            raise GroupError(f"{name}: {len(column)} entries for {size} rollouts; send one each")
    for name in ("masks", "inference_logprobs", "ref_logprobs"):
        for index, row in enumerate(getattr(wire, name) or []):
            if len(row) != len(wire.tokens[index]):
                raise GroupError(
                    f"{name}[{index}]: {len(row)} entries for {len(wire.tokens[index])} tokens; send one for each token"
                )
    for index, messages in enumerate(wire.messages or []):
        if any("role" not in message or "content" not in message for message in messages):
            raise GroupError(f"messages[{index}]: a message without role or content; send both")
    for name in ("advantages", "ref_logprobs", "inference_logprobs"):
        for index, row in enumerate(getattr(wire, name) or []):
            if not math.isfinite(math.fsum(row)):
                raise GroupError(f"{name}[{index}]: a number is not finite; send finite numbers")
    group_id = (wire.group_overrides or {}).get("group_id")
    return Entry(group_id if isinstance(group_id, str) and group_id else new_id(), size, wire.env_id, raw)


def stock_form(raw: bytes) -> bytes:
    """The group's bytes with null for every field of a stock answer that the sender left out."""
    there = _keys.decode(raw)
    missing = [name for name in STOCK_FIELDS if name not in there]
    if not missing:
        return raw
    head = ",".join(f'"{name}":null' for name in missing).encode()
    return b"{" + head + b"," + raw.lstrip()[1:]
