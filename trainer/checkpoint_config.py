"""The options of a run's beginning and of what it saves."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from environments.common.settings import Section


class CheckpointConfig(Section):
    """When the state is saved, and what a start resumes from."""

    every: int = Field(50, ge=0, description="Steps between checkpoints; 0: only at the end.")
    keep_last: int = Field(2, ge=1, description="Checkpoints kept.")
    resume: str | None = Field(
        "auto",
        description="'auto' (resume from the latest checkpoint where the run folder has one), 'latest', 'best', a "
        "checkpoint's folder, or empty: start from the model, refused in a folder that was used.",
    )
    stop_deadline_s: float = Field(
        600.0, gt=0, description="After SIGTERM: the step is ended and saved; later than this the process is gone."
    )
    export: bool = Field(
        True, description="Write the last weights as a Hugging Face folder at the end; of an adapter, that alone."
    )


class InitFromConfig(Section):
    """The checkpoint of an earlier run that this one begins with: a stage of the context schedule is a run."""

    run: Path | None = Field(None, description="Run folder of the stage before; empty: begin with `model`.")
    select: str = Field("best", description="'best' (the run's checkpoints/best), 'latest' or a step's name.")
    optimizer: Literal["keep", "reset"] = Field("reset", description="AdamW's moments and schedule.")

    @model_validator(mode="after")
    def _needs_a_run(self) -> InitFromConfig:
        for name in ("select", "optimizer"):
            value = getattr(self, name)
            if self.run is None and value != type(self).model_fields[name].default:
                raise ValueError(f"{name} {value!r} has no effect without a run: set init_from.run, or leave it out")
        return self
