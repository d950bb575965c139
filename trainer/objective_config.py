"""The options of the objective, checked against its row of the table and against each other."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field, model_validator

from environments.common.plugins import check_known
from environments.common.settings import Section
from trainer.objective.table import GROUP, OBJECTIVES, Objective, objective


class ObjectiveConfig(Section):
    """The policy objective. An empty clip bound takes the objective's own default."""

    model_config = ConfigDict(allow_inf_nan=False)

    name: str = Field("dapo", description="Policy objective: grpo, dapo, gspo, gspo+, dr_grpo or an installed one.")
    clip_low: float | None = Field(None, gt=0, lt=1, description="Lower clip range; empty: the objective's own.")
    clip_high: float | None = Field(None, gt=0, description="Upper clip range; empty: the objective's own.")
    dual_clip: float | None = Field(None, gt=1, description="Dual clip constant c for negative advantages.")
    kl_coefficient: float = Field(
        0.0, ge=0, description="Weight of the k3 KL term against the reference, or the old policy where there is none."
    )
    reference: Literal["none", "frozen", "ema"] = Field(
        "none",
        description="What the KL term holds the policy to: frozen (the weights in `model`; with an adapter that costs "
        "no memory), ema (a running mean of the policy's weights), or none (the old policy).",
    )
    reference_decay: float = Field(
        0.99, ge=0, lt=1, description="ema: share of the mean that an optimizer step leaves as it was."
    )
    reference_offload: bool = Field(
        False, description="Keep the reference's weights in CPU memory; a block at a time comes to the device."
    )
    old_logprobs: Literal["sampler", "recompute"] = Field(
        "recompute",
        description="Old log-probabilities: the sampler's own, or a forward at the start of the step.",
    )
    importance_weight: Literal["tis", "sequence_tis", "icepop", "none"] = Field(
        "tis",
        description="Weight for the sampler's mismatch when old log-probabilities are recomputed: of a token, "
        "truncated (tis) or left out where it is far from 1 (icepop), or of a sequence, truncated (sequence_tis).",
    )
    tis_cap: float = Field(2.0, gt=1, description="Upper bound of a truncated importance weight.")
    icepop_low: float = Field(0.5, ge=0, le=1, description="IcePop: a token weight below this counts as 0.")
    icepop_high: float = Field(5.0, ge=1, description="IcePop: a token weight above this counts as 0.")
    sequence_mask_low: float | None = Field(
        None, gt=0, le=1, description="Leave out sequences whose geometric mean weight is below this; empty: none."
    )
    sequence_mask_high: float | None = Field(
        None, ge=1, description="Leave out sequences whose geometric mean weight is above this; empty: none."
    )
    optimizer_steps_per_batch: int = Field(1, ge=1, description="Optimizer steps on one batch, at most one a group.")
    overlong_baseline: Literal["include", "exclude"] = Field(
        "include", description="Whether truncated rollouts count in the group's mean and std and in N and S."
    )

    @property
    def row(self) -> Objective:
        """The row of the table with this section's clip bounds. ValueError where they do not fit it."""
        return objective(self.name, clip_low=self.clip_low, clip_high=self.clip_high, dual_clip=self.dual_clip)

    @model_validator(mode="after")
    def _fits_together(self) -> ObjectiveConfig:
        check_known(GROUP, OBJECTIVES, self.name, "name")
        row = self.row
        masked = self.sequence_mask_low is not None or self.sequence_mask_high is not None
        if self.old_logprobs == "sampler" and (masked or self.importance_weight in ("icepop", "sequence_tis")):
            raise ValueError(
                "old_logprobs 'sampler' has no mismatch to weigh or mask: set old_logprobs: recompute, or leave "
                "importance_weight, sequence_mask_low and sequence_mask_high alone"
            )
        if row.needs_trainer_old and self.old_logprobs == "sampler":
            raise ValueError(
                f"old_logprobs 'sampler' with {self.name}: the sampler's numerical noise exceeds its clip range "
                f"{row.clip_low:g}/{row.clip_high:g}; set old_logprobs: recompute"
            )
        self._refuse_what_does_nothing()
        return self

    def _refuse_what_does_nothing(self) -> None:
        """ValueError for the first option that was moved from its default and that the others make ineffective."""
        moved = [name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default]
        weight = "none" if self.old_logprobs == "sampler" else self.importance_weight
        owners = {"tis_cap": ("tis", "sequence_tis"), "icepop_low": ("icepop",), "icepop_high": ("icepop",)}
        why = {
            name: f"old_logprobs '{self.old_logprobs}' and importance_weight '{self.importance_weight}' weigh no token "
            f"by it; set old_logprobs: recompute and importance_weight: {' or '.join(kinds)}, or leave it out"
            for name, kinds in owners.items()
            if weight not in kinds
        }
        if self.old_logprobs == "recompute" and self.optimizer_steps_per_batch == 1:
            ones = (
                "with old_logprobs 'recompute' and one optimizer step per batch every ratio is 1; set "
                "optimizer_steps_per_batch to 2 or more, or old_logprobs: sampler, or leave it out"
            )
            why |= dict.fromkeys(("clip_low", "clip_high", "dual_clip"), ones)
            if self.reference == "none":
                why["kl_coefficient"] = f"{ones}, or set reference: frozen"
        if self.reference != "ema":
            why["reference_decay"] = f"reference '{self.reference}' does not move; set reference: ema, or leave it out"
        if self.reference == "none":
            why["reference_offload"] = "there is no reference; set reference: frozen or ema, or leave it out"
        for name in moved:
            if name in why:
                raise ValueError(f"{name} {getattr(self, name)} has no effect: {why[name]}")
