"""`atropos init`: writes the one file of a run, with a context that its prompts fit and a batch that fits in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from environments.common.hub import model_folder
from environments.common.settings import ConfigError
from environments.launch.config import LaunchConfig, parts
from environments.launch.disk import parameters
from environments.launch.machine import Machine, machine
from environments.launch.missing_model import FIRST
from verifier_app.judge.default_limits import MEMORY_LIMIT_MB

_GIB = 2**30
_ROUND = 64
_VLLM_GIB = 1.5  # of a vLLM on a CPU beside weights and cache, an allowance
_CACHE_GIB = 2.0
_SHARED_GPU = 0.35  # vLLM's share of a GPU that trains as well
_TRAINER_SHARE = 0.9
_FEWSHOT = {"prompt_style": "fewshot", "fewshot_turns": 4, "fewshot_scaffold": "plain"}
_SMALL = 500_000_000  # parameters below which the demo's prompts and learning rate are taken, measured with 135 M


@dataclass(frozen=True)
class RunSizes:
    """What was chosen, and why. gib: the trainer's memory that it was checked against; needed: what it takes of it."""

    longest_prompt: int
    max_new_tokens: int
    context: int
    max_tokens: int
    activation_checkpointing: str
    logprob_chunk: int
    gib: float
    needed: float


def write_launch(
    run: Path, model: Path, problems: str, steps: int, group_size: int, groups: int, max_new_tokens: int | None
) -> str:
    """Writes NAME.yaml (or `run` itself where it ends in .yaml); the lines to print.

    Raises:
        ConfigError: a model or problems that cannot be read, a file that is there already, no batch that fits.
    """
    path = run if run.suffix in (".yaml", ".yml") else run.with_name(run.name + ".yaml")
    if path.exists():
        raise ConfigError(f"{path}: there already; edit it, or give another name")
    model = model_folder(model, instead=f", or make a first one by `atropos pretrained --out {FIRST}`")
    here = machine()
    config = LaunchConfig(
        model=model,
        problems=problems,
        run_dir=Path("runs") / path.stem,
        steps=steps,
        group_size=group_size,
        groups=groups,
        temperature=0.7 if is_small(model) else 1.0,
        environment={"env": _FEWSHOT} if is_small(model) else {},
    )
    lengths = prompt_lengths(config)
    sizes = choose_sizes(config, here, max(lengths), max_new_tokens)
    text = render(config, sizes, here, len(lengths))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return (
        f"{path}: {len(lengths)} problems, prompts of {min(lengths)} to {max(lengths)} tokens, answers of up to "
        f"{sizes.max_new_tokens}; training needs {sizes.needed:.1f} of {sizes.gib:.1f} GiB\n"
        f"Look through it, then: atropos train --config {path}"
    )


def prompt_lengths(config: LaunchConfig) -> list[int]:
    """Tokens of each problem's prompt, as the environment makes them by default."""
    from environments.launch.train import tokenizer
    from environments.livecode.problems.prompts import prompt_builder
    from environments.livecode.problems.sampler import load_set

    run = parts(config, "http://127.0.0.1:1", ["http://127.0.0.1:2"]).environment
    builder = prompt_builder(run.env, tokenizer(run), limit=1 << 30)
    return [len(builder(problem).ids) for problem in load_set(run.env.problems, run.env.seed)]


