"""The options that atroposlib 0.4.0 gives every environment, restated field by field.

Importing them from atroposlib loads torch, transformers, openai and wandb: seconds and 400 MB that `--help` and a wrong
option need not wait for. Its repository is archived; a test compares each field with the original. The environment's
own class turns them into Atropos' form when it serves, see `atropos_compat.as_atropos`.
"""

from __future__ import annotations

from enum import Enum

from pydantic import BaseModel, Field

# Options of Atropos' own loop that this environment replaces: accepting one without effect would deceive.
REPLACED = {
    "batch_size": "the trainer sets it when it registers",
    "max_token_length": "set context",
    "tokenizer_name": "set model (or tokenizer) beside env",
    "max_num_workers": "set max_concurrent_rollouts",
    "max_num_workers_per_node": "set max_concurrent_rollouts",
    "max_eval_workers": "set max_concurrent_rollouts",
    "max_batches_offpolicy": "set max_staleness",
    "worker_timeout": "rollouts are never interrupted; set rollout_deadline_s",
    "eval_handling": "an evaluation never cancels training rollouts",
    "eval_limit_ratio": "an evaluation never cancels training rollouts",
    "steps_per_eval": "set evaluation.every",
    "ensure_scores_are_not_same": "set dynamic_sampling",
    "data_path_to_save_groups": "run the mode `process` and set process.output",
    "data_dir_to_save_evals": "results go to evaluations.jsonl in run_dir",
    "include_messages": "the trainer takes token ids only",
    "min_batch_allocation": "one environment fills the batch",
    "min_items_sent_before_logging": "every step is logged",
    "thinking_mode": "set thinking",
    "reasoning_effort": "set thinking",
    "max_reasoning_tokens": "set max_new_tokens",
    "custom_thinking_prompt": "set thinking",
}


class EvalHandling(Enum):
    """What Atropos does with training while it evaluates."""

    STOP_TRAIN = "STOP_TRAIN"
    LIMIT_TRAIN = "LIMIT_TRAIN"
    NONE = "NONE"


class AtroposOptions(BaseModel):
    """Atropos' BaseEnvConfig."""

    group_size: int = Field(default=4, description="How many responses are grouped together for scoring")
    max_num_workers: int = Field(
        default=-1,
        description="Maximum number of workers to use, -1 calculates from max_num_workers_per_node",
    )
    max_eval_workers: int = Field(default=16, description="Maximum number of workers to use for evaluation")
    max_num_workers_per_node: int = Field(default=8, description="Maximum number of workers to use per node")
    steps_per_eval: int = Field(default=100, description="Number of steps to take before evaluating")
    max_token_length: int = Field(default=2048, description="Maximum token length used in generations")
    eval_handling: EvalHandling = Field(default=EvalHandling.STOP_TRAIN, description="How to handle evaluations")
    eval_limit_ratio: float = Field(default=0.5, description="Ratio of training workers to limit during evals")
    inference_weight: float = Field(
        default=1.0,
        description="Inference weight, set to -1 to ignore it if you're doing something special here.",
    )
    batch_size: int = Field(
        default=-1,
        description="Batch size for training, will be set by the trainer and passed in via the fastapi interface, "
        "if applicable",
    )
    max_batches_offpolicy: int = Field(default=3, description="Maximum number of batches to have in queue.")
    tokenizer_name: str = Field(
        default="NousResearch/DeepHermes-3-Llama-3-3B-Preview",
        description="Hugging Face tokenizer to use.",
    )
    use_wandb: bool = Field(default=True, description="Whether to use wandb")
    rollout_server_url: str = Field(default="http://localhost:8000", description="URL of the rollout server")
    total_steps: int = Field(default=1000, description="Total number of steps to run")
    wandb_name: str | None = Field(
        default=None,
        description="Name to be grouped by in wandb",
    )
    num_rollouts_to_keep: int = Field(default=32, description="Number of rollouts to display on wandb")
    num_rollouts_per_group_for_logging: int = Field(
        default=1,
        description="Number of rollouts per group to keep for logging. If -1, keep all rollouts",
    )
    ensure_scores_are_not_same: bool = Field(
        default=True,
        description="Ensure that the scores are not the same, should usually be True",
    )
    data_path_to_save_groups: str | None = Field(
        default=None,
        description="Path to save the groups, if set, will write groups to this jsonl",
    )
    data_dir_to_save_evals: str | None = Field(
        default=None,
        description="Directory to save evaluation results",
    )
    min_items_sent_before_logging: int = Field(
        default=2,
        description="Minimum number of items sent before logging, if 0 or less, logs every time",
    )
    include_messages: bool = Field(
        default=False,
        description="Whether to include messages in the output transmitted to the trainer",
    )
    min_batch_allocation: float | None = Field(
        default=None,
        description="Minimum proportion of a batch this environment should be allocated (0.0-1.0)",
    )
    worker_timeout: float = Field(
        default=600,
        description="Timeout for a task, in seconds, if -1, no timeout",
    )
    thinking_mode: bool = Field(
        default=False,
        description="Whether to enable reasoning/thinking mode in API requests. "
        "When True, requests include extra_body parameters to trigger model reasoning. "
        "Automatically set to True if reasoning_effort or max_reasoning_tokens are specified.",
    )
    reasoning_effort: str | None = Field(
        default=None,
        description="Reasoning effort level. Valid values: 'none', 'minimal', 'low', "
        "'medium', 'high', 'xhigh'. For OpenAI models, values are mapped to their "
        "supported levels ('low', 'medium', 'high'). Default None (not specified).",
    )
    max_reasoning_tokens: int | None = Field(
        default=None,
        ge=1024,
        le=32000,
        description="Maximum tokens for reasoning (1024-32000). Only supported by "
        "some providers (not OpenAI official). Default None (not specified).",
    )
    custom_thinking_prompt: str | None = Field(
        default=None,
        description="Custom system prompt to prepend for thinking mode. If None, "
        "no thinking prompt is injected. Use HERMES_REASONING_PROMPT from "
        "eval_helpers for the standard Hermes reasoning prompt.",
    )
