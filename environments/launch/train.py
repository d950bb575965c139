"""`atropos train --config FILE`: all processes of your own run on this machine; the same command resumes."""

from __future__ import annotations

import fcntl
import os
import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from environments.common.hub import model_folder
from environments.common.run_folder import claim
from environments.common.settings import ConfigError, write_yaml
from environments.common.shards import FOLDER, Shard
from environments.launch import colocated
from environments.launch.config import PARTS, LaunchConfig, Parts, in_own_words, load_launch, parts, saved
from environments.launch.disk import check_disk
from environments.launch.display import Screen
from environments.launch.process_loop import (
    ATROPOS,
    TRAINER_VARIABLES,
    Loop,
    Process,
    run_to_end_or_signal,
    trainer_command,
)
from environments.launch.processes import RESTARTS, free_port

KEPT = "train.yaml"
"""In the run's config folder: the file as used."""
_SAME = ("model", "problems", "seed", "group_size", "context", "overlong_baseline", "environments")
"""What a resumed run cannot change."""


class Training:
    """One run: its folder, its processes, and what is printed about them."""

    def __init__(self, config: LaunchConfig, command: str, screen: Screen) -> None:
        self.config, self.command, self.screen = config, command, screen
        self.api = f"http://127.0.0.1:{config.api_port or free_port()}"
        self.servers = config.servers or [f"http://127.0.0.1:{config.server_port or free_port()}"]
        self.parts = parts(config, self.api, self.servers)
        self.run_dir = config.run_dir
        self.done = step_of_latest(self.run_dir)
        self.loop = Loop(
            self.run_dir,
            screen,
            steps=config.steps,
            done=self.done,
            saves=True,
            start_deadline_s=config.start_deadline_s,
            evaluated_every=self.parts.environment.evaluation.every,
        )

    def prepare(self, stack: ExitStack) -> None:
        """Everything that can be wrong and needs no process: problems, folder, disk.

        Raises:
            ConfigError: what the user can fix.
        """
        check_folder(self.config)
        count, too_long = check_problems(self.parts)
        claim(self.run_dir)
        stack.enter_context(alone(self.run_dir))
        disk = check_disk(self.parts.trainer)
        config = self.config
        write_yaml(config, self.run_dir / "config" / KEPT)
        for part in PARTS:
            if getattr(self.parts, part) is not None:
                write_yaml(getattr(self.parts, part), self._file(part))
        begin = f"resumes after step {self.done} of" if self.done else "trains"
        self.screen.say(
            f"Run folder {self.run_dir}: {begin} {config.steps} steps of {config.groups} groups of "
            f"{config.group_size} rollouts, {count} problems, context {config.context}"
        )
        if too_long:
            self.screen.say(f"  {too_long} problems are left out: their prompts leave no room for max_new_tokens")
        self.screen.say(f"  {disk}")

    def run(self) -> int:
        """All processes until the last step, or until a signal has the trainer save and end."""
        journal = str(self.run_dir / "api.journal")
        api = (*ATROPOS, "run-api", "--port", self.api.rpartition(":")[2], "--journal", journal)
        self.loop.begin_and_wait("api", Process(api, f"{self.api}/status"), "Atropos API server")
        self._forget_agreement()
        if self.parts.server is not None:
            restarts = colocated.RESTARTS if colocated.is_colocated(self.config) else RESTARTS
            self.loop.begin_and_wait("vllm", self._server(), f"vLLM with {self.config.model.name}", restarts)
        first, *others = self._environments()
        reached = self.loop.train(self._trainer(), first, others=others)
        self.screen.say()
        if reached < self.config.steps:
            self.screen.say(left(self.run_dir, self.config.steps, self.command))
            return 130
        self._say_what_is_there()
        return 0

    def _forget_agreement(self) -> None:
        """What both sides of an earlier start agreed on is not compared with those of this one, such as its steps."""
        with httpx.Client(base_url=self.api, timeout=30.0, trust_env=False) as http:
            for side in ("trainer", "environment"):
                http.post("/contract", json={"side": side, "terms": {}}).raise_for_status()

    def _say_what_is_there(self) -> None:
        folder = self.run_dir
        self.screen.say(f"{self.config.steps} steps done. The trained model is {folder / 'export'}. Next:")
        if (folder / "checkpoints" / "best").is_file():
            name = (folder / "checkpoints" / "best").read_text(encoding="utf-8").strip()
            self.screen.say(
                f"  atropos export {folder} --checkpoint best --out DIR       the best evaluated one, {name}"
            )
        self.screen.say(f"  atropos report {folder}       curves and a browser of the rollouts, one HTML page")
        self.screen.say(f"  atropos audit {folder}        was each group trained on once?")
        self.screen.say(f"  `{self.command} --steps {2 * self.config.steps}` trains further")

    def interrupted(self, reason: str) -> None:
        """The message when everything ends at once."""
        kept = step_of_latest(self.run_dir)
        state = f"the checkpoint after step {kept} is kept" if kept else "no checkpoint was written yet"
        self.screen.say(f"\n{reason}: stopped everything at once; {state}. `{self.command}` resumes.")

    def _file(self, part: str) -> Path:
        return self.run_dir / "config" / "parts" / f"{part}.yaml"

    def _server(self) -> Process:
        argv = (*ATROPOS, "serve-model", "--config", str(self._file("server")))
        return Process(argv, f"{self.servers[0]}/health", _gpus(self.config.server_gpus))

    def _environments(self) -> list[Process]:
        argv = (*ATROPOS, "run-env", "livecode", "serve", "--config", str(self._file("environment")))
        count = self.config.environments
        if count == 1:
            return [Process(argv, "config/environment.yaml")]
        return [
            Process((*argv, "--env.shard", str(shard)), f"{FOLDER}/{shard.name}/config/environment.yaml")
            for shard in (Shard(index, count) for index in range(count))
        ]

    def _trainer(self) -> Process:
        flags = ("--config", str(self._file("trainer")))
        argv = trainer_command(self.config.ranks, flags)
        return Process(argv, "config/trainer.yaml", (*TRAINER_VARIABLES.items(), *_gpus(self.config.trainer_gpus)))


