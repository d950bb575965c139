"""What the environment does without a trainer: groups into a file, and evaluations."""

from __future__ import annotations

import asyncio
import logging
import platform
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from environments.livecode.evaluation.evaluate import evaluate
from environments.livecode.evaluation.profiles import GradingProfile, grading_profiles
from environments.livecode.evaluation.samples import SampleStore
from environments.livecode.pipeline import all_of
from environments.livecode.problems.problem import Problem
from environments.livecode.problems.sampler import load_set
from environments.livecode.records.group_records import append_jsonl, count_lines

if TYPE_CHECKING:
    from environments.livecode.environment import LivecodeEnv

logger = logging.getLogger(__name__)


async def make_groups(env: LivecodeEnv) -> None:
    """Makes process.groups groups and adds every one of them, flat ones too, to a JSONL file."""
    config, options = env.config, env.run_config.process
    target = Path(options.output or Path(config.run_dir) / "groups.jsonl")
    wanted = asyncio.Semaphore(max(1, config.max_concurrent_rollouts // config.group_size))
    before = count_lines(target)

    async def one(problem: Problem) -> None:
        async with wanted:
            group = await env.make_group(problem)
        env.records.group(group, sent=False, written=str(target) if group.scores else None)
        if group.scores:
            append_jsonl(target, env.scored_data(group) | {"dropped": group.dropped})

    await all_of([one(await env.get_next_item()) for _ in range(options.groups)])
    reasons = ", ".join(f"{name} {count}" for name, count in env.dropped.items()) or "none"
    logger.info(
        "%d groups added to %s, which had %d; without signal: %s", count_lines(target) - before, target, before, reasons
    )


async def evaluate_sets(env: LivecodeEnv) -> list[dict[str, Any]]:
    """Every set of evaluation.problems, sampled and greedy, appended to evaluations.jsonl in the run's folder."""
    options, config = env.run_config.evaluation, env.config
    names = env.run_config.evaluation_sets
    loaded = {name: load_set(name, config.seed)[: options.limit] for name in names}
    sets = {name: env.fitting(name, problems) for name, problems in loaded.items()}
    served = await env.client.weight_version()
    grading = _grading(env)
    # All at once: one set's last long answers would leave most generation slots empty.
    records = await all_of(
        [
            evaluate(
                problems,
                options.n,
                options.temperature or config.temperature,
                greedy,
                pipeline=env.pipeline,
                name=name,
                max_new_tokens=config.max_new_tokens,
                top_p=options.top_p,
                seed=options.seed,
                weight_version=served,
                samples=_samples(env, name, greedy, served),
                grading=grading,
                cutoff=options.cutoff,
            )
            for name, problems in sets.items()
            for greedy in ((False, True) if options.greedy else (False,))
        ]
    )
    for record in records:
        record["settings"] = _settings(env, record)
        record["left_out"] = len(loaded[record["set"]]) - record["problems"]  # prompts too long
        append_jsonl(Path(config.run_dir) / "evaluations.jsonl", record)
        for name, scores in record["profiles"].items():
            logger.info(
                "%s%s, graded as %s: pass@1 %.3f [%.3f, %.3f]", record["set"],
                " greedy" if record["greedy"] else "", name, scores["pass_at_1"], *scores["ci95"],
            )  # fmt: skip
        if (rest := record["without_known_bad"]) is not None:
            logger.info("%s without known-bad problems: pass@1 %.3f", record["set"], rest["pass_at_1"])
    return records


def _settings(env: LivecodeEnv, record: dict[str, Any]) -> dict[str, Any]:
    """What a number stands for, so that two of them can be compared: by what, on what, how sampled, how graded."""
    options, config = env.run_config.evaluation, env.config
    return {
        "like": options.like,
        "model": env.run_config.model,
        "route": options.route,
        "prompt_style": config.prompt_style,
        "context": config.context,
        "max_new_tokens": config.max_new_tokens,  # null: what each prompt leaves
        "n": record["n"],
        "temperature": record["temperature"],
        "top_p": 1.0 if record["greedy"] else options.top_p,
        "yarn_factor": env.run_config.yarn_factor,
        "graders": [str(profile) for profile in _grading(env)],
        "versions": {"atropos-livecode": version("atropos-livecode"), "python": platform.python_version()},
    }


def _grading(env: LivecodeEnv) -> list[GradingProfile]:
    """The rules that programs are graded by, the first one's score counting."""
    options, config = env.run_config.evaluation, env.config
    return grading_profiles(
        options.profiles, time_limit_s=config.time_limit_s, memory_limit_mb=config.memory_limit_mb,
        own_limits=config.own_limits, decimal_tolerance=config.decimal_tolerance,
        no_memory_limit_mb=options.no_memory_limit_mb, semantics=options.semantics,
    )  # fmt: skip


def _samples(env: LivecodeEnv, name: str, greedy: bool, served: int | None) -> SampleStore:
    """Where an evaluation keeps its samples: a place of its own for all that decides what is sampled."""
    options, config = env.run_config.evaluation, env.config
    settings: dict[str, Any] = {
        "set": name,
        "greedy": greedy,
        "weight_version": served,
        "model": env.run_config.model,
        "evaluation": options.model_dump(exclude={"problems", "n", "greedy", "limit", "cutoff"}),
        "env": config.model_dump(
            include={"context", "max_new_tokens", "temperature", "prompt_style", "fewshot_turns", "fewshot_path",
                     "fewshot_scaffold", "thinking", "time_limit_s", "memory_limit_mb", "seed"}
        ),
    }  # fmt: skip
    for option in ("decimal_tolerance", "own_time_factor", "own_memory_factor"):
        if (value := getattr(config, option)) is not None:  # unset it is as it was before there was such an option
            settings["env"][option] = value
    named = f"{Path(name).name if '/' in name else name}{'-greedy' if greedy else ''}-v{served}"
    return SampleStore(Path(config.run_dir) / "evaluations", named, settings)
