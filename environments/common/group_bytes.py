"""Scored groups in a binary form, beside Atropos' JSON: a third of its gzipped bytes and a twentieth of its time.

A group is a short head in MessagePack and one zstd frame. The frame holds what is not a column of a number a token, as
JSON; then token ids as int32; then each column of log-probabilities as the smallest of three types that gives every
number back exactly. Numbers lie by their bytes' places, all first bytes first, which zstd compresses better. A mask is
-100 or the token's id, so only the lengths of its runs are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import pyarrow

from environments.common.errors import LivecodeError

MEDIA_TYPE = "application/x-atropos-groups"
"""Content-Type of such groups, and what a client that reads them names in Accept."""
MASKED = -100
REALS = ("inference_logprobs", "ref_logprobs")
"""Columns of a number a token."""

UNREADABLE = (msgspec.MsgspecError, RecursionError, UnicodeError)
"""What msgspec's decoders raise for bytes that are none of ours: wrong types, too deep, not UTF-8."""

_GROUP, _JSON, _BATCH = b"\xc1AG1", b"\xc1AJ1", b"\xc1AB1"  # 0xc1 begins neither JSON nor MessagePack
_LEVEL = 1
_SCALE = 1e5
_IDS: np.dtype[Any] = np.dtype("<i4")
_TYPES: dict[str, np.dtype[Any]] = {"e5": _IDS, "f4": np.dtype("<f4"), "f8": np.dtype("<f8")}

Kind = Literal["e5", "f4", "f8"]
"""e5: hundred-thousandths, in which the environment rounds; f4 and f8: floats."""
Natural = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


class GroupBytesError(LivecodeError, ValueError):
    """Bytes that are no group, or a group that has no binary form."""


