"""Numbers of a token each, in a line of JSON: little-endian, compressed by zlib, written in base64."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np

IDS = "<i4"
REALS = "<f2"
"""Half precision: three digits, which is what a picture shows."""
FLAGS = "u1"


def packed(values: Iterable[float] | np.ndarray[Any, Any], kind: str) -> str:
    """One number a token as text. kind: IDS, REALS or FLAGS."""
    with np.errstate(over="ignore"):  # a log-probability of a token that was impossible becomes -inf
        numbers = np.asarray(values if isinstance(values, np.ndarray) else list(values)).astype(kind)
    return base64.b64encode(zlib.compress(numbers.tobytes(), 6)).decode()


def unpacked(text: str, kind: str) -> np.ndarray[Any, Any]:
    """What `packed` was given, [n]. Raises ValueError where the text is none of its."""
    try:
        return np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), dtype=kind)
    except (zlib.error, ValueError, TypeError) as error:
        raise ValueError(f"not packed numbers: {error}") from None