def _gpus(devices: str | None) -> tuple[tuple[str, str], ...]:
    return () if devices is None else (("CUDA_VISIBLE_DEVICES", devices),)


def step_of_latest(run_dir: Path) -> int:
    """The step of the newest checkpoint in a run's folder; 0 without one."""
    try:
        return int((run_dir / "checkpoints" / "latest").read_text(encoding="utf-8").strip().removeprefix("step-"))
    except (FileNotFoundError, ValueError):
        return 0


def left(run_dir: Path, steps: int, command: str) -> str:
    """The message of a run that was ended before its last step."""
    if not (run_dir / "checkpoints" / "latest").exists():
        return f"Ended before there was anything to save. `{command}` begins at step 0."
    return f"Saved after step {step_of_latest(run_dir)} of {steps}. `{command}` resumes there."


def check_folder(config: LaunchConfig) -> None:
    """ConfigError where the folder holds another run, or something that `atropos train` did not begin."""
    folder = config.run_dir
    before = saved(folder / "config" / KEPT)
    if not before:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(
                f"run_dir {folder}: there is something that `atropos train` did not begin; give a new folder"
            )
        return
    now = config.model_dump(mode="json")
    for name in _SAME:
        then = before.get(name, LaunchConfig.model_fields[name].default)
        if then != now[name]:
            raise ConfigError(
                f"{name} {now[name]!r}: the run in {folder} started with {then!r}; set it back, or "
                "give a new run_dir to begin another run"
            )


def check_problems(processes: Parts) -> tuple[int, int]:
    """How many problems the run has, and how many more it leaves out because their prompt does not fit.

    Raises:
        ConfigError: a problem that cannot be read, or none whose prompt fits; held-out sets that are not there.
    """
    from environments.livecode.problems.prompts import prompt_builder
    from environments.livecode.problems.sampler import check_sets, load_set

    run = processes.environment
    problems = load_set(run.env.problems, run.env.seed)
    try:
        fit, too_long = prompt_builder(run.env, tokenizer(run)).fitting(problems)
        if run.evaluation.every:
            check_sets(run.evaluation_sets)
    except ConfigError as error:
        raise ConfigError(in_own_words(str(error))) from None
    return len(fit), len(too_long)


def tokenizer(run: Any) -> Any:
    """The tokenizer of the environment's options; ConfigError where there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(run.tokenizer_path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model {run.tokenizer_path}: its tokenizer cannot be loaded ({error})") from None


def alone(run_dir: Path) -> ExitStack:
    """Holds the run's folder until it is left; ConfigError where another `atropos train` has it."""
    held = ExitStack()
    lock = held.enter_context((run_dir / ".train.lock").open("w"))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        held.close()
        raise ConfigError(f"run_dir {run_dir}: another `atropos train` runs in it; end that one first") from None
    return held


def main(argv: Sequence[str]) -> int:
    """Trains; 0 when the last step is done, 130 after Ctrl-C or SIGTERM, 1 when a part failed, 2 for bad input."""
    config = load_launch(argv)
    config = config.model_copy(update={"model": model_folder(config.model)})
    # quiet libraries in every child; the hub is not asked again
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    screen = Screen()
    training = Training(config, shlex.join(["atropos", "train", *argv]), screen)
    if training.done >= config.steps:
        check_folder(config)
        screen.say(
            f"{config.run_dir}: all {config.steps} steps are done; the model is {config.run_dir / 'export'}. A larger "
            "`steps` trains further, another run_dir starts over."
        )
        return 0
    with ExitStack() as stack:
        training.prepare(stack)
        return run_to_end_or_signal(training.loop, training.run, training.interrupted)
