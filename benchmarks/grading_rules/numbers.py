"""Numbers as the graders that use floats take them."""

from __future__ import annotations

import math

RELATIVE, ABSOLUTE = 1e-5, 1e-8
"""numpy's own tolerances, which verl and rllm leave as they are."""


def as_float(text: str) -> float | None:
    """The text as Python's float reads it (1_000, inf and nan included); None where it does not."""
    try:
        return float(text)
    except ValueError:
        return None


def close(got: float, expected: float) -> bool:
    """numpy.isclose: the tolerance grows with the expected number, and nan is close to nothing."""
    if got == expected:
        return True
    if not (math.isfinite(got) and math.isfinite(expected)):
        return False
    return abs(got - expected) <= ABSOLUTE + RELATIVE * abs(expected)


def all_close(got: list[str], expected: list[str]) -> bool:
    """Whether both lists are numbers, equally many, and close in pairs."""
    mine, theirs = [as_float(text) for text in got], [as_float(text) for text in expected]
    if len(mine) != len(theirs) or None in mine or None in theirs:
        return False
    return all(close(a, b) for a, b in zip(mine, theirs, strict=True) if a is not None and b is not None)
