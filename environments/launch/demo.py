"""`atropos demo`: starts every part of the loop, shows each step, measures as it goes, and cleans up."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from environments.common.hub import model_folder
from environments.common.run_folder import claim
from environments.common.settings import ConfigError, load, write_yaml
from environments.launch.config import merge, take_inner
from environments.launch.demo_config import DemoConfig
from environments.launch.disk import check_disk
from environments.launch.display import Screen, evaluation_title, interval, percent
from environments.launch.process_loop import (
    ATROPOS,
    TRAINER_VARIABLES,
    Loop,
    Process,
    run_to_end_or_signal,
    trainer_command,
)
from environments.launch.processes import ProcessError, free_port
from trainer.config import TrainerConfig

ADAPTER_DEADLINE_S = 3600
"""Of a rollout through an adapter: on a CPU vLLM samples several times slower than without one, and a rollout waits for
those before it. The demo's own 600 s would end the environment."""


class Demo:
    """One run: its folder, its processes and what is printed about them."""

    def __init__(self, config: DemoConfig, screen: Screen) -> None:
        self.config = config
        self.screen = screen
        self.run_dir = config.run_dir or Path("runs") / f"demo-{datetime.now():%Y%m%d-%H%M%S}"
        self.loop = Loop(
            self.run_dir,
            screen,
            steps=config.steps,
            start_deadline_s=config.start_deadline_s,
            evaluated_every=config.eval_every or config.steps,
        )
        self.api = f"http://127.0.0.1:{config.api_port or free_port()}"
        self.server = config.server_url or f"http://127.0.0.1:{config.server_port or free_port()}"
        self.adapter_rank = 0

    def run(self) -> int:
        """The whole demo.

        Raises:
            ProcessError: a part died or was not ready; the message ends with its log's last lines.
        """
        self._prepare_folder()
        started = time.monotonic()
        self.screen.say(f"Run folder {self.run_dir}")
        self.screen.say(f"  {self.disk}")
        with self.screen.bar():
            self._run_loop()
        self._report(self._evaluated(0), self._evaluated(self.config.steps), time.monotonic() - started)
        return 0

    def _run_loop(self) -> None:
        # vLLM computes on one core while it starts: trainer and environment start beside it, and wait for it.
        vllm = self._server()
        served = self.loop.begin_server("vllm", vllm) if vllm else None
        self.loop.begin_and_wait("api", self._api(), "Atropos API server")

        def wait() -> None:
            if vllm and served:
                self.loop.wait_ready(served, vllm, f"vLLM with {self.config.model.name}")

        self.loop.train(self._trainer(), self._environment(), wait)

    # -- start -------------------------------------------------------------------------------------------

    def _prepare_folder(self) -> None:
        if self.run_dir.exists() and any(self.run_dir.iterdir()):
            raise ConfigError(f"run_dir {self.run_dir}: not empty; give a new folder, so that no run is overwritten")
        trainer = load(TrainerConfig, self._trainer_flags())
        self.adapter_rank = trainer.adapter.rank
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self.disk = check_disk(trainer)
        claim(self.run_dir)
        write_yaml(self.config, self.run_dir / "config" / "demo.yaml")

    def _api(self) -> Process:
        journal = str(self.run_dir / "api.journal")
        argv = (*ATROPOS, "run-api", "--port", self.api.rpartition(":")[2], "--journal", journal)
        return Process(argv, f"{self.api}/status")

    def _server(self) -> Process | None:
        """vLLM; None where one runs already."""
        if self.config.server_url is not None:
            return None
        served = ["--model", str(self.config.model), "--port", self.server.rpartition(":")[2]]
        served += ["--max_lora_rank", str(self.adapter_rank)] if self.adapter_rank else []
        served += flags(self.config.server)
        argv = (*ATROPOS, "serve-model", "--config", str(self.config.server_config), *served)
        return Process(argv, f"{self.server}/health")

    def _environment_flags(self) -> list[str]:
        return [
            *("--config", str(self.config.environment_config)),
            *("--model", str(self.config.model), "--servers", self.server),
            *("--servers_wait_s", str(self.config.start_deadline_s)),
            *("--env.rollout_server_url", self.api, "--env.run_dir", str(self.run_dir)),
            *("--env.seed", str(self.config.seed), "--env.total_steps", str(self.config.steps)),
            *("--env.shuffle_rewards", str(self.config.shuffle_rewards).lower()),
            *("--evaluation.every", str(self.config.eval_every or self.config.steps)),
            *("--evaluation.n", str(self.config.eval_samples), "--evaluation.seed", str(self.config.seed)),
            *(("--env.rollout_deadline_s", str(ADAPTER_DEADLINE_S)) if self.adapter_rank else ()),
            *flags(self.config.environment),
        ]

    def _environment(self) -> Process:
        flags = self._environment_flags()
        return Process((*ATROPOS, "run-env", "livecode", "serve", *flags), "config/environment.yaml")

    def _trainer_flags(self) -> list[str]:
        return [
            *("--config", str(self.config.trainer_config), "--model", str(self.config.model)),
            *("--run_dir", str(self.run_dir), "--steps", str(self.config.steps)),
            *("--seed", str(self.config.seed), "--api.url", self.api, "--weights.servers", self.server),
            *("--weights.wait_s", str(self.config.start_deadline_s)),
            *("--checkpoint.resume", "auto"),
            *flags(self.config.trainer),
        ]

    def _trainer(self) -> Process:
        return Process(
            trainer_command(1, self._trainer_flags()), "config/trainer.yaml", tuple(TRAINER_VARIABLES.items())
        )

    def _evaluated(self, step: int) -> list[dict[str, Any]]:
        """The held-out results of a step's weights, one object per set and temperature."""
        results = [record for record in self.loop.evaluated if record.get("step") == step]
        if not results:
            raise ProcessError(f"{self.run_dir / 'evaluations.jsonl'} has no result of step {step}")
        return results

    # -- result ------------------------------------------------------------------------------------------

    def _report(self, before: list[dict[str, Any]], after: list[dict[str, Any]], seconds: float) -> None:
        from environments.livecode.evaluation.evaluate import paired_difference

        self.screen.say()
        self.screen.say("Held-out pass@1, before -> after (95 % interval of the gain, resampling templates)")
        gains = []
        for first, last in zip(before, after, strict=True):
            gain, (low, high) = paired_difference(first, last)
            gains.append({"set": first["set"], "greedy": first["greedy"], "gain": gain, "ci95": [low, high]})
            rates = f"{percent(first['pass_at_1']):>7} -> {percent(last['pass_at_1']):>7}"
            self.screen.say(f"  {evaluation_title(first):<44} {rates}   {100 * gain:+.1f} points {interval(low, high)}")
        summary = {"seconds": seconds, "steps": self.config.steps, "seed": self.config.seed, "gains": gains}
        (self.run_dir / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        self.screen.say(f"\n{seconds:.0f} s in all. Everything is in {self.run_dir}:")
        self.screen.say(
            "  config/ as used, metrics.jsonl, environment.jsonl, evaluations.jsonl, rollouts/ with code and verdict, "
            "checkpoints/, logs/"
        )
        again = f"{self.run_dir}-again"
        self.screen.say("Next (after `source .venv/bin/activate`):")
        self.screen.say(f"  atropos report {self.run_dir}       curves and the recorded rollouts, one HTML page")
        self.screen.say(f"  atropos rejudge {self.run_dir} --out {again}       the recorded programs, judged again")
        self.screen.say(f"  atropos demo --steps {2 * self.config.steps}       the same, trained longer")


def flags(options: Mapping[str, Any], path: str = "") -> list[str]:
    """Nested options as a command's flags."""
    found: list[str] = []
    for name, value in options.items():
        if isinstance(value, Mapping):
            found += flags(value, f"{path}{name}.")
        else:
            found += [f"--{path}{name}", value if isinstance(value, str) else json.dumps(value)]
    return found


def main(argv: Sequence[str]) -> int:
    """Runs the demo; 0 when it came to its end, 130 after Ctrl-C, 1 when a part of it failed."""
    words, inner = take_inner(argv)
    config = load(DemoConfig, words, "atropos demo")
    config = config.model_copy(update={part: merge(getattr(config, part), values) for part, values in inner.items()})
    config = config.model_copy(update={"model": model_folder(config.model)})
    screen = Screen()
    demo = Demo(config, screen)
    # quiet libraries in every child; the hub is never asked
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", WANDB_MODE="disabled")

    def interrupted(reason: str) -> None:
        screen.say(f"\n{reason}: stopping what this run started. What was made is in {demo.run_dir}")

    return run_to_end_or_signal(demo.loop, demo.run, interrupted)
