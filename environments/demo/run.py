"""`atropos demo`: starts every part of the loop, shows each step, measures before and after, and cleans up."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from environments.demo.config import DemoConfig
from environments.demo.display import Screen, interval, percent, step_cells
from environments.demo.processes import RESTARTS, Child, Family, ProcessError, free_port
from environments.run_folder import claim
from environments.settings import ConfigError, load, write_yaml
from environments.supervise import Restarts

NEEDED_GIB = 4.0
"""Free disk a run takes: two checkpoints and two exchanged copies of a 135M model, with room for logs."""


class Interrupted(Exception):
    """Ctrl-C or SIGTERM."""


class JsonLines:
    """Reads what was appended to a file of one JSON object a line since the last call."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0

    def new(self) -> list[dict[str, Any]]:
        """The objects of all lines that were finished since."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


class Demo:
    """One run: its folder, its processes and what is printed about them."""

    def __init__(self, config: DemoConfig, screen: Screen) -> None:
        self.config = config
        self.screen = screen
        self.family = Family()
        self.interrupted = ""
        self.run_dir = config.run_dir or Path("runs") / f"demo-{datetime.now():%Y%m%d-%H%M%S}"
        self.api = f"http://127.0.0.1:{config.api_port or free_port()}"
        self.server = config.server_url or f"http://127.0.0.1:{config.server_port or free_port()}"
        self.evaluations = JsonLines(self.run_dir / "evaluations.jsonl")

    def run(self) -> None:
        """The whole demo.

        Raises:
            ProcessError: a part died or was not ready; the message ends with its log's last lines.
        """
        self._prepare_folder()
        started = time.monotonic()
        self.screen.say(f"Run folder {self.run_dir}")
        self._start_servers()
        before = self._evaluate(0)
        self._train()
        after = self._evaluate(self.config.steps)
        self._report(before, after, time.monotonic() - started)

    def stop(self) -> None:
        """Ends every process of this run."""
        self.family.stop()

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        """A signal's handler: only notes it, since an exception raised here could surface anywhere and be lost."""
        self.interrupted = signal.Signals(number).name

    def _check(self) -> None:
        if self.interrupted:
            raise Interrupted(self.interrupted)
        self.family.check()

    # -- start -------------------------------------------------------------------------------------------

    def _prepare_folder(self) -> None:
        if self.run_dir.exists() and any(self.run_dir.iterdir()):
            raise ConfigError(f"run_dir {self.run_dir}: not empty; give a new folder, so that no run is overwritten")
        self.run_dir.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.run_dir).free / 2**30
        if free < NEEDED_GIB:
            raise ConfigError(
                f"run_dir {self.run_dir}: {free:.1f} GiB free on that disk, the demo needs {NEEDED_GIB:.0f}: free some "
                "space or give a folder on another disk by --run_dir"
            )
        claim(self.run_dir)
        write_yaml(self.config, self.run_dir / "config" / "demo.yaml")

    def _start_servers(self) -> None:
        self._start(
            "api",
            [*_atropos(), "run-api", "--port", self.api.rpartition(":")[2]]
            + ["--journal", str(self.run_dir / "api.journal")],
            f"{self.api}/status",
            "Atropos API server",
        )
        if self.config.server_url is not None:
            return
        served = ["--model", str(self.config.model), "--port", self.server.rpartition(":")[2]]
        self._start(
            "vllm",
            [*_atropos(), "serve-model", "--config", str(self.config.server_config), *served],
            f"{self.server}/health",
            f"vLLM with {self.config.model.name}",
        )

    def _start(self, name: str, argv: Sequence[str], ready: str, what: str) -> Child:
        with self.screen.stage(what):
            child = self.family.start(name, argv, self.run_dir / "logs" / f"{name}.log", restarts=self._restarts(name))
            child.wait_ready(ready, self.config.start_deadline_s, tick=self._check)
        return child

    def _restarts(self, name: str) -> Restarts:
        return Restarts(name, RESTARTS, lambda line: self.screen.say(f"  {line}"))

    def _environment_flags(self) -> list[str]:
        return [
            *("--config", str(self.config.environment_config)),
            *("--model", str(self.config.model), "--servers", self.server),
            *("--env.rollout_server_url", self.api, "--env.run_dir", str(self.run_dir)),
            *("--env.seed", str(self.config.seed), "--env.total_steps", str(self.config.steps)),
            *("--env.shuffle_rewards", str(self.config.shuffle_rewards).lower()),
        ]

    # -- held-out evaluation -----------------------------------------------------------------------------

    def _evaluate(self, step: int) -> list[dict[str, Any]]:
        """Held-out results with the weights that are served now, one object per set and temperature."""
        when = "before training" if step == 0 else f"after {step} steps"
        with self.screen.stage(f"held-out evaluation {when}"):
            child = self.family.start(
                "evaluation",
                [
                    *(*_atropos(), "run-env", "livecode", "evaluate", *self._environment_flags()),
                    *("--evaluation.n", str(self.config.eval_samples)),
                    *("--evaluation.seed", str(self.config.seed)),
                ],
                self.run_dir / "logs" / "evaluation.log",
                restarts=self._restarts("evaluation"),
                ready=self.run_dir / "config" / "evaluate.yaml",
            )
            while child.returncode is None:
                self._check()
                time.sleep(0.2)
            child.check()
        results = self.evaluations.new()
        if not results:
            raise ProcessError(child.report("the evaluation wrote no result"))
        for result in results:
            self.screen.say(f"    {_title(result):<44} {_rate(result)}")
        return results

    # -- training ----------------------------------------------------------------------------------------

    def _train(self) -> None:
        trainer = self.family.start(
            "trainer",
            [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"),
                *(str(Path(__file__).resolve().parents[2] / "trainer" / "main.py"),),
                *("--config", str(self.config.trainer_config), "--model", str(self.config.model)),
                *("--run_dir", str(self.run_dir), "--steps", str(self.config.steps)),
                *("--seed", str(self.config.seed), "--api.url", self.api, "--weights.servers", self.server),
                *("--checkpoint.resume", "auto"),
            ],
            self.run_dir / "logs" / "trainer.log",
            # Activations come and go by the gigabyte: kept by the allocator, they are not paged in again each time.
            {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1"},
            restarts=self._restarts("trainer"),
            ready=self.run_dir / "config" / "trainer.yaml",
        )
        environment = self.family.start(
            "environment",
            [*_atropos(), "run-env", "livecode", "serve", *self._environment_flags()],
            self.run_dir / "logs" / "environment.log",
            restarts=self._restarts("environment"),
            ready=self.run_dir / "config" / "environment.yaml",
        )
        self.screen.say()
        self.screen.header()
        self._follow(trainer)
        environment.stop()
        self.family.children.remove(environment)
        self.screen.legend()

    def _follow(self, trainer: Child) -> None:
        """Prints a row for each step until the trainer has ended."""
        groups = JsonLines(self.run_dir / "environment.jsonl")
        pending: list[dict[str, Any]] = []
        with self._progress() as progress:
            task = progress.add_task("", total=self.config.steps)
            for trained in self._steps(trainer, lambda: pending.extend(groups.new()), progress, task, pending):
                self.screen.row(step_cells(trained, pending))
                pending.clear()
                progress.update(task, completed=trained["step"])

    def _steps(
        self, trainer: Child, poll: Any, progress: Progress, task: Any, pending: list[dict[str, Any]]
    ) -> Iterator[dict[str, Any]]:
        metrics = JsonLines(self.run_dir / "metrics.jsonl")
        while True:
            ended = trainer.returncode is not None
            self._check()
            poll()
            usable = sum(group["dropped"] is None for group in pending)
            progress.update(task, description=f"{len(pending)} groups generated, {usable} with a signal", refresh=True)
            yield from metrics.new()
            if ended:
                return
            time.sleep(0.3)

    def _progress(self) -> Progress:
        return Progress(
            TextColumn("  training"),
            BarColumn(30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=self.screen.console,
            transient=True,
        )

    # -- result ------------------------------------------------------------------------------------------

    def _report(self, before: list[dict[str, Any]], after: list[dict[str, Any]], seconds: float) -> None:
        from environments.livecode.evaluation import paired_difference

        self.screen.say()
        self.screen.say("Held-out pass@1, before -> after (95 % interval of the gain, resampling templates)")
        gains = []
        for first, last in zip(before, after, strict=True):
            gain, (low, high) = paired_difference(first, last)
            gains.append({"set": first["set"], "greedy": first["greedy"], "gain": gain, "ci95": [low, high]})
            self.screen.say(
                f"  {_title(first):<44} {percent(first['pass_at_1']):>7} -> {percent(last['pass_at_1']):>7}   "
                f"{100 * gain:+.1f} points {interval(low, high)}"
            )
        summary = {"seconds": seconds, "steps": self.config.steps, "seed": self.config.seed, "gains": gains}
        (self.run_dir / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        self.screen.say(f"\n{seconds:.0f} s in all. Everything is in {self.run_dir}:")
        self.screen.say(
            "  config/ as used, metrics.jsonl, environment.jsonl, evaluations.jsonl, rollouts/ with code and verdict, "
            "checkpoints/, logs/"
        )


def _atropos() -> list[str]:
    return [sys.executable, "-m", "environments.cli"]


def _title(result: dict[str, Any]) -> str:
    how = "greedy" if result["greedy"] else f"T {result['temperature']:g}, {result['n']} samples"
    return f"{result['set'].removeprefix('warmup:').replace('_', ' ')}, {how}"


def _rate(result: dict[str, Any]) -> str:
    low, high = result["ci95"]
    return f"{percent(result['pass_at_1']):>7} {interval(low, high)}  {result['correct']}/{result['total']}"


def main(argv: Sequence[str]) -> int:
    """Runs the demo; 0 when it came to its end, 130 after Ctrl-C, 1 when a part of it failed."""
    config = load(DemoConfig, [word.replace("--run-dir", "--run_dir") for word in argv], "atropos demo")
    screen = Screen()
    demo = Demo(config, screen)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, demo.interrupt)
    # quiet libraries in every child; the hub is never asked
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", WANDB_MODE="disabled")
    try:
        demo.run()
    except Interrupted as reason:
        screen.say(f"\n{reason}: stopping what this run started. What was made is in {demo.run_dir}")
        return 130
    except (ProcessError, OSError) as error:
        screen.say(f"\nerror {error}")
        return 1
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        demo.stop()
    return 0
