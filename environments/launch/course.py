"""How far a whole run is and how long the rest will take: its start, evaluations and steps, in their order."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from typing import Literal

Kind = Literal["start", "evaluation", "step"]
Part = tuple[Kind, int]
"""A kind with the step that it is of."""

WEIGHTS: dict[Kind, float] = {"start": 1.0, "evaluation": 0.75, "step": 1.0}
"""How long a part takes beside the others, until one of its kind has been timed: as in the demo on two cores."""
_RECENT = 5  # parts of a kind that its estimate is the mean of
_LEAST_S = 1.0  # a part that was shorter was not there: servers that ran before, say


def parts_of_run(steps: int, done: int = 0, evaluated_every: int = 0) -> list[Part]:
    """What a run still does that has taken `done` of its steps; evaluated_every 0: no evaluations."""
    parts: list[Part] = [("start", done)]
    if evaluated_every and not done:
        parts.append(("evaluation", 0))
    for step in range(done + 1, steps + 1):
        parts.append(("step", step))
        if evaluated_every and (step % evaluated_every == 0 or step == steps):
            parts.append(("evaluation", step))
    return parts


class Course:
    """The parts of a run, and when each was over. clock: seconds from any moment on."""

    def __init__(self, parts: Sequence[Part], clock: Callable[[], float] = time.monotonic) -> None:
        self._parts, self._clock = list(parts), clock
        self._place = {part: place for place, part in enumerate(self._parts)}
        self._at = 0  # place of the part that is under way
        self._began = self._since = clock()
        self._seconds: dict[Kind, deque[float]] = defaultdict(lambda: deque(maxlen=_RECENT))

    @property
    def last(self) -> Kind | None:
        """The kind of the part that was over last."""
        return self._parts[self._at - 1][0] if self._at else None

    def over(self, kind: Kind, step: int, seconds: float | None = None) -> None:
        """This part is over, and so is what came before it; seconds: that it took, where the clock does not know."""
        place = self._place.get((kind, step), -1)
        if place < self._at:  # said before, or no part of the run
            return
        now = self._clock()
        took = now - self._since if seconds is None else seconds
        if took >= _LEAST_S:
            self._seconds[kind].append(took)
        self._at, self._since = place + 1, now

    def left_s(self) -> float | None:
        """Seconds that the rest will take; None before anything was timed."""
        means = {kind: sum(found) / len(found) for kind, found in self._seconds.items()}
        if not means:
            return None
        unit = sum(means.values()) / sum(WEIGHTS[kind] for kind in means)
        ahead = [means.get(kind, WEIGHTS[kind] * unit) for kind, _ in self._parts[self._at :]]
        if not ahead:
            return 0.0
        return sum(ahead[1:]) + max(0.0, ahead[0] - (self._clock() - self._since))

    def share(self) -> float:
        """The share of the run's time that is over, 0 to 1; 0 before anything was timed."""
        left, gone = self.left_s(), self._clock() - self._began
        return 0.0 if left is None else 1.0 if not left else gone / (gone + left)
