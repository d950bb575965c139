"""The `disk` publisher that writes what changed: a whole checkpoint now and then, deltas in between.

A delta's folder names all that it stands on, and vLLM's worker loads the whole of it: so a server that was started
again or missed an update gets all weights from the same folder as the others. A trainer that starts begins with a whole
checkpoint, and what an earlier one left is never referred to.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from trainer.model.policy import Policy
from trainer.weight_sync.disk import DiskPublisher
from trainer.weight_sync.update_phases import ServerUpdate
from trainer.weight_sync.vllm_routes import UNCHANGED, PublishStats, WeightSyncError
from trainer.weight_sync.weight_delta import INFO, Chain, Change, DeltaError, chain_of, difference, write_delta

logger = logging.getLogger(__name__)


class DeltaPublisher(DiskPublisher):
    """See DiskPublisher. Rank 0 keeps the published weights in CPU memory, to find what changed.

    Args:
        full_every: one publication in this many holds all weights; so does one whose deltas together would be as
            large as that.
    """

    def __init__(self, *arguments: Any, full_every: int, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.full_every = full_every
        self._held: dict[str, Tensor] | None = None
        self._chain: Chain | None = None
        self._delta_bytes = 0
        self._now: dict[str, Tensor] = {}
        self._changes: dict[str, Change] | None = None
        self._written_bytes = 0
        self._whole: Path | None = None  # this publication, for a server that refused its delta
        self._whole_is_due = False
        self._writing = threading.Lock()

    def _publish(
        self, tensors: dict[str, Tensor], version: int, prompt: Sequence[int] | None, started: float
    ) -> PublishStats:
        self._now, self._whole = tensors, None
        stats = super()._publish(tensors, version, prompt, started)
        # Only now: a publication that no server got is repeated, and has to be a delta of what they have.
        self._commit(str(version))
        return replace(stats, bytes=self._written_bytes)

    def _commit(self, version: str) -> None:
        """The publication counts: the next one is a delta of it."""
        written = self._whole or self._last
        assert written is not None
        self._chain = chain_of(written)
        self._delta_bytes = self._delta_bytes + self._written_bytes if self._chain.deltas else 0
        self._held = self._now
        self._last, self._published = written, (written, version)
        self._remove_all_but(written)

    def _catch_up(self, written: Path, version: str) -> list[str]:
        self._now, self._whole = self._held or {}, None
        reached = super()._catch_up(written, version)
        if self._whole is not None:
            self._commit(version)
        return reached

    def _tensors(self, weights: Mapping[str, Tensor] | nn.Module) -> dict[str, Tensor]:
        found = super()._tensors(weights)
        # What is held must not change with what it was taken from; a Policy gives copies.
        return found if isinstance(weights, Policy) else {name: tensor.clone() for name, tensor in found.items()}

    def _changed_share(self, tensors: Mapping[str, Tensor]) -> float | None:
        self._changes = None
        if self._held is None:
            return super()._changed_share(tensors)
        pairs = ((name, difference(self._held[name], tensor)) for name, tensor in tensors.items())
        self._changes = {name: change for name, change in pairs if change is not None}
        total = sum(tensor.numel() for tensor in tensors.values())
        return sum(change.changed for change in self._changes.values()) / total if total else None

    def _save(self, tensors: dict[str, Tensor], folder: Path) -> None:
        self._written_bytes = self._save_delta(tensors, folder) or sum(tensor.nbytes for tensor in tensors.values())
        if not (folder / INFO).exists():
            super()._save(tensors, folder)

    def _save_delta(self, tensors: Mapping[str, Tensor], folder: Path) -> int:
        """A delta's bytes; 0 where all weights are due, and nothing is written."""
        chain, changes = self._chain, self._changes
        if self._whole_is_due or chain is None or changes is None or len(chain.deltas) + 1 >= self.full_every:
            return 0
        size = sum(
            part.nbytes for change in changes.values() for part in (change.values, change.gaps) if part is not None
        )
        if self._delta_bytes + size >= sum(tensor.nbytes for tensor in tensors.values()):
            return 0
        try:
            return write_delta(folder, changes, chain)
        except DeltaError as error:
            logger.warning("%s; all weights are written in place of a delta", error)
            return 0

    def _load(self, update: ServerUpdate, folder: Path) -> None:
        try:
            super()._load(update, folder)
        except WeightSyncError as error:
            if UNCHANGED not in error.reason or not (folder / INFO).exists():
                raise
            logger.warning("%s; it gets all weights in place of the delta", error)
            whole = self._all_of_it(folder)
            update.start()  # vLLM has closed the update that failed
            super()._load(update, whole)

    def _all_of_it(self, folder: Path) -> Path:
        """The publication once more, as a whole checkpoint; written once, whoever asks first."""
        with self._writing:
            if self._whole is None:
                self._whole_is_due = True
                try:
                    self._whole = self._write(self._now, int(folder.name.split("-")[1]))
                finally:
                    self._whole_is_due = False
            return self._whole

    def _needed(self, folder: Path) -> set[Path]:
        try:
            found = set(chain_of(folder).folders)
        except DeltaError:
            found = {folder}
        return found | ({self._whole} if self._whole is not None else set())