def choose_sizes(config: LaunchConfig, here: Machine, longest: int, asked: int | None) -> RunSizes:
    """Context, pack and recomputation, checked by the trainer's own budget; the fastest that fits.

    Raises:
        ConfigError: prompts longer than the model's positions, or no setting that fits.
    """
    from trainer.planning.fit import model_config, setup
    from trainer.planning.timeline import GIB, plan

    model = model_config(config.model)
    answer = asked or (4096 if here.gpus else 256)
    context = -(-(longest + answer) // _ROUND) * _ROUND
    limit = getattr(model, "max_position_embeddings", context)
    if longest + answer > limit:
        raise ConfigError(
            f"problems: the longest prompt has {longest} tokens, and with an answer of {answer} that is more than the "
            f"model's {limit}: leave it out, or lower --max-new-tokens"
        )
    context = min(context, limit)
    gib = trainer_gib(config.model, here)
    for mode, packs, chunk in _candidates():
        tried = {
            "context": context,
            "max_new_tokens": answer,
            "trainer": {
                "activation_checkpointing": mode,
                "logprob_chunk": chunk,
                "batch": {"max_tokens": packs * context},
            },
        }
        changed = config.model_copy(update=tried)
        trainer = parts(changed, "http://127.0.0.1:1", ["http://127.0.0.1:2"]).trainer
        needed = plan(model, setup(trainer, here.ranks, cuda=bool(here.gpus))).needed / GIB
        if needed <= gib:
            return RunSizes(longest, answer, context, packs * context, mode, chunk, gib, needed)
    raise ConfigError(
        f"model {config.model}: training with a context of {context} needs {needed:.1f} GiB at least, {gib:.1f} are "
        "there; lower --max-new-tokens, leave long problems out, or take a smaller model"
    )


def _candidates() -> Iterator[tuple[str, int, int]]:
    """Recomputation, packs in contexts, chunk of the head: the fastest first."""
    for mode in ("none", "selective", "full"):
        for packs, chunk in ((4, 1024), (2, 1024), (1, 1024), (1, 256)):
            yield mode, packs, chunk


def trainer_gib(model: Path, here: Machine) -> float:
    """Memory in GiB that training may take on each device, beside the vLLM that this machine runs as well."""
    if here.gpus:
        return here.gpu_gib * (1.0 if here.gpus > 1 else 1 - _SHARED_GPU - 0.05)
    served = 4 * parameters(model) / _GIB + _CACHE_GIB + _VLLM_GIB
    return max(0.0, (here.free_gib - served) * _TRAINER_SHARE)


def render(config: LaunchConfig, sizes: RunSizes, here: Machine, count: int) -> str:
    """The file's text; what it says is read back by `atropos train`."""
    rows: list[tuple[str, str] | str] = [
        "# A run of `atropos train --config THIS_FILE`. The same command resumes the run.",
        "# Each number that several processes have to agree on is here, once.",
        f"model: {_scalar(config.model)}",
        (f"problems: {_scalar(config.problems)}", f"{count} problems"),
        (f"run_dir: {_scalar(config.run_dir)}", "checkpoints, records and logs; a new folder for a new run"),
        (f"steps: {config.steps}", "raise it to train a finished run further"),
        "seed: 0",
        "",
        (f"group_size: {config.group_size}", "answers to one problem that are compared with each other"),
        (f"groups: {config.groups}", "groups in a step, so it trains on groups x group_size answers"),
        (f"max_new_tokens: {sizes.max_new_tokens}", "longest answer; a longer one is truncated and fails"),
        (
            f"context: {sizes.context}",
            f"longest prompt ({sizes.longest_prompt} tokens) + answer, up to the next {_ROUND}",
        ),
        (f"temperature: {config.temperature}", "of sampling; lower where the model hardly ever succeeds"),
        "",
        *_devices(here),
        *_environment(config, here),
        *_trainer(config, sizes, here),
        *_server(here, sizes),
    ]
    return "\n".join(row if isinstance(row, str) else f"{row[0]:<35} # {row[1]}" for row in rows) + "\n"


Rows = list[tuple[str, str] | str]


def _environment(config: LaunchConfig, here: Machine) -> Rows:
    few: Rows = [
        ("    prompt_style: fewshot", "worked examples first: a model this small needs them"),
        ("    fewshot_turns: 4", "env.fewshot_path takes examples of your own"),
        "    fewshot_scaffold: plain",
    ]
    plain: Rows = [("    prompt_style: livecodebench", "fewshot puts worked examples first, for small models")]
    return [
        ("environment:", "more of `atropos run-env livecode --help`"),
        "  env:",
        *(few if is_small(config.model) else plain),
        ("    problem_sampling: learnable", "more often what is sometimes solved; uniform: each as often"),
        ("    max_concurrent_rollouts: " + str(max(config.group_size, 256 if here.gpus else 64)), "answers under way"),
        (f"    verifier_workers: {here.cores}", "judges at the same time"),
        ("    time_limit_s: 15", "of one test, in seconds"),
        f"    memory_limit_mb: {MEMORY_LIMIT_MB if here.gpus else 1024}",
        "",
    ]


def _trainer(config: LaunchConfig, sizes: RunSizes, here: Machine) -> Rows:
    exact = ("    old_logprobs: sampler", "vLLM serves fp32 on a CPU, so its own are exact")
    lr = ("    lr: 3.0e-5", "the demo's, for 135 M parameters")
    if not is_small(config.model):
        lr = ("    lr: 1.0e-6", "the recipe's, for 14 B parameters; smaller models take more")
    return [
        ("trainer:", "more of `python trainer/main.py --help`"),
        f"  activation_checkpointing: {sizes.activation_checkpointing}",
        f"  logprob_chunk: {sizes.logprob_chunk}",
        (f"  memory_gib: {sizes.gib:.1f}", f"what training may take; these sizes need {sizes.needed:.1f}"),
        "  batch:",
        (f"    max_tokens: {sizes.max_tokens}", "tokens of one forward pass"),
        "  objective:",
        ("    name: dapo", "or grpo, dr_grpo, gspo, gspo+"),
        *([] if here.gpus else [exact]),
        "  optimizer:",
        lr,
        "  checkpoint:",
        (f"    every: {max(1, config.steps // 10)}", "steps; Ctrl-C saves as well"),
        "    keep_last: 2",
        "",
    ]


def is_small(model: Path) -> bool:
    """Whether a model is one of those that solve hardly anything without worked examples."""
    return 0 < parameters(model) < _SMALL


def _devices(here: Machine) -> Rows:
    if here.gpus < 2:
        return []
    others = ",".join(str(index) for index in range(1, here.gpus))
    return [
        ("server_gpus: '0'", "one GPU samples"),
        (f"trainer_gpus: '{others}'", "the others train"),
        f"ranks: {here.gpus - 1}",
        "",
    ]


def _server(here: Machine, sizes: RunSizes) -> Rows:
    head = ("server:", "more of `atropos serve-model --help`")
    if here.gpus:
        share = 0.9 if here.gpus > 1 else _SHARED_GPU
        return [head, (f"  gpu_memory_utilization: {share}", "vLLM's share of its GPU"), "  max_num_seqs: 256"]
    return [
        head,
        ("  max_num_seqs: 64", "answers at the same time"),
        f"  max_num_batched_tokens: {sizes.context}",
        ("  block_size: 32", "small, so that a group computes its prompt once"),
        f"  kv_cache_gib: {_CACHE_GIB:g}",
        ("  enforce_eager: true", "compiling takes minutes on a CPU"),
    ]


def _scalar(value: Any) -> str:
    text: str = yaml.safe_dump(str(value), width=1000).strip()
    return text.removesuffix("...").strip()
