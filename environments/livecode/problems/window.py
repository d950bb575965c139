"""LiveCodeBench v6 between 2024-08-01 and 2025-05-01: the 454 problems that results are reported on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

SIZE = 454
KINDS = {"stdin": 287, "function": 167}
DIFFICULTIES = {"easy": 110, "medium": 141, "hard": 203}
_SEVERAL, _INTERACTIVE = "several answers are right and one is accepted", "interactive: no program can solve it here"
# Problems whose tests refuse right answers (LiveCodeBench's errata): in the window, and before it.
KNOWN_BAD = {"arc185_c": _SEVERAL, "arc189_a": "a test is wrong"}
KNOWN_BAD_BEFORE = {
    **dict.fromkeys(("abc337_e", "abc355_e"), _INTERACTIVE),
    **dict.fromkeys(
        ("abc311_c", "abc326_d", "abc327_b", "abc333_e", "abc343_a", "abc343_e", "abc350_c", "abc362_c"), _SEVERAL
    ),
}


def ids() -> frozenset[str]:
    """The ids of the 454."""
    return frozenset(
        (files("environments.livecode.problems") / "lcb_v6_window.txt").read_text(encoding="utf-8").split()
    )


def complaints(rows: Sequence[dict[str, Any]]) -> list[str]:
    """In what these rows differ from the 454; empty when they are they."""
    found = []
    got = {row["id"] for row in rows}
    if len(rows) != SIZE:
        found.append(f"{len(rows)} problems instead of {SIZE}")
    for what, names in (("missing", ids() - got), ("not of the window", got - ids())):
        if names:
            listed = ", ".join(sorted(names)[:5]) + (", ..." if len(names) > 5 else "")
            found.append(f"{len(names)} {what}: {listed}")
    for field, known in (("kind", KINDS), ("difficulty", DIFFICULTIES)):
        counts = Counter(row[field] for row in rows)
        if dict(counts) != known:
            found.append(f"by {field} {dict(sorted(counts.items(), key=str))} instead of {known}")
    return found
