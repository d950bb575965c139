"""What the trainer leaves of its steps for those that read a run: trained.jsonl and trained_tokens/."""

from __future__ import annotations

import msgspec

from environments.common.record_lines import Finite, Whole


class TrainedStep(msgspec.Struct):
    """A line of trained.jsonl: the groups of the step that made version `step` + 1, and why others were left out."""

    step: Whole
    groups: list[str]
    dropped: dict[str, str]


class TrainedTokens(msgspec.Struct, kw_only=True):
    """A line of trained_tokens/step-NNNNNNNN-R.jsonl: what a step made of the tokens of a recorded rollout.

    old, change, flags: a number a token, see `packed`.
    """

    group_id: str
    index: Whole
    step: Whole | None = None
    advantage: Finite | None = None
    ratio: Finite | None = None
    """Of the whole sequence; None where each token has its own."""
    old: str
    """Log-probability before the step."""
    change: str
    flags: str
