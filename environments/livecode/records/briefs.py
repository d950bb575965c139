"""What records keep of a verdict."""

from __future__ import annotations

from typing import Any

from environments.livecode.verification.base import Verdict


def brief(verdict: Verdict | None) -> dict[str, Any] | None:
    """What a reader of a verdict wants to know, where it is known."""
    if verdict is None:
        return None
    kept = ("status", "passed", "ran", "total", "failed_test", "message", "attempts")
    return {name: value for name, value in verdict.items() if name in kept}
