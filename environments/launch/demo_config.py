"""Options of `atropos demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, model_validator

from environments.common.hub import is_hub_name
from environments.common.settings import Settings, Url
from environments.launch.missing_model import no_model

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "demo"


class DemoConfig(Settings):
    """The whole loop on this machine. These are the demo's own options; what it starts is configured by the files in
    configs/demo."""

    START: ClassVar[tuple[str, ...]] = ("steps", "seed", "run_dir", "model")
    COMMON: ClassVar[tuple[str, ...]] = ("trainer_config", "eval_samples", "shuffle_rewards")
    EXAMPLE: ClassVar[str] = "atropos demo --steps 2 --trainer-config configs/demo/trainer_gspo.yaml"

    steps: int = Field(6, ge=1, description="Training steps.")
    seed: int = Field(0, ge=0, description="Seed of the problems, their order, sampling and evaluation.")
    run_dir: Path | None = Field(None, description="Folder of the run; empty: runs/demo-DATE-TIME.")
    model: Path = Field(
        Path("models/SmolLM2-135M-Instruct"),
        description="Model folder (made by `atropos pretrained`).",
    )
    environment_config: Path = Field(CONFIGS / "environment.yaml", description="The environment's options.")
    trainer_config: Path = Field(CONFIGS / "trainer.yaml", description="The trainer's options.")
    server_config: Path = Field(CONFIGS / "server.yaml", description="vLLM's options.")
    environment: dict[str, Any] = Field({}, description="The environment's options over its file's.")
    trainer: dict[str, Any] = Field({}, description="The trainer's over its file's: --trainer.adapter.rank 32.")
    server: dict[str, Any] = Field({}, description="vLLM's over its file's.")
    eval_samples: int = Field(3, ge=1, description="Samples per held-out problem in an evaluation.")
    eval_every: int | None = Field(
        None, ge=1, description="Steps between held-out evaluations; empty: before the first and after the last only."
    )
    shuffle_rewards: bool = Field(
        False,
        description="Control: deal the rewards of a group out at random, so that nothing can be learned.",
    )
    api_port: int | None = Field(None, ge=1, le=65535, description="The API server's port; empty: a free one.")
    server_port: int | None = Field(None, ge=1, le=65535, description="vLLM's port; empty: a free one.")
    server_url: Url | None = Field(
        None, description="A vLLM that runs already with the same model and flags; empty: start one."
    )
    start_deadline_s: float = Field(600.0, gt=0, description="Longest wait for a process to be ready.")

    @model_validator(mode="after")
    def _there(self) -> DemoConfig:
        for name in ("environment_config", "trainer_config", "server_config"):
            if not getattr(self, name).is_file():
                raise ValueError(f"{name} {getattr(self, name)}: no such file; give the path of a YAML file")
        if not (self.model / "config.json").is_file() and not is_hub_name(self.model):
            raise ValueError(f"model {self.model}: {no_model(self.model)}")
        return self
