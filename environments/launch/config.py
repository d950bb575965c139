"""The one file of `atropos train`: what all processes share, each setting once, and further options of each."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import yaml
from pydantic import Field, ValidationError, model_validator

from environments.common.flags import option_names
from environments.common.hub import is_hub_name
from environments.common.settings import ConfigError, PathText, Settings, Url, explain, load, read_yaml
from environments.launch.colocated import check_turns, turns_defaults
from environments.launch.missing_model import no_model
from environments.launch.serve_model import ServeConfig
from trainer.config import TrainerConfig

PROGRAM = "atropos train"
PARTS = ("environment", "trainer", "server")
S = TypeVar("S", bound=Settings)

if TYPE_CHECKING:
    from environments.livecode.config import RunConfig


class LaunchConfig(Settings):
    """Starts API server, vLLM, environment and trainer on this machine; the same command resumes. `atropos init`
    writes such a file, and --environment.OPTION, --trainer.OPTION and --server.OPTION reach into its parts."""

    START: ClassVar[tuple[str, ...]] = ("model", "problems", "run_dir", "steps")
    COMMON: ClassVar[tuple[str, ...]] = (
        *("seed", "group_size", "groups", "context", "max_new_tokens", "temperature"),
        *("environment", "trainer", "server"),
    )
    EXAMPLE: ClassVar[str] = "atropos train --config my-run.yaml --steps 40 --trainer.optimizer.lr 1e-5"

    model: Path = Field(description="Folder of a Hugging Face causal language model; training begins with it.")
    problems: PathText = Field(description="As env.problems: a JSONL file, a split that was built, or a warm-up set.")
    run_dir: Path = Field(description="Folder of the run: checkpoints, records, logs of all processes.")
    steps: int = Field(20, ge=1, description="Training steps; raise it to train a finished run further.")
    seed: int = Field(0, ge=0, description="Seed of the problems' order, sampling and training.")
    group_size: int = Field(8, ge=2, description="Rollouts of one problem that are compared with each other.")
    groups: int = Field(8, ge=1, description="Groups in a step; a step trains on groups x group_size rollouts.")
    context: int = Field(1024, ge=16, description="Longest prompt + completion in tokens, for vLLM and training.")
    max_new_tokens: int = Field(512, ge=1, description="Longest completion in tokens; longer is overlong.")
    temperature: float = Field(1.0, gt=0, le=2, description="Sampling temperature, divided out by the trainer too.")
    overlong_baseline: str = Field("include", description="As env.overlong_baseline: include or exclude.")
    environments: int = Field(
        1, ge=1, description="Environment processes, each with a part of the problems and a share of every batch."
    )
    servers: list[Url] = Field(
        [], description="Addresses of vLLM servers that run already with this model; empty: one is started."
    )
    server_port: int | None = Field(None, ge=1, le=65535, description="Port of the vLLM started; empty: a free one.")
    api_port: int | None = Field(None, ge=1, le=65535, description="The API server's port; empty: a free one.")
    ranks: int = Field(1, ge=1, description="Processes that train, one for each GPU.")
    server_gpus: str | None = Field(None, description="CUDA_VISIBLE_DEVICES of vLLM, such as 0; empty: all.")
    trainer_gpus: str | None = Field(None, description="CUDA_VISIBLE_DEVICES of the trainer, such as 1,2; empty: all.")
    start_deadline_s: float = Field(600.0, gt=0, description="Longest wait for a process to be ready.")
    environment: dict[str, Any] = Field({}, description="Further options, as in a file for `run-env livecode`.")
    trainer: dict[str, Any] = Field({}, description="Further options, as in a file for trainer/main.py.")
    server: dict[str, Any] = Field({}, description="Further options, as in a file for `serve-model`.")

    @model_validator(mode="after")
    def _model_is_there(self) -> LaunchConfig:
        if not (self.model / "config.json").is_file() and not is_hub_name(self.model):
            raise ValueError(f"model {self.model}: {no_model(self.model)}")
        return self

    @model_validator(mode="after")
    def _each_has_a_share(self) -> LaunchConfig:
        if self.environments > self.groups:
            raise ValueError(
                f"environments {self.environments} > groups {self.groups}: each has a share of every batch; set "
                f"environments to {self.groups} or less"
            )
        return self

    @model_validator(mode="after")
    def _addresses(self) -> LaunchConfig:
        if self.servers and (self.server or self.server_port is not None):
            raise ValueError(
                f"servers {self.servers} run already, so server and server_port have no effect: leave them out, or "
                "leave servers empty to have one started"
            )
        if self.api_port is not None and self.api_port == self.server_port:
            raise ValueError(f"api_port {self.api_port} = server_port: give each a port of its own, or leave them out")
        return self


@dataclass(frozen=True)
class Parts:
    """The options of each process, checked. server: None where servers run already."""

    environment: RunConfig
    trainer: TrainerConfig
    server: ServeConfig | None


def load_launch(argv: Sequence[str]) -> LaunchConfig:
    """The file's options and flags; ``--trainer.optimizer.lr 1e-5`` and the like reach into the parts.

    Raises:
        ConfigError: as `settings.load`.
    """
    words, inner = take_inner(argv)
    if not words:
        raise ConfigError(f"{PROGRAM}: needs a file: {PROGRAM} --config my-run.yaml; `atropos init` writes one")
    if not words[0].startswith("-"):  # the file without its flag
        words.insert(0, "--config")
    config = load(LaunchConfig, words, PROGRAM)
    for part, values in inner.items():
        merged = merge(getattr(config, part), values)
        config = config.model_copy(update={part: merged})
    return config


def parts(config: LaunchConfig, api: str, servers: Sequence[str], where: str = PROGRAM) -> Parts:
    """Every process's options: our defaults, what the file says of the part, and what all share.

    api, servers: addresses. where: named in errors.

    Raises:
        ConfigError: an option that does not exist or fit, or a shared one that a part sets otherwise.
    """
    from environments.livecode.config import RunConfig  # seconds of Atropos' imports, which --help need not wait for

    check_turns(config)
    shared = _shared(config, api, servers)
    on_cpu = config.server.get("device") != "gpu" and not Path("/proc/driver/nvidia/version").exists()
    defaults = _defaults(config, on_cpu)
    full = {}
    for part in PARTS:
        given = getattr(config, part)
        _refuse_shared(part, given, shared[part])
        full[part] = merge(merge(defaults[part], given), shared[part])
    return Parts(
        _checked(RunConfig, full["environment"], f"{where}: environment"),
        _checked(TrainerConfig, full["trainer"], f"{where}: trainer"),
        None if config.servers else _checked(ServeConfig, full["server"], f"{where}: server"),
    )


def _shared(config: LaunchConfig, api: str, servers: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Settings that more than one process needs, from the one place that has them."""
    model = str(config.model)
    return {
        "environment": {
            "model": model,
            "servers": list(servers),
            "env": {
                "problems": config.problems,
                "run_dir": str(config.run_dir),
                "seed": config.seed,
                "group_size": config.group_size,
                "context": config.context,
                "max_new_tokens": config.max_new_tokens,
                "temperature": config.temperature,
                "overlong_baseline": config.overlong_baseline,
                "shard": None if config.environments == 1 else f"0/{config.environments}",
                "rollout_server_url": api,
                "total_steps": config.steps,
            },
        },
        "trainer": {
            "model": model,
            "run_dir": str(config.run_dir),
            "steps": config.steps,
            "seed": config.seed,
            "batch": {
                "rollouts": config.groups * config.group_size,
                "group_size": config.group_size,
                "context": config.context,
            },
            "objective": {"overlong_baseline": config.overlong_baseline},
            "api": {"url": api},
            "weights": {"servers": list(servers)},
            "checkpoint": {"resume": "auto"},
        },
        "server": {
            "model": model,
            "host": "127.0.0.1",
            "port": int(servers[0].rpartition(":")[2]) if not config.servers else 1,
            "max_model_len": config.context,
            "seed": config.seed,
        },
    }


