"""The numbers of a recipe that the simulation needs, from the files that a run is started with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pydantic import Field, ValidationError

from environments.common.settings import ConfigError, Settings, explain, load, read_yaml
from environments.launch.serve_model import ServeConfig
from environments.livecode.config import LivecodeEnvConfig
from environments.livecode.evaluation.options import EvaluationConfig
from environments.tools.plan.config import PlanConfig
from trainer.config import TrainerConfig
from trainer.planning.shapes import SHAPES

SPARE = 32
"""Tokens that an answer leaves of the context where env.max_new_tokens is empty."""


class _EnvironmentFile(Settings):
    """An environment's file without what only a start needs: its model need not be there."""

    model: str = ""
    env: LivecodeEnvConfig = Field(default_factory=LivecodeEnvConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)


@dataclass(frozen=True)
class Recipe:
    """As the options of the same names; `answer` and `evaluation_answer` are the most tokens of an answer."""

    steps: int
    group_size: int
    groups_per_batch: int
    max_staleness: int
    max_concurrent: int
    answer: int
    evaluation_answer: int
    overlong_baseline: str
    dynamic_sampling: bool
    verifier: str
    one_call_for_a_group: bool
    verifier_places: int
    evaluation_every: int
    evaluation_samples: int
    """For each problem, greedy ones included."""
    pause_while_training: bool
    checkpoint_every: int
    backend: str
    recompute_old: bool
    max_num_seqs: int
    tensor_parallel: int
    bytes_weight: int
    """Of one published weight."""

    @property
    def rollouts(self) -> int:
        return self.groups_per_batch * self.group_size


@dataclass(frozen=True)
class Files:
    """The three files as they are read."""

    trainer: TrainerConfig
    environment: LivecodeEnvConfig
    evaluation: EvaluationConfig
    server: ServeConfig


def read(config: PlanConfig) -> Files:
    """The recipe's files, checked as a run's start checks them; ConfigError for what is wrong in them."""
    trainer = load(TrainerConfig, ["--config", str(config.trainer), *_missing(config.trainer, run_dir="runs/plan")])
    server = load(ServeConfig, ["--config", str(config.server), *_missing(config.server, model=str(trainer.model))])
    raw = read_yaml(config.environment)
    known = {name: raw[name] for name in ("model", "env", "evaluation") if name in raw}
    try:
        found = _EnvironmentFile.model_validate(known)
    except ValidationError as error:
        raise ConfigError(explain(error, _EnvironmentFile, str(config.environment))) from None
    return Files(trainer, found.env, found.evaluation, server)


def _missing(path: Path, **values: str) -> list[str]:
    there = read_yaml(path)
    return [word for name, value in values.items() if name not in there for word in (f"--{name}", value)]


def recipe(config: PlanConfig, files: Files) -> Recipe:
    """The recipe with what `config.recipe` replaces; ConfigError where its sizes do not go together."""
    asked, env, batch = config.recipe, files.environment, files.trainer.batch
    group = asked.group_size or env.group_size
    rollouts = asked.rollouts or batch.rollouts
    concurrent = asked.max_concurrent_rollouts or env.max_concurrent_rollouts
    if rollouts % group:
        raise ConfigError(f"recipe.rollouts {rollouts} is no multiple of recipe.group_size {group}: give a multiple")
    if concurrent < group:
        raise ConfigError(
            f"recipe.max_concurrent_rollouts {concurrent} < recipe.group_size {group}: no group could ever begin; "
            f"set it to {group} or more"
        )
    context, prompt = env.context, config.workload.prompt_tokens
    if config.workload.records is None and context - prompt - SPARE < 1:
        raise ConfigError(f"workload.prompt_tokens {prompt} leaves no answer of env.context {context}: lower it")
    taken = 0 if config.workload.records else prompt + SPARE  # recorded answers were cut when they were made
    limit, evaluated = context - taken, (files.evaluation.context or context) - taken
    cut = asked.max_new_tokens or env.max_new_tokens
    places = config.cluster.verifier_places
    if places is None:
        places = env.verifier_workers if env.verifier == "local" else env.verifier_concurrency
    every = asked.evaluation_every
    return Recipe(
        steps=asked.steps or files.trainer.steps,
        group_size=group,
        groups_per_batch=rollouts // group,
        max_staleness=env.max_staleness if asked.max_staleness is None else asked.max_staleness,
        max_concurrent=concurrent,
        answer=limit if cut is None else min(cut, limit),
        evaluation_answer=evaluated if cut is None else min(cut, evaluated),
        overlong_baseline=env.overlong_baseline,
        dynamic_sampling=env.dynamic_sampling,
        verifier=env.verifier,
        one_call_for_a_group=env.verifier_strategy == "problem",
        verifier_places=places,
        evaluation_every=files.evaluation.every if every is None else every,
        evaluation_samples=files.evaluation.n + files.evaluation.greedy,
        pause_while_training=_or(asked.pause_while_training, files.trainer.weights.pause_while_training),
        checkpoint_every=_or(asked.checkpoint_every, files.trainer.checkpoint.every),
        backend=asked.backend or files.trainer.weights.backend,
        recompute_old=files.trainer.objective.old_logprobs == "recompute",
        max_num_seqs=asked.max_num_seqs or files.server.max_num_seqs,
        tensor_parallel=asked.tensor_parallel_size or files.server.tensor_parallel_size,
        bytes_weight=4 if files.trainer.weights.dtype == "float32" else 2,
    )


def _or(asked: Any, given: Any) -> Any:
    return given if asked is None else asked


def model_shape(folder: Path) -> Any:
    """The sizes of a dense decoder by the names of transformers: config.json's, or those known by the folder's name.

    Raises:
        ConfigError: neither is there, or a size is missing.
    """
    path = folder / "config.json"
    if path.is_file():
        values = json.loads(path.read_text(encoding="utf-8"))
    elif folder.name in SHAPES:
        values = SHAPES[folder.name]
    else:
        raise ConfigError(
            f"model = {folder}: no config.json there; give a folder with one, or a name that ends in one of "
            f"{', '.join(SHAPES)}"
        )
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    lacking = [name for name in names if name not in values]
    if lacking or "num_experts" in values:
        raise ConfigError(f"model = {folder}: {', '.join(lacking) or 'experts'}: only dense decoders can be planned")
    return SimpleNamespace(**{"num_key_value_heads": values["num_attention_heads"], **values})
