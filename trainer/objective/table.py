"""The table of objectives, without torch: what the options are checked against. See objectives.py beside it.

Another package adds a row by an entry point; see docs/how-to/objective.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from environments.common.plugins import find, of_kind

GROUP = "livecode.objectives"


@dataclass(frozen=True)
class Objective:
    """One row of the table: which ratio, how a sequence's tokens are summed, what divides, where it clips.

    Raises ValueError for choices that do not fit together, naming the fix.
    """

    name: str
    ratio: Literal["token", "sequence"]
    """r_it for each token, or s_i for all tokens of a sequence (needs whole sequences)."""
    reduction: Literal["sequence_mean", "token_sum"]
    """A token weighs 1/|y_i|, or 1."""
    denominator: Literal["sequences", "tokens", "sequences_times_max_length"]
    """N, S or N L_max."""
    clip_low: float
    clip_high: float
    scale_by_std: bool = True
    """Whether advantages are divided by the group's standard deviation."""
    allows_dual_clip: bool = False
    dual_clip: float | None = None
    """c of the dual clip (arXiv 1912.09729, eq. 5): for A < 0 the loss is at most -c A. None: off; 3 is usual."""

    def __post_init__(self) -> None:
        if not 0 < self.clip_low < 1:
            raise ValueError(f"clip_low {self.clip_low} of {self.name}: set it between 0 and 1")
        if not 0 < self.clip_high < float("inf"):
            raise ValueError(f"clip_high {self.clip_high} of {self.name}: set a positive number")
        if self.dual_clip is not None and not self.allows_dual_clip:
            fitting = " or ".join(name for name, row in OBJECTIVES.items() if row.allows_dual_clip)
            raise ValueError(f"dual_clip {self.dual_clip} with {self.name}: leave it empty, or use {fitting}")
        if self.dual_clip is not None and not 1 < self.dual_clip < float("inf"):
            raise ValueError(f"dual_clip {self.dual_clip} of {self.name}: set a number above 1, usually 3")
        if (self.reduction == "sequence_mean") != (self.denominator == "sequences"):
            raise ValueError(
                f"reduction {self.reduction} with denominator {self.denominator} in {self.name}: the gradient's size "
                "would follow the length; pair sequence_mean with sequences, token_sum with one of the others"
            )

    @property
    def needs_trainer_old(self) -> bool:
        """Whether old log-probabilities must be the trainer's own: the sampler's noise exceeds a sequence clip."""
        return self.ratio == "sequence"


OBJECTIVES: dict[str, Objective] = {
    row.name: row
    for row in (
        Objective("grpo", "token", "sequence_mean", "sequences", 0.2, 0.2, allows_dual_clip=True),
        Objective("dapo", "token", "token_sum", "tokens", 0.2, 0.28, allows_dual_clip=True),
        Objective("gspo", "sequence", "sequence_mean", "sequences", 3e-4, 4e-4),
        Objective("gspo+", "sequence", "token_sum", "tokens", 3e-4, 4e-4),
        Objective("dr_grpo", "token", "token_sum", "sequences_times_max_length", 0.2, 0.2, scale_by_std=False),
    )
}


def row_of(name: str) -> Objective:
    """The row of that name, ours or an installed package's. ConfigError (a ValueError) for an unknown name."""
    row = of_kind(find(GROUP, OBJECTIVES, name, "objective"), Objective, "objective", name)
    return replace(row, name=name)


def token_twin(row: Objective) -> str | None:
    """Our objective that is the same with each token's own ratio; None where there is none."""
    for name, other in OBJECTIVES.items():
        if other.ratio == "token" and all(
            getattr(other, part) == getattr(row, part) for part in ("reduction", "denominator", "scale_by_std")
        ):
            return name
    return None


def objective(
    name: str,
    *,
    clip_low: float | None = None,
    clip_high: float | None = None,
    dual_clip: float | None = None,
) -> Objective:
    """Row `name` of the table with its clip bounds replaced where given. ValueError for an unknown name."""
    row = row_of(name)
    return replace(
        row,
        clip_low=row.clip_low if clip_low is None else clip_low,
        clip_high=row.clip_high if clip_high is None else clip_high,
        dual_clip=row.dual_clip if dual_clip is None else dual_clip,
    )
