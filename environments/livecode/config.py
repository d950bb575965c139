"""The options of `atropos run-env livecode`: one YAML file and dotted flags, checked before anything starts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field, model_validator

from environments.common.option_rules import StrictModel
from environments.common.server_list import ServerSource, either
from environments.common.settings import PathText, Section, Settings, Url, load, without_password
from environments.common.shards import FOLDER, WHOLE, Shard, ShardText, read
from environments.common.yarn import yarn_overrides
from environments.livecode.atropos_options import REPLACED, AtroposOptions
from environments.livecode.evaluation.options import LIKE, EvaluationConfig, validation_beside
from environments.livecode.problems.sampler import Rule
from environments.livecode.verification.factory import check_options
from environments.livecode.verification.own_limits import OwnLimits
from verifier_app.judge.default_limits import MEMORY_LIMIT_MB, TIME_LIMIT_S

PROGRAM = "atropos run-env livecode"
SERVERS = ["http://127.0.0.1:8001"]


class LivecodeEnvConfig(StrictModel, AtroposOptions):
    """The environment's own options, beside Atropos' group_size, total_steps, rollout_server_url and wandb."""

    model_config = ConfigDict(extra="forbid")
    HIDDEN: ClassVar[frozenset[str]] = frozenset(REPLACED)

    group_size: int = Field(8, ge=2, description="Rollouts of one problem that are compared with each other.")
    total_steps: int = Field(-1, ge=-1, description="Training steps to feed; -1: those that the trainer registered.")
    rollout_server_url: Url = Field("http://127.0.0.1:8000", description="Address of the Atropos API server.")
    use_wandb: bool = Field(False, description="Log to Weights & Biases as Atropos does, beside the run folder.")
    wandb_name: str | None = Field("livecode", description="The environment's name at the API and in wandb.")
    steps_per_eval: int = Field(-1, description="Atropos' option; evaluation.every is this environment's.")
    worker_timeout: float = Field(-1, description="Atropos' option; no clock of its own interrupts a rollout.")

    problems: PathText = Field(
        "warmup:train",
        description="A JSONL file of problems, a split of `atropos data build`, or warmup:train, "
        "warmup:new_instances, warmup:unseen_templates.",
    )
    seed: int = Field(0, ge=0, description="Seed of the warm-up problems, their order and evaluation sampling.")
    shard: ShardText | None = Field(
        None,
        description="Several environments on one API server: this one's INDEX/COUNT, such as 0/2, with its part of the "
        "problems and share of every batch; empty: one environment.",
    )
    problem_sampling: Rule = Field(
        "uniform",
        description="uniform: shuffled epochs; learnable: weight p(1-p)+0.05 of a running pass rate p per "
        "template (or problem).",
    )
    sampling_floor_epochs: int = Field(
        4,
        ge=0,
        description="learnable: every problem is drawn at least once in this many epochs; 0: the weights alone decide.",
    )
    prompt_style: Literal["livecodebench", "nouscoder", "fewshot"] = Field(
        "livecodebench",
        description="LiveCodeBench's prompt, the one NousCoder was trained on, or worked turns before the question.",
    )
    fewshot_turns: int = Field(2, ge=1, le=8, description="Worked turns of the fewshot style.")
    fewshot_path: PathText | None = Field(
        None, description="JSON file with worked turns [{question, answer}]; empty: the warm-up set's own."
    )
    fewshot_scaffold: Literal["livecodebench", "plain"] = Field(
        "livecodebench", description="Questions of the fewshot style in LiveCodeBench's format, or as they are."
    )
    thinking: bool | None = Field(
        None, description="The chat template's enable_thinking; empty leaves the template's default."
    )

    context: int = Field(4096, ge=16, description="Longest prompt + completion in tokens.")
    max_new_tokens: int | None = Field(
        2048,
        ge=1,
        description="Longest completion in tokens; longer is overlong. Empty: what the prompt leaves of env.context, "
        "less 32.",
    )
    temperature: float = Field(1.0, gt=0, le=2, description="Sampling temperature, divided out by the trainer too.")
    top_p: float = Field(1.0, description="Always 1: a truncated distribution biases every importance ratio.")

    overlong_baseline: Literal["include", "exclude"] = Field(
        "include",
        description="Truncated rollouts: judged and counted in the group's mean and std, then without advantage "
        "(include), or neither judged nor counted (exclude).",
    )
    dynamic_sampling: bool = Field(True, description="Do not send groups without any effective advantage.")
    shuffle_rewards: bool = Field(
        False,
        description="Control run: deal a group's rewards out at random, so that nothing can be learned.",
    )
    max_staleness: int = Field(
        1,
        ge=0,
        description="Training steps that a group may lag behind; a group that could exceed it is not begun.",
    )
    max_concurrent_rollouts: int = Field(256, ge=1, description="Rollouts at the servers at the same time.")
    rollout_deadline_s: float = Field(3600.0, gt=0, description="Longest time of one rollout, resubmissions included.")

    verifier: str = Field(
        "local",
        description="Where programs are judged: local, on this machine; http, services on others; modal, containers; "
        "or the name that an installed package gives its own.",
    )
    verifier_workers: int = Field(2, ge=1, description="Judges at the same time on this machine.")
    tests_dir: PathText | None = Field(
        None, description="local: folder of test sets above 1 MiB; empty: tests in env.run_dir."
    )
    verifier_urls: list[Url] = Field(
        [], description="http: addresses of `atropos verifier serve`, comma-separated; the token: VERIFIER_TOKEN."
    )
    verifier_concurrency: int = Field(
        64,
        ge=1,
        le=1500,
        description="http, modal: calls at the same time. modal: its max_containers, buffer included.",
    )
    verifier_starts_per_s: float = Field(30.0, gt=0, description="modal: most containers a second, of all shards.")
    verifier_strategy: Literal["rollout", "problem"] = Field(
        "rollout",
        description="modal: rollout, a container for each; problem, one for a group's rollouts when all are there.",
    )
    modal_app: str = Field("livecode-verifier", description="modal: the app's name (VERIFIER_APP at its deployment).")
    modal_volume: str = Field("livecode-tests", description="modal: its volume of test sets (VERIFIER_VOLUME).")
    modal_environment: str | None = Field(None, description="modal: Modal's environment; empty: the profile's own.")
    verifier_deadline_s: float | None = Field(
        None,
        gt=0,
        description="Longest wait for one verdict, queue and retries included; empty: what its tests may take and "
        "300 s, at least 600.",
    )
    test_order: Literal["hardest_first", "file"] = Field(
        "hardest_first",
        description="hardest_first: tests that failed programs before and cost little come first; file: as given.",
    )
    time_limit_s: float = Field(TIME_LIMIT_S, gt=0, description="Time limit of one test in seconds.")
    memory_limit_mb: int = Field(MEMORY_LIMIT_MB, ge=64, description="Memory limit of one test in MB.")
    own_time_factor: float | None = Field(
        None,
        ge=1,
        description="Problems with a time limit get this multiple of it instead of time_limit_s: their limits are "
        "set for compiled languages. Empty: time_limit_s for all.",
    )
    own_memory_factor: float | None = Field(
        None,
        ge=1,
        description="Likewise for a memory limit, at least 256 MB. Empty: memory_limit_mb for all.",
    )
    decimal_tolerance: float | None = Field(
        None, gt=0, lt=1, description="How far decimals of an answer may lie from the expected ones; empty: not at all."
    )

    run_dir: PathText = Field("runs/livecode", description="Folder of the run's records.")
    record_rollouts_per_group: int = Field(
        1, ge=0, description="Rollouts of a recorded group that are kept with text, code and verdict."
    )
    record_every_groups: int = Field(1, ge=1, description="Every how many finished groups one is recorded.")
    record_tokens: bool = Field(
        True,
        description="Keep the recorded rollouts' tokens and log-probabilities, for the report's view of tokens: about "
        "5 bytes a token on the disk, of short answers 7.",
    )
    record_programs: bool = Field(
        False, description="Keep every program with its verdict, packed, for `atropos rejudge`."
    )

    @property
    def part(self) -> Shard:
        """This environment's part of the run."""
        return read(self.shard) if self.shard else WHOLE

    @property
    def own_dir(self) -> Path:
        """Where this process keeps its records and its progress; those of all are in run_dir."""
        return Path(self.run_dir, FOLDER, self.part.name) if self.shard else Path(self.run_dir)

    @property
    def own_limits(self) -> OwnLimits:
        """What the problems' own limits count."""
        return OwnLimits(self.own_time_factor, self.own_memory_factor)

    @model_validator(mode="before")
    @classmethod
    def _nothing_without_effect(cls, values: Any) -> Any:
        for name, fix in REPLACED.items() if isinstance(values, dict) else ():
            if name == "max_token_length" and values.get(name) == values.get("context"):
                continue  # written so by this class: a run's saved configuration can be read again
            default = cls.model_fields[name].default
            if name in values and values[name] not in (default, getattr(default, "value", default)):
                raise ValueError(f"{name} = {values[name]!r}: has no effect in this environment: {fix}")
        return values

    @model_validator(mode="after")
    def _fits_together(self) -> LivecodeEnvConfig:
        if self.max_new_tokens is not None and self.max_new_tokens >= self.context:
            raise ValueError(
                f"max_new_tokens {self.max_new_tokens} >= context {self.context}: no room for a prompt; "
                "raise context or lower max_new_tokens"
            )
        if self.top_p != 1.0:
            raise ValueError(f"top_p {self.top_p}: training needs 1.0; set evaluation.top_p for evaluations")
        if self.max_concurrent_rollouts < self.group_size:
            raise ValueError(
                f"max_concurrent_rollouts {self.max_concurrent_rollouts} < group_size {self.group_size}: no group "
                f"could ever begin; set max_concurrent_rollouts to {self.group_size} or more"
            )
        if self.prompt_style != "fewshot" and self.fewshot_path is not None:
            raise ValueError(
                f"fewshot_path {self.fewshot_path} with prompt_style {self.prompt_style}: set prompt_style to fewshot "
                "or leave fewshot_path empty"
            )
        check_options(self)
        if self.total_steps == 0:
            raise ValueError("total_steps 0: set 1 or more, or -1 for the trainer's own number")
        self.max_token_length = self.context  # the name that Atropos' own code reads
        return self


