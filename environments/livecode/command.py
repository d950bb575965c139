"""The modes of `atropos run-env livecode`, each from its configuration to an exit code.

What a mode needs is imported once its configuration has been checked, so that help and a wrong option answer at once.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from environments.common.errors import ConfigError, LivecodeError
from environments.common.run_folder import claim
from environments.common.settings import write_yaml
from environments.common.shards import others
from environments.livecode.config import LivecodeEnvConfig, RunConfig, load_run_config

if TYPE_CHECKING:
    from environments.livecode.environment import LivecodeEnv

    Make = Callable[[RunConfig], LivecodeEnv]

logger = logging.getLogger(__name__)

_COLLECT_EVERY_S = 60.0
_SECTIONS = {"process": ("process",), "evaluation": ("serve", "evaluate")}  # options that not every mode has


def run(environment: Make, mode: str, config: RunConfig) -> int:
    """Run a mode of an environment to its end; the exit code: 0 done or SIGTERM, 130 Ctrl-C, 1 an error.

    Args:
        environment: the class, or what makes an environment of a configuration; called when everything is checked.

    Raises:
        ConfigError: something about the configuration or the problems that the user can fix.
    """
    if mode not in MODES:
        raise ConfigError(f"{mode}: no such mode. Choose one of {', '.join(MODES)}.")
    from environments.livecode.problems.sampler import check_sets

    held_out = config.evaluation_sets if mode == "evaluate" or (mode == "serve" and config.evaluation.every) else []
    check_sets([*held_out, *([] if mode == "evaluate" else [config.env.problems])])
    name = "environment" if mode == "serve" else mode
    _check_shard(mode, config.env)
    try:
        for folder in dict.fromkeys((Path(config.env.run_dir), config.env.own_dir)):
            claim(folder)
            if folder == config.env.own_dir or not config.env.part.index:  # the run's own file is the first shard's
                write_yaml(config, folder / "config" / f"{name}.yaml")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            logger.error(
                "env.run_dir %s: %s. Free space on that disk and start again", config.env.run_dir, error.strerror
            )
            return 1
        raise ConfigError(
            f"env.run_dir {config.env.run_dir}: cannot be written ({error.strerror}); give another folder"
        ) from None
    return asyncio.run(until_signal(MODES[mode](environment, config)))


def _check_shard(mode: str, env: LivecodeEnvConfig) -> None:
    """ConfigError where the folder holds the progress of a run that was divided otherwise."""
    from environments.livecode.recovery.progress import Progress

    run = Path(env.run_dir)
    if mode == "evaluate":
        if env.shard:
            raise ConfigError(f"env.shard {env.shard}: one environment evaluates; leave env.shard out")
        return
    if env.shard and Progress.begun(run):
        raise ConfigError(
            f"env.shard {env.shard}: env.run_dir {run} holds a run of one environment; leave env.shard out, or give "
            "another folder"
        )
    if found := others(run, env.shard):
        raise ConfigError(
            f"env.shard {env.shard or 'is empty'}: env.run_dir {run} holds a run of other shards "
            f"({', '.join(found)}); give as many shards as it began with, or another folder"
        )


def run_command(environment: Make, mode: str, argv: Sequence[str]) -> int:
    """The command line: [--config FILE] [--env.option value ...]; ConfigError before anything starts."""
    others = [section for section, modes in _SECTIONS.items() if mode not in modes]
    argv = ["--evaluation.like" + word.removeprefix("--like") if _is_like(word) else word for word in argv]
    config = load_run_config(None, argv, leave_out=others)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    return run(environment, mode, config)


def _is_like(word: str) -> bool:
    return word == "--like" or word.startswith("--like=")


async def run_serve(environment: Make, config: RunConfig) -> None:
    """Feeds a trainer through the Atropos API."""
    async with AsyncExitStack() as stack:
        env = environment(config)
        # What the imports made stays: a full collection would walk over it for half a second, and no rollout moves.
        gc.freeze()
        env.on_new_weights = _collect_garbage_then()
        await env.open(stack, versions=True)
        await env.env_manager()


def _collect_garbage_then() -> Callable[[], None]:
    """Takes full garbage collections over: a call makes one, at most once a minute.

    With thousands of rollouts in flight one takes up to half a second, in which none of them moves. When the servers
    take new weights they do not move anyway.
    """
    gc.set_threshold(*gc.get_threshold()[:2], 1_000_000)
    last = time.monotonic()

    def collect() -> None:
        nonlocal last
        if time.monotonic() - last > _COLLECT_EVERY_S:
            gc.collect()
            last = time.monotonic()

    return collect


async def run_process(environment: Make, config: RunConfig) -> None:
    """Writes groups to a file."""
    async with AsyncExitStack() as stack:
        env = environment(config)
        await env.open(stack, versions=False)
        await env.process_manager()


async def run_evaluate(environment: Make, config: RunConfig) -> list[dict[str, Any]]:
    """Scores the served model; the records that were appended to evaluations.jsonl."""
    async with AsyncExitStack() as stack:
        env = environment(config)
        await env.open(stack, versions=False, text=config.evaluation.route == "chat")
        return await env.evaluate()


async def _evaluate_and_print(environment: Make, config: RunConfig) -> None:
    from environments.livecode.evaluation.evaluate import summary

    for record in await run_evaluate(environment, config):
        print("\n".join(summary(record)), flush=True)
    folder = Path(config.env.run_dir)
    print(f"records: {folder / 'evaluations.jsonl'}; every sample with its text and verdict: {folder / 'evaluations'}")


MODES = {"serve": run_serve, "process": run_process, "evaluate": _evaluate_and_print}


async def until_signal(work: Coroutine[Any, Any, Any]) -> int:
    """Runs `work`; the exit code: 0 done or SIGTERM, 130 Ctrl-C, 1 an error.

    A signal cancels it, so that everything it opened is closed before the process ends.
    """
    from environments.livecode.recovery.progress import DiskFull

    task = asyncio.ensure_future(work)
    asked: list[int] = []
    loop = asyncio.get_running_loop()

    def stop(number: int) -> None:
        asked.append(number)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    try:
        await task
    except asyncio.CancelledError:
        if not asked:
            raise
        return 130 if asked[0] == signal.SIGINT else 0
    except (DiskFull, OSError) as error:
        # No fault of the input: started again once there is space, the run resumes.
        logger.error("%s: %s", type(error).__name__, error)
        return 1
    except ConfigError:
        raise
    except LivecodeError as error:
        logger.error("%s", error)
        return error.exit_code
    return 0
