"""Lines of the records that processes leave for each other and for people: a struct each, written and read strictly.

A field with a default may be missing from a line: an older version did not write it, or there was nothing to say.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import msgspec
from msgspec import UNSET

from environments.common.errors import LivecodeError
from environments.common.http_clients import whole

T = TypeVar("T", bound=msgspec.Struct)

Whole = Annotated[int, msgspec.Meta(ge=-(2**53), le=2**53)]
"""An integer that every reader of JSON has exactly."""
Finite = Annotated[float, msgspec.Meta(ge=-1e300, le=1e300)]
"""A number that can be drawn: NaN and infinity are none."""


class RecordError(LivecodeError, ValueError):
    """A line that is not the record it should be; the message names the field by its path."""


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
