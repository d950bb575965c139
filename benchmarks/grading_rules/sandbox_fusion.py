"""SandboxFusion's comparison, and that of verl's client for it. Both need exit status 0.

SandboxFusion (sandbox/utils/testing.py): equally many lines of the stripped text, each equal after stripping and in
lower case, or both a single float with a relative difference below 1e-5.

verl's client (volcengine/verl, verl/utils/reward_score/sandbox_fusion/utils.py) compares the text itself, only without
the line ends at its end.
"""

from __future__ import annotations

from benchmarks.grading_rules.numbers import as_float

RELATIVE = 1e-5
SMALLEST = 1e-10


def printed(got: str, expected: str) -> bool:
    """Whether SandboxFusion takes the printed answer for right."""
    mine, theirs = got.strip().split("\n"), expected.strip().split("\n")
    return len(mine) == len(theirs) and all(map(_line, mine, theirs))


def _line(got: str, expected: str) -> bool:
    got, expected = got.lower().strip(), expected.lower().strip()
    if got == expected:
        return True
    mine, theirs = as_float(got), as_float(expected)
    if mine is None or theirs is None:
        return False
    return abs(mine - theirs) / max(abs(theirs), SMALLEST) < RELATIVE


def printed_for_verl(got: str, expected: str) -> bool:
    """Whether verl's client takes the printed answer for right."""
    return got.rstrip("\n") == expected.rstrip("\n")
