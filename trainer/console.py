"""What a run prints: a line for each step, and why it waits."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

_SAID_AT = (10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""Seconds of a wait after which it is logged; later every ten minutes."""
_RECENT = 8
"""Steps whose mean time is that of those to come."""


def duration(seconds: float) -> str:
    """As a person says it: 8 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s" if whole >= 10 else f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class StepLines:
    """The line of each step, with the time left by the last steps' mean."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._recent: deque[float] = deque(maxlen=_RECENT)

    def line(self, row: Mapping[str, Any]) -> str:
        """row: the step's metrics as they are written to metrics.jsonl."""
        step, seconds, tokens = int(row["step"]), float(row["seconds_step"] or 0.0), int(row["tokens_trained"])
        self._recent.append(seconds)
        parts = [
            f"reward {_number(row['reward'], '+.3f')}",
            f"pass@1 {_number(row['pass_at_1'], '.1%')}",
            f"loss {_number(row['loss'], '.4g')}",
            f"grad norm {_number(row['grad_norm'], '.4g')}",
            f"{row['groups']} groups",
            f"{tokens:,} tokens" + (f" ({tokens / seconds:,.0f}/s)" if seconds > 0 else ""),
            duration(seconds),
        ]
        left = self._steps - step
        if left > 0:
            parts.append(f"{duration(left * sum(self._recent) / len(self._recent))} left")
        return f"step {step} of {self._steps}: {', '.join(parts)}"


def _number(value: float | None, form: str) -> str:
    return "none" if value is None else format(value, form)


class Waiting:
    """Says that something is waited for: after ten seconds, and then at growing intervals."""

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._say = say
        self._clock = clock
        self._since = clock()
        self._said = 0

    def begin(self) -> None:
        """A new wait."""
        self._since, self._said = self._clock(), 0

    def look(self, what: str, reason: Callable[[], str]) -> None:
        """To be called again and again while it lasts; `reason` is asked for only when something is logged."""
        waited = self._clock() - self._since
        further = self._said - len(_SAID_AT) + 1
        due = _SAID_AT[self._said] if self._said < len(_SAID_AT) else _SAID_AT[-1] * (1 + further)
        if waited >= due:
            self._said += 1
            self._say(f"waiting for {what}, {duration(waited)}: {reason()}")