class _Head(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    env_id: Natural | None
    counts: list[Natural]  # tokens of each rollout
    runs: list[list[Natural]]  # of each rollout's mask: masked, then not, then masked again, ...
    reals: list[tuple[str, Kind]]
    rest: Natural  # bytes
    content: bytes


_head = msgspec.msgpack.Decoder(_Head)
_batch = msgspec.msgpack.Decoder(list[tuple[str, bytes]])
_sized = msgspec.msgpack.Decoder(tuple[Natural, bytes])
_keys = msgspec.json.Decoder(dict[str, msgspec.Raw])


@dataclass(frozen=True)
class UnpackedGroup:
    """A group's columns as arrays.

    tokens: of each rollout, int32. runs: lengths of each mask's runs, the masked one first. reals: columns of float64
    arrays, one a rollout. rest: the other fields, a JSON object.
    """

    env_id: int | None
    tokens: list[np.ndarray[Any, Any]]
    runs: list[list[int]]
    reals: dict[str, list[np.ndarray[Any, Any]]]
    rest: bytes

    @property
    def masks(self) -> list[np.ndarray[Any, Any]]:
        """-100 where a token is given, else the token's id."""
        masks = [row.copy() for row in self.tokens]
        for mask, runs in zip(masks, self.runs, strict=True):
            at = 0
            for place, length in enumerate(runs):
                if place % 2 == 0:
                    mask[at : at + length] = MASKED
                at += length
        return masks

    def fields(self) -> dict[str, Any]:
        """As Atropos' JSON object, with arrays in place of lists of numbers."""
        group: dict[str, Any] = {"tokens": self.tokens, "masks": self.masks, **self.reals}
        group |= msgspec.json.decode(self.rest)
        return group if self.env_id is None else group | {"env_id": self.env_id}

    def json(self) -> bytes:
        """As Atropos' JSON object; row by row, so that other threads run in between."""
        columns = {"tokens": self.tokens, "masks": self.masks, **self.reals}
        group: dict[str, Any] = {
            name: [msgspec.Raw(msgspec.json.encode(row.tolist())) for row in column] for name, column in columns.items()
        }
        group |= _keys.decode(self.rest)
        return msgspec.json.encode(group if self.env_id is None else group | {"env_id": self.env_id})


def is_packed(body: bytes) -> bool:
    """Whether the bytes are a group of `pack`."""
    return body.startswith(_GROUP)


def as_json(body: bytes) -> bytes:
    """A group's JSON object, from itself or from its binary form. Raises GroupBytesError for damaged bytes."""
    return unpack(body).json() if is_packed(body) else body


def pack(group: Mapping[str, Any]) -> bytes:
    """The group in binary form; `unpack` gives every token id and number back bit for bit.

    Raises:
        GroupBytesError: masks that are neither -100 nor the token's id, or columns of another shape.
    """
    rest = dict(group)
    env_id, tokens = rest.pop("env_id", None), [_ids(row) for row in rest.pop("tokens")]
    runs = _runs(tokens, rest.pop("masks"))
    counts = [len(row) for row in tokens]
    parts = [_planes(np.concatenate(tokens) if tokens else np.empty(0, _IDS))]
    reals: list[tuple[str, Kind]] = []
    for name in REALS:
        column = rest.get(name)
        if column and all(row is not None for row in column):
            if [len(row) for row in column] != counts:
                raise GroupBytesError(f"{name}: its rows have not the tokens' lengths; send a number a token")
            kind, numbers = _narrowed(np.concatenate([np.asarray(row, np.float64) for row in column]))
            reals.append((name, kind))
            parts.append(_planes(numbers))
            del rest[name]
    described = msgspec.json.encode(rest)
    content = _compressed(b"".join([described, *parts]))
    return _GROUP + msgspec.msgpack.encode(_Head(env_id, counts, runs, reals, len(described), content))


def unpack(body: bytes, most: int | None = None) -> UnpackedGroup:
    """A group of `pack`.

    Args:
        most: bytes of the longest content that is unpacked; None: any.

    Raises:
        GroupBytesError: no such group, or a longer one; nothing was unpacked then.
    """
    head = _decoded(body)
    width = _IDS.itemsize + sum(_TYPES[kind].itemsize for _, kind in head.reals)
    total = sum(head.counts)
    size = head.rest + total * width
    if most is not None and size > most:
        raise GroupBytesError(f"it unpacks to {size} bytes, above {most >> 20} MiB: send fewer rollouts at once")
    if [sum(runs) for runs in head.runs] != head.counts:
        raise GroupBytesError("the masks' runs do not add up to the numbers of tokens")
    names = [name for name, _ in head.reals]
    if len(set(names)) < len(names) or not set(names) <= set(REALS):
        raise GroupBytesError(f"columns {', '.join(names)[:80]}: there may be {', '.join(REALS)}, each once")
    content = memoryview(_decompressed(head.content, size))
    cuts = np.cumsum(head.counts)[:-1]
    at = head.rest

    def column(kind: Kind) -> list[np.ndarray[Any, Any]]:
        nonlocal at
        width = _TYPES[kind].itemsize
        planes = np.frombuffer(content, np.uint8, total * width, at).reshape(width, total)
        at += total * width
        numbers = np.ascontiguousarray(planes.T).view(_TYPES[kind]).reshape(total)
        return np.split(numbers, cuts) if head.counts else []

    tokens = column("e5")
    reals = {}
    for name, kind in head.reals:
        rows = column(kind)
        reals[name] = [row / _SCALE if kind == "e5" else row.astype(np.float64) for row in rows]
    rest = bytes(content[: head.rest])
    try:
        twice = {"env_id", "tokens", "masks", *names} & _keys.decode(rest).keys()
    except UNREADABLE as error:
        raise GroupBytesError(f"its other fields are no JSON object ({error})") from None
    if twice:
        raise GroupBytesError(f"{sorted(twice)[0]}: it comes twice, as numbers and among the other fields")
    return UnpackedGroup(head.env_id, tokens, head.runs, reals, rest)


def readdressed(body: bytes, env_id: int) -> bytes:
    """A group of `pack` as one that the environment registered as `env_id` sends; its content is not unpacked.

    Raises:
        GroupBytesError: no such group.
    """
    head = _decoded(body)
    head.env_id = env_id
    return _GROUP + msgspec.msgpack.encode(head)


def join(groups: Sequence[tuple[str, bytes]]) -> bytes:
    """A batch of groups with their ids, each in binary form or a JSON object; JSON is compressed."""
    packed = []
    for group_id, body in groups:
        if not is_packed(body):
            body = _JSON + msgspec.msgpack.encode((len(body), _compressed(body)))
        packed.append((group_id, body))
    return _BATCH + msgspec.msgpack.encode(packed)


def split(batch: bytes) -> list[dict[str, Any]]:
    """The groups of `join` as Atropos' JSON objects, with the batch's id as `api_group_id` where they have none, and
    with arrays in place of lists of numbers where they were sent in binary form.

    Raises:
        GroupBytesError: no such batch.
    """
    if not batch.startswith(_BATCH):
        raise GroupBytesError("no batch of groups in binary form")
    groups = []
    try:
        for group_id, body in _batch.decode(memoryview(batch)[len(_BATCH) :]):
            if is_packed(body):
                group = unpack(body).fields()
            else:
                size, content = _sized.decode(memoryview(body)[len(_JSON) :])
                group = msgspec.json.decode(_decompressed(content, size))
            named = group.get("group_overrides")
            if not isinstance(named, dict) or named.get("group_id") is None:
                group["api_group_id"] = group_id
            groups.append(group)
    except UNREADABLE as error:
        raise GroupBytesError(f"no batch of groups in binary form ({error})") from None
    return groups


def _decoded(body: bytes) -> _Head:
    if not is_packed(body):
        raise GroupBytesError("no group in binary form")
    try:
        head = _head.decode(memoryview(body)[len(_GROUP) :])
    except UNREADABLE as error:
        raise GroupBytesError(f"no group in binary form ({error})") from None
    if len(head.runs) != len(head.counts):
        raise GroupBytesError(f"{len(head.runs)} masks for {len(head.counts)} rollouts")
    return head


def _ids(row: Any) -> np.ndarray[Any, Any]:
    ids = np.asarray(row)
    if ids.ndim != 1 or (ids.size and (ids.dtype.kind != "i" or ids.min() < 0 or ids.max() >= 2**31)):
        raise GroupBytesError("tokens: send token ids, integers from 0 to 2**31 - 1")
    return ids.astype(_IDS)


def _runs(tokens: Sequence[np.ndarray[Any, Any]], masks: Sequence[Any]) -> list[list[int]]:
    found = []
    for place, (ids, row) in enumerate(zip(tokens, masks, strict=True)):
        mask = np.asarray(row)
        given = mask == MASKED
        if mask.shape != ids.shape or not np.array_equal(mask[~given], ids[~given]):
            raise GroupBytesError(f"masks[{place}]: it holds more than -100 and the tokens' ids")
        edges = np.flatnonzero(np.diff(given, prepend=True, append=not given[-1] if given.size else True))
        found.append(np.diff(edges, prepend=0).tolist())
    return found


def _narrowed(numbers: np.ndarray[Any, Any]) -> tuple[Kind, np.ndarray[Any, Any]]:
    """The numbers as the smallest type that gives each one back, bit for bit."""
    bits = numbers.view(np.int64)
    with np.errstate(all="ignore"):
        scaled = np.rint(numbers * _SCALE)
        if numbers.size and np.abs(scaled).max() < 2**31:
            whole = scaled.astype(_IDS)
            if np.array_equal((whole / _SCALE).view(np.int64), bits):
                return "e5", whole
        single = numbers.astype(_TYPES["f4"])
        if np.array_equal(single.astype(np.float64).view(np.int64), bits):
            return "f4", single
    return "f8", numbers.astype(_TYPES["f8"])


def _planes(numbers: np.ndarray[Any, Any]) -> bytes:
    width = numbers.dtype.itemsize
    return np.ascontiguousarray(np.ascontiguousarray(numbers).view(np.uint8).reshape(-1, width).T).tobytes()


def _compressed(content: bytes) -> bytes:
    packed: bytes = pyarrow.Codec("zstd", compression_level=_LEVEL).compress(content, asbytes=True)
    return packed


def _decompressed(content: bytes, size: int) -> bytes:
    if not size:
        return b""
    try:
        whole: bytes = pyarrow.decompress(content, decompressed_size=size, codec="zstd", asbytes=True)
    except (OSError, ValueError) as error:
        raise GroupBytesError(f"its zstd frame is damaged or not of the size that its head says ({error})") from None
    return whole
