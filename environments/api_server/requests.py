"""What trainer and environments may tell the API server: Atropos' forms with bounds, and those of the new routes."""

from __future__ import annotations

from typing import Annotated, Any

from atroposlib.api import server as stock
from pydantic import BaseModel, Field

MOST = 2**31 - 1
Count = Annotated[int, Field(ge=1, le=MOST)]
Step = Annotated[int, Field(ge=0, le=MOST)]
Limit = Annotated[int, Field(ge=-1, le=MOST)]
"""-1: none."""
Text = Annotated[str, Field(max_length=4096)]


class Registration(stock.Registration):
    """POST /register."""

    wandb_group: Text
    wandb_project: Text
    batch_size: Count
    max_token_len: Limit
    checkpoint_dir: Text
    save_checkpoint_interval: Limit
    starting_step: Step
    num_steps: Limit


class ShardClaim(BaseModel):
    """What part of the run an environment is, where there are several."""

    index: Annotated[int, Field(ge=0, le=MOST)]
    count: Count
    identity: Text = Field(description="Of its progress: the same when it is started again.")
    folder: Text = Field(description="Where its progress is, for messages.")
    shared: dict[str, Any] = Field(description="What all shards of a run must have the same, by its name.")


class RegisterEnv(stock.RegisterEnv):
    """POST /register-env. Atropos' environments send no name unless --env.wandb_name gives one."""

    max_token_length: Limit
    desired_name: Text | None = None
    weight: float = Field(1.0, ge=0, le=1e9, allow_inf_nan=False)
    group_size: Count
    shard: ShardClaim | None = None
    min_batch_allocation: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)


class EnvIdentifier(stock.EnvIdentifier):
    """GET /status-env, POST /disconnect-env."""

    env_id: Step


class LeaseRequest(BaseModel):
    """POST /lease."""

    trainer: Text = Field("trainer", description="Who asks, for the log.")
    step: Step = Field(description="Step the batch is trained in: the version of the weights before it.")


class AckRequest(BaseModel):
    """POST /ack."""

    checkpoint_step: Step = Field(description="Step of a checkpoint that is durable.")


class RollbackRequest(BaseModel):
    """POST /rollback."""

    step: Step = Field(description="Step the trainer resumes from.")


class HoldRequest(BaseModel):
    """POST /hold."""

    reason: Annotated[str, Field(min_length=1, max_length=200)] = Field(description="Why no group comes.")
    seconds: float = Field(gt=0, le=600, description="For how long, unless it is posted again.")


class ContractRequest(BaseModel):
    """POST /contract."""

    side: Annotated[str, Field(min_length=1, max_length=64)] = Field(
        description="Who says it: trainer, or environment."
    )
    terms: dict[str, Any] = Field(description="What it assumes of the run, such as model, context, temperature.")
