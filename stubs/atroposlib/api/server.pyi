"""The part of atroposlib 0.4.0's API server that this project uses."""

import uuid as uuid
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

app: FastAPI

class Registration(BaseModel):
    wandb_group: str
    wandb_project: str
    batch_size: int
    max_token_len: int
    checkpoint_dir: str
    save_checkpoint_interval: int
    starting_step: int
    num_steps: int

class RegisterEnv(BaseModel):
    max_token_length: int
    desired_name: str | None  # a str in the original, which therefore refuses its own environments' default
    weight: float
    group_size: int
    min_batch_allocation: float | None

class EnvIdentifier(BaseModel):
    env_id: int

async def register_env_url(register_env: RegisterEnv) -> dict[str, Any]: ...
async def get_status_env(env: EnvIdentifier) -> dict[str, Any]: ...
async def disconnect_env(disconnect_env: EnvIdentifier) -> dict[str, Any]: ...
