"""What a token's id means, from tokenizer.json: its bytes, since a token may end within a character."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def texts(folder: Path, wanted: Collection[int]) -> dict[int, str]:
    """{id: its bytes, each as the character of that number} of the wanted ids that folder/tokenizer.json knows.

    Byte-level and byte-fallback vocabularies; of a file that cannot be read nothing.
    """
    try:
        file = json.loads((folder / "tokenizer.json").read_bytes())
        pieces, added = file["model"]["vocab"], file.get("added_tokens") or []
        by_id = {number: piece for piece, number in _pairs(pieces) if number in wanted}
        special = {one["id"]: one["content"] for one in added if one["id"] in wanted}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}
    to_bytes = _byte_level if "ByteLevel" in _kinds(file.get("decoder")) else _metaspace
    found = {number: to_bytes(piece) for number, piece in by_id.items()}
    found |= {number: content.encode() for number, content in special.items()}
    return {number: data.decode("latin-1") for number, data in sorted(found.items())}


def _pairs(pieces: Any) -> list[tuple[str, int]]:
    """(piece, id) of a vocabulary: a mapping (BPE), or a list of pieces with their scores (Unigram)."""
    if isinstance(pieces, dict):
        return list(pieces.items())
    return [(piece, number) for number, (piece, _) in enumerate(pieces)]


def _kinds(decoder: Any) -> set[str]:
    """The types of a decoder and of those within it."""
    if not isinstance(decoder, dict):
        return set()
    return {str(decoder.get("type"))}.union(*(_kinds(one) for one in decoder.get("decoders") or ()))


def _byte_level(piece: str) -> bytes:
    """A piece in GPT-2's letters for bytes; a letter without one is itself."""
    return b"".join(bytes([_LETTERS[letter]]) if letter in _LETTERS else letter.encode() for letter in piece)


def _metaspace(piece: str) -> bytes:
    """A piece in SentencePiece's form: <0x0A> is a byte, and U+2581 a space."""
    found = _BYTE.fullmatch(piece)
    return bytes([int(found[1], 16)]) if found else piece.replace("\u2581", " ").encode()


def _letters() -> dict[str, int]:
    """GPT-2's letter of each byte: itself where it can be printed, else the next one from 256 on."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("\u00a1"), ord("\u00ac") + 1), *range(0xAE, 0x100)]
    other = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(other)}


_LETTERS = _letters()
