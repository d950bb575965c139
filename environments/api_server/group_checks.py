"""Scored groups on the wire: validated once, kept as the bytes that came."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from environments.api_server.shards import foreign
from environments.api_server.store import Entry, new_id
from environments.common import group_bytes, scored_group
from environments.common.group_bytes import UNREADABLE, GroupBytesError
from environments.common.scored_group import GroupError

STOCK_FIELDS = (
    *("advantages", "ref_logprobs", "messages", "generation_params", "inference_logprobs", "overrides"),
    *("group_overrides", "images", "env_id", "distill_token_ids", "distill_logprobs"),
)
"""Fields that a stock server always serves, null where the sender left them out."""


LONGEST_ID = 200
"""Characters of a group's id."""


class Named(msgspec.Struct):
    """What of group_overrides is looked at again."""

    group_id: str | None = None


_named = msgspec.json.Decoder(Named | None)
_groups = msgspec.json.Decoder(list[msgspec.Raw])
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
    except GroupBytesError as error:
        raise GroupError(f"the body: {error}") from None
    named = scored_group.described(group).group_overrides
    return [Entry(_group_id(named), len(group.tokens), group.env_id, body)]


def check_senders(entries: Iterable[Entry], envs: Sequence[Mapping[str, Any]]) -> None:
    """Raises GroupError for a group of a sender whose groups no batch would have, see `shards.foreign`."""
    for entry in entries:
        if said := foreign(entry.env_id, envs):
            raise GroupError(said)


def _entry(raw: bytes) -> Entry:
    group = scored_group.decode(raw)
    return Entry(_group_id(group.group_overrides), len(group.tokens), group.env_id, raw)


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