class ProcessConfig(Section):
    """The mode `process`: groups into a file, without API and trainer."""

    groups: int = Field(8, ge=1, description="Groups to make.")
    output: PathText | None = Field(None, description="JSONL file; empty: groups.jsonl in env.run_dir.")


class RunConfig(Settings):
    """Rollouts of competitive programming problems, judged and grouped: serve feeds a trainer through the Atropos API
    (the default), process writes groups to a file, evaluate scores a model."""

    USAGE: ClassVar[str] = f"{PROGRAM} [serve|process|evaluate] [--config FILE] [--option value ...]"
    START: ClassVar[tuple[str, ...]] = ("model", "servers", "env.problems", "env.run_dir", "env.rollout_server_url")
    COMMON: ClassVar[tuple[str, ...]] = (
        *("env.group_size", "env.context", "env.max_new_tokens", "env.temperature", "env.total_steps"),
        *("env.prompt_style", "env.max_concurrent_rollouts", "env.max_staleness", "env.verifier"),
        *("env.verifier_workers", "env.time_limit_s", "process.groups", "process.output", "evaluation.problems"),
        *("evaluation.n", "evaluation.greedy", "evaluation.route"),
    )
    MORE: ClassVar[str] = (
        "Shown are the options of this mode; those of another one: `atropos run-env livecode MODE --help`."
    )
    EXAMPLE: ClassVar[str] = (
        f"{PROGRAM} process --model models/SmolLM2-135M-Instruct --env.problems warmup:train --process.groups 2\n"
        f"{PROGRAM} evaluate --config configs/demo/environment.yaml --model models/SmolLM2-135M-Instruct"
    )

    model: PathText = Field(description="Folder (or hub name) of the model that the servers serve.")
    tokenizer: PathText | None = Field(None, description="Folder (or hub name) of its tokenizer; empty: model.")
    servers: list[Url] = Field(SERVERS, min_length=1, description="Addresses of the vLLM servers, comma-separated.")
    servers_from: ServerSource | None = Field(
        None,
        description="Servers that come and go, instead of servers: a file with their addresses, or dns://NAME:PORT; "
        "read again every 2 s.",
    )
    servers_wait_s: float = Field(
        300.0, ge=0, description="Longest wait at the start for servers that do not answer yet, in seconds; 0: none."
    )
    yarn_factor: float | None = Field(
        None, gt=1, description="The factor that the servers were started with (serve-model); empty: none."
    )
    env: LivecodeEnvConfig = Field(default_factory=LivecodeEnvConfig, description="The environment.")
    process: ProcessConfig = Field(default_factory=ProcessConfig, description="The mode `process`.")
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig, description="The mode `evaluate`.")

    @model_validator(mode="before")
    @classmethod
    def _like_a_published_one(cls, values: Any) -> Any:
        evaluation = values.get("evaluation") if isinstance(values, dict) else None
        like = evaluation.get("like") if isinstance(evaluation, dict) else None
        if like not in LIKE:
            return values
        values = dict(values)
        for section, wanted in LIKE[like].items():
            given = values[section] = dict(values.get(section) or {})
            for name, value in wanted.items():
                if name in given and value != given[name] and str(value) != given[name]:
                    raise ValueError(
                        f"{section}.{name} {given[name]!r} with evaluation.like {like}, which sets it to {value!r}: "
                        "leave one of them out"
                    )
                given[name] = value
        return values

    @property
    def evaluation_sets(self) -> list[str]:
        """The sets that are evaluated; ConfigError where training problems would be the held-out ones."""
        if self.evaluation.problems or not self.evaluation.every:
            return self.evaluation.problems or [self.env.problems]
        return [validation_beside(self.env.problems)]

    @property
    def servers_named(self) -> list[str]:
        """What names the servers: their addresses, or where their list is."""
        return self.servers if self.servers_from is None else [self.servers_from]

    @property
    def longest_context(self) -> int:
        """Tokens that the servers have to take."""
        return max(self.env.context, self.evaluation.context or 0)

    @property
    def tokenizer_path(self) -> str:
        """Where the tokenizer is loaded from."""
        return self.tokenizer or self.model

    @model_validator(mode="after")
    def _model_can_serve(self) -> RunConfig:
        without_password("servers", self.servers)
        either(self.servers, SERVERS, self.servers_from, ("servers", "servers_from"))
        without_password("env.rollout_server_url", [self.env.rollout_server_url])
        without_password("env.verifier_urls", self.env.verifier_urls)
        if self.evaluation.route == "chat" and len(self.servers) != 1:
            raise ValueError(f"servers: {len(self.servers)} with evaluation.route chat, which takes one; give one")
        if self.evaluation.route == "chat" and self.servers_from is not None:
            raise ValueError(
                f"servers_from {self.servers_from} with evaluation.route chat, which takes one server; give servers"
            )
        described = Path(self.model) / "config.json"
        if not described.is_file():
            if self.model.startswith((".", "/", "models/")):
                raise ValueError(f"model {self.model}: no model there (no config.json); give a model's folder")
            return self  # a name on the hub: the servers are asked at start
        limit = json.loads(described.read_text(encoding="utf-8")).get("max_position_embeddings")
        if self.yarn_factor is not None:
            yarn_overrides(Path(self.model), self.yarn_factor, self.longest_context)
            return self
        name = "env.context" if self.env.context == self.longest_context else "evaluation.context"
        if isinstance(limit, int) and self.longest_context > limit:
            raise ValueError(
                f"{name} {self.longest_context} > the model's {limit} tokens: lower {name} to {limit}, or "
                "serve it with a yarn_factor and give the same one here"
            )
        return self


def load_run_config(
    path: str | Path | None = None, overrides: Sequence[str] = (), *, leave_out: Sequence[str] = ()
) -> RunConfig:
    """The run's options: defaults, then the YAML file at `path`, then flags such as ``--env.group_size 8``.

    Raises:
        ConfigError: naming each wrong field, its value and the fix; an unknown key names the nearest known one.
    """
    config = ["--config", str(path)] if path is not None else []
    return load(RunConfig, [*config, *overrides], PROGRAM, leave_out=leave_out)
