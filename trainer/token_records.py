"""What a step made of the tokens of recorded rollouts, for the report: old log-probability, change, clipped or not.

    trained_tokens/step-00000012-0.jsonl    of the step that made weight version 12, by rank 0; a line a rollout

The trainer writes it, since nobody else has it: the ratio that decides about the clip is of the weights between two
optimizer steps. `atropos replay` could compute it again, for the few steps whose batches are kept, in a step's time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from environments.common.files import publish_file
from environments.common.packed import FLAGS, REALS, packed
from environments.common.trained_records import TrainedTokens
from trainer.model.packing import MicroBatch
from trainer.objective.objectives import Objective, clipped, ratio_of
from trainer.objective.off_policy import OffPolicy, kept_sequences
from trainer.start import cannot_write

FOLDER = "trained_tokens"
BELOW, ABOVE, DUAL, MASKED = 1, 2, 3, 4
"""What a flag says: the clip stopped the token's gradient below or above its range, or by the dual clip; or its whole
sequence was left out, since sampler and trainer differ too much. 0: none of it."""


@dataclass(frozen=True)
class _Seen:
    """A micro-batch as its loss saw it. Tensors on the host: [K] but ratio, [B]."""

    origin: list[tuple[str, int]]
    length: list[int]
    advantage: list[float]
    ratio: list[float]
    old: np.ndarray[Any, Any]
    change: np.ndarray[Any, Any]
    flags: np.ndarray[Any, Any]


class TokenRecords:
    """Takes the tokens of the step under way, and writes those of this rank.

    Args:
        rollouts: this many of each group, the first ones, are kept; 0: nothing is done at all.
    """

    def __init__(self, run_dir: Path, rollouts: int, rank: int = 0) -> None:
        self.folder, self.rollouts, self.rank = run_dir / FOLDER, rollouts, rank
        self._seen: list[_Seen] = []

    def take(
        self,
        group_ids: Sequence[str],
        micro: MicroBatch,
        logprob: Tensor,
        old: Tensor,
        chosen: Objective,
        mismatch: OffPolicy,
    ) -> None:
        """Takes a micro-batch with the log-probabilities that its loss was computed of, [K] fp32 both."""
        if not self.rollouts or not any(index < self.rollouts for _, index in micro.origin):
            return
        with torch.no_grad():
            change = logprob.double() - old.double()
            ratio = ratio_of(chosen, change, micro.sequence, micro.length)
            of_token = ratio[micro.sequence] if chosen.ratio == "sequence" else ratio
            low, high, dual = clipped(chosen, of_token, micro.advantage[micro.sequence])
            flags = torch.where(low, BELOW, 0) + torch.where(high, ABOVE, 0)
            flags = torch.where(dual, DUAL, flags)
            if old is not micro.sampler_logprob:
                kept = kept_sequences(old, micro.sampler_logprob, micro.sequence, micro.length, mismatch)
                flags = flags.masked_fill(~kept[micro.sequence], MASKED)
        self._seen.append(
            _Seen(
                [(group_ids[group], index) for group, index in micro.origin],
                micro.length.tolist(),
                micro.advantage.tolist(),
                ratio.tolist() if chosen.ratio == "sequence" else [],
                *(tensor.detach().float().cpu().numpy() for tensor in (old, change, flags)),
            )
        )

    def write(self, step: int) -> None:
        """Writes what was taken since the last call, in place of what the same step wrote before a death.

        Raises what `cannot_write` says.
        """
        rows = [row for seen in self._seen for row in _rows(seen, self.rollouts, step)]
        self._seen = []
        if not rows:
            return
        try:
            self.folder.mkdir(exist_ok=True)
            text = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in msgspec.to_builtins(rows))
            publish_file(self.folder / f"step-{step:08d}-{self.rank}.jsonl", text.encode())
        except OSError as error:
            raise cannot_write(self.folder, error) from None


def _rows(seen: _Seen, rollouts: int, step: int) -> list[TrainedTokens]:
    ends = np.cumsum(seen.length).tolist()
    rows = []
    for place, (group_id, index) in enumerate(seen.origin):
        if index >= rollouts:
            continue
        tokens = slice(ends[place] - seen.length[place], ends[place])
        rows.append(
            TrainedTokens(
                group_id=group_id,
                index=index,
                step=step,
                advantage=seen.advantage[place],
                ratio=seen.ratio[place] if seen.ratio else None,
                old=packed(seen.old[tokens], REALS),
                change=packed(seen.change[tokens], REALS),
                flags=packed(seen.flags[tokens], FLAGS),
            )
        )
    return rows
