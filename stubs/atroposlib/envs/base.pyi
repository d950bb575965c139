"""The part of atroposlib 0.4.0 that this project uses; its own code carries few types."""

import asyncio
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, ClassVar, TypedDict

from atroposlib.envs.server_handling.server_baseline import APIServerConfig
from pydantic import BaseModel
from transformers import PreTrainedTokenizerBase

class EvalHandlingEnum(Enum):
    STOP_TRAIN = "STOP_TRAIN"
    LIMIT_TRAIN = "LIMIT_TRAIN"
    NONE = "NONE"

# Its fields stand in environments/livecode/atropos_options.py, where a test compares them with the original.
class BaseEnvConfig(BaseModel): ...

class ScoredDataItem(TypedDict, total=False):
    tokens: list[int]
    masks: list[int]
    scores: float
    advantages: list[float] | None
    ref_logprobs: list[float] | None
    messages: list[Any] | None
    group_overrides: dict[str, Any] | None
    overrides: dict[str, Any] | None
    images: Any
    distill_token_ids: list[list[int]] | None
    distill_logprobs: list[list[float]] | None

class BaseEnv:
    name: ClassVar[str | None]
    env_config_cls: ClassVar[type[BaseEnvConfig]]
    tokenizer: PreTrainedTokenizerBase
    env_id: int
    curr_step: int
    max_token_len: int
    checkpoint_dir: str
    checkpoint_interval: int
    completion_lengths: list[int]
    wandb_prepend: str | None
    wandb_project: str | None
    wandb_group: str | None
    eval_runner: asyncio.Task[Any] | None
    # What the loop has that this project replaces; tests show its faults.
    config: Any
    server: Any
    workers: set[asyncio.Task[Any]]
    max_num_workers: int
    running_items: dict[str, dict[str, Any]]
    status_dict: dict[str, Any]
    process_mode: bool
    n_groups_to_process: int
    group_size_to_process: int

    def __init__(
        self,
        config: BaseEnvConfig,
        server_configs: list[APIServerConfig],
        slurm: bool = False,
        testing: bool = False,
    ) -> None: ...
    async def setup(self) -> None: ...
    async def setup_wandb(self) -> None: ...
    async def register_env(self) -> None: ...
    async def get_server_info(self) -> None: ...
    async def get_next_item(self) -> Any: ...
    async def collect_trajectories(self, item: Any) -> tuple[Any, Sequence[Any]]: ...
    async def evaluate(self, *args: Any, **kwargs: Any) -> Any: ...
    async def add_train_workers(self) -> None: ...
    async def env_step_checks(self) -> None: ...
    async def handle_env(self, item_uuid: str) -> Any: ...
    async def handle_send_to_api(self, scored_data: Any, item: Any = None) -> None: ...
    async def _send_scored_data_to_api(self, scored_data: Any) -> None: ...
    async def env_manager(self) -> None: ...
    async def process_manager(self) -> None: ...
    async def add_rollouts_for_wandb(self, scored_data: Mapping[str, Any], item: Any = None) -> None: ...
    async def wandb_log(self, wandb_metrics: dict[str, Any] | None = None) -> None: ...
