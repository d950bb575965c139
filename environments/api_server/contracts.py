"""Which side's terms count: those of a side that is there.

A side that has learned of a difference ends, one that has trained its last step has ended, and one that has not
spoken since this server's start may never come again: what such a side once stated refuses nobody. Else a run that is
continued for more steps, or with a corrected setting, would start once for nothing.
"""

from __future__ import annotations

from typing import Any

from environments.api_server.store import Store
from environments.common.agreement import differences


class Contracts:
    """The terms of the sides that are there, over the store that keeps what each stated last."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._spoke: set[str] = set()
        """Sides that have spoken since this server's start."""
        self._owed: dict[str, str] = {}
        """Sides that another one differs from, with the answer to their next request."""
        self._told: dict[str, str] = {}
        """Sides that have learned of a difference since they last posted, with the answer they got."""

    def spoke(self, side: str) -> str | None:
        """A side has stated its terms, which the store has: in what it differs from another that is there, or None."""
        self._spoke.add(side)
        self._owed.pop(side, None)
        self._told.pop(side, None)
        for former in (self._owed, self._told):
            for other in [other for other in former if not self._differences(side, other)]:
                del former[other]
        rivals = [other for other in self._there() if self._differences(side, other) and not self._finished(other)]
        if not rivals:
            return None
        names = sorted({name for other in rivals for name in self._differences(side, other)})
        said = self._store.contracts
        shown = {one: {name: said[one][name] for name in names if name in said[one]} for one in (side, *rivals)}
        self._told[side] = differences(names, shown)
        self._owed.update(dict.fromkeys(rivals, self._told[side]))
        return self._told[side]

    def refusal(self, side: str) -> str | None:
        """What keeps a side from continuing, or None."""
        if side in self._owed:
            self._told[side] = self._owed.pop(side)
        return self._told.get(side)

    @property
    def agreed(self) -> bool:
        """Whether two sides that are there do not differ."""
        return len(self._there()) > 1

    def _there(self) -> list[str]:
        return [side for side in self._store.contracts if side in self._spoke and side not in self._told]

    def _differences(self, side: str, other: str) -> list[str]:
        one, two = self._store.contracts.get(side, {}), self._store.contracts.get(other, {})
        return [name for name in one if name in two and one[name] != two[name]]

    def _finished(self, side: str) -> bool:
        steps: Any = self._store.contracts[side].get("steps")
        return isinstance(steps, int) and not isinstance(steps, bool) and 0 < steps <= self._store.step