def _defaults(config: LaunchConfig, on_cpu: bool) -> dict[str, dict[str, Any]]:
    """What fits one machine better than each process's own default."""
    trainer: dict[str, Any] = {
        "batch": {"max_tokens": max(config.context, 4096)},
        "checkpoint": {"every": max(1, min(50, config.steps // 10))},
    }
    if on_cpu:  # vLLM serves fp32 there, and computes on the trainer's cores
        trainer["weights"] = {"dtype": "float32", "pause_while_training": True}
    adapter = config.trainer.get("adapter")
    rank = adapter.get("rank") if isinstance(adapter, dict) else None
    turns = turns_defaults(config, on_cpu)
    return {
        "environment": {"env": {"max_concurrent_rollouts": max(256, config.group_size)}},
        "trainer": merge(trainer, turns["trainer"]),
        "server": merge({"max_lora_rank": rank} if rank else {}, turns["server"]),
    }


def _refuse_shared(part: str, given: Mapping[str, Any], shared: Mapping[str, Any], path: str = "") -> None:
    for name, value in given.items():
        if name not in shared:
            continue
        if isinstance(shared[name], dict) and isinstance(value, dict):
            _refuse_shared(part, value, shared[name], f"{path}{name}.")
        else:
            top = _TOP.get(path + name)
            fix = f"set `{top}` at the top of the file" if top else f"leave it out, {PROGRAM} sets it"
            raise ConfigError(f"{part}.{path}{name} = {value!r}: all processes have to agree on it; {fix}")


_TOP = {
    **{name: name for name in ("model", "seed", "steps", "run_dir", "servers", "port")},
    **{f"env.{name}": name for name in ("problems", "run_dir", "seed", "group_size", "context", "max_new_tokens")},
    **{f"env.{name}": name for name in ("temperature", "overlong_baseline")},
    "env.total_steps": "steps",
    "env.shard": "environments",
    "env.rollout_server_url": "api_port",
    "port": "server_port",
    "batch.rollouts": "groups",
    "batch.group_size": "group_size",
    "batch.context": "context",
    "objective.overlong_baseline": "overlong_baseline",
    "api.url": "api_port",
    "weights.servers": "servers",
    "max_model_len": "context",
}


def _checked(model: type[S], values: dict[str, Any], where: str) -> S:
    try:
        return model(**values)
    except ValidationError as error:
        raise ConfigError(in_own_words(explain(error, model, where))) from None


def in_own_words(message: str) -> str:
    """A process's message with the names that the shared options have in this file."""
    for inner, top in _TOP.items():
        if "." in inner:
            message = re.sub(rf"\b{re.escape(inner)}\b", top, message)
    return message


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested options, those of `above` over those of `below`."""
    merged = dict(below)
    for name, value in above.items():
        old = merged.get(name)
        merged[name] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def take_inner(argv: Sequence[str]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """The words that are no flag of a part, and the parts' flags as nested mappings.

    Raises:
        ConfigError: a flag without its value, or an option of a part without the part's name.
    """
    rest: list[str] = []
    inner: dict[str, dict[str, Any]] = {}
    words = iter(argv)
    for word in words:
        flag, equals, value = word.partition("=")
        part, _, path = flag.removeprefix("--").partition(".")
        if not flag.startswith("--") or part not in PARTS or not path:
            if path and (meant := _with_a_part(flag)):
                raise ConfigError(f"{flag}: an option of a part of the run. Write {' or '.join(meant)}.")
            rest.append(word)
            continue
        if not equals:
            found = next(words, None)
            if found is None:
                raise ConfigError(f"{flag}: needs a value")
            value = found
        nested: Any = yaml.safe_load(value)
        for name in reversed(path.replace("-", "_").split(".")):
            nested = {name: nested}
        inner[part] = merge(inner.get(part, {}), nested)
    return rest, inner


def _with_a_part(flag: str) -> list[str]:
    """The dotted flag with the names of the parts that have such an option in front."""
    from environments.livecode.config import RunConfig

    name = flag.removeprefix("--").replace("-", "_")
    models: tuple[type[Settings], ...] = (RunConfig, TrainerConfig, ServeConfig)  # in the order of PARTS
    parts = zip(PARTS, models, strict=True)
    return [f"--{part}.{name}" for part, model in parts if flag.startswith("--") and name in option_names(model)]


def saved(path: Path) -> dict[str, Any]:
    """The file as an earlier start of the run has kept it; empty where there is none."""
    return read_yaml(path) if path.is_file() else {}
