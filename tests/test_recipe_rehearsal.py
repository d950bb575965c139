"""The whole recipe on two cores with its own files: two stages, evaluations, the best checkpoint, YaRN.

`make recipe-rehearsal` runs it. Overridden are paths, sizes and the machine (below) and nothing else, so that whatever
a real run meets at its start, names, flags, schedules, roles of the files, is met here.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from environments.launch.display import Screen
from environments.launch.process_loop import ATROPOS, TRAINER_VARIABLES, Loop, Process
from environments.launch.processes import free_port
from tests.support import recipe_model

CONFIGS = Path(__file__).parents[1] / "configs" / "nouscoder-14b"
SCALE = 32
"""What the recipe's contexts are divided by: prompts are of bytes here, and answers of 25 tokens."""
STEPS = 4

ENVIRONMENT_SIZES = {"env.max_concurrent_rollouts": 32, "evaluation.every": 2, "evaluation.n": 2}
TRAINER_SIZES = {"steps": STEPS, "batch.rollouts": 16, "checkpoint.every": 2, "optimizer.warmup_steps": 1}
SERVER_SIZES = {"max_num_seqs": 32, "max_num_batched_tokens": 2048}
NO_MODAL = {"env.verifier": "local", "env.verifier_workers": 1}
NO_GPU = {"kv_cache_gib": 0.25, "enforce_eager": True, "device": "cpu"}

pytestmark = [
    pytest.mark.slow,  # two vLLM servers and two trainings: ten minutes on two cores
    pytest.mark.timeout(3600),
]


def flags(*groups: Mapping[str, Any]) -> tuple[str, ...]:
    words: list[str] = []
    for group in groups:
        for name, value in group.items():
            words += [f"--{name}", str(value).lower() if isinstance(value, bool) else str(value)]
    return tuple(words)


def config(name: str) -> tuple[str, str]:
    return "--config", str(CONFIGS / f"{name}.yaml")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class Rehearsal:
    """Folders, and the vLLM server that both stages use, as serve-40k.yaml says."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.model = folder, folder / "models" / "tiny"
        self.screen = Screen()

    def loop(self, name: str, **options: Any) -> Loop:
        """A stage's processes, logs below its run folder."""
        return Loop(self.folder / name, self.screen, steps=STEPS, start_deadline_s=900, **options)

    def serve(self, loop: Loop, name: str, model: Path, context: int) -> str:
        """vLLM with the recipe's file; its address."""
        port = free_port()
        sizes = {"model": model, "port": port, "max_model_len": context}
        argv = (*ATROPOS, "serve-model", *config(name), *flags(sizes, SERVER_SIZES, NO_GPU))
        loop.begin_and_wait("vllm", Process(argv, f"http://127.0.0.1:{port}/health"), f"vLLM, {name}.yaml")
        return f"http://127.0.0.1:{port}"

    def stage(self, loop: Loop, kind: str, context: int, server: str, stage_before: Path | None = None) -> None:
        """API server, environment and trainer of one stage to its last step."""
        api = f"http://127.0.0.1:{free_port()}"
        argv = (*ATROPOS, "run-api", "--port", api.rpartition(":")[2], "--journal", str(loop.run_dir / "api.journal"))
        loop.begin_and_wait(f"api-{kind}", Process(argv, f"{api}/status"), f"API server, stage {kind}")
        paths = {
            "model": self.model, "servers": server, "env.run_dir": loop.run_dir, "env.rollout_server_url": api,
            "env.problems": self.folder / "train.jsonl", "evaluation.problems": self.folder / "validation.jsonl",
        }  # fmt: skip
        sizes = {"env.context": context, "evaluation.context": recipe_model.LONGEST}
        words = flags(paths, sizes, ENVIRONMENT_SIZES, NO_MODAL)
        environment = (*ATROPOS, "run-env", "livecode", *config(f"environment-{kind}"), *words)
        own = {"model": self.model, "run_dir": loop.run_dir, "api.url": api, "weights.servers": server}
        if stage_before is not None:
            own["init_from.run"] = stage_before
        sizes = {"batch.context": context, "batch.max_tokens": 2 * context}
        words = flags(own, sizes, TRAINER_SIZES)
        trainer = (sys.executable, "-m", "trainer.launch", "--nproc-per-node", "1", *config(f"train-{kind}"), *words)
        variables = tuple(TRAINER_VARIABLES.items())
        reached = loop.train(
            Process(trainer, "config/trainer.yaml", variables), Process(environment, "config/environment.yaml")
        )
        assert reached == STEPS

    def check_stage(self, run: Path) -> dict[str, Any]:
        """What a stage leaves; its best.json."""
        evaluations = lines(run / "evaluations.jsonl")
        assert [(row["step"], row["weight_version"], row["total"]) for row in evaluations] == [
            (0, 0, 6), (2, 2, 6), (4, 4, 6),
        ]  # fmt: skip
        assert {row["settings"]["context"] for row in evaluations} == {recipe_model.LONGEST}
        rows = lines(run / "metrics.jsonl")
        assert [row["step"] for row in rows] == [1, 2, 3, 4]
        assert any(row["grad_norm"] for row in rows)
        best: dict[str, Any] = json.loads((run / "best.json").read_text())
        assert (run / "checkpoints" / "best").read_text().strip() == best["checkpoint"]
        scored = {row["step"]: row["pass_at_1"] for row in evaluations if row["step"]}
        assert best["pass_at_1"] == max(scored.values())
        return best

    def evaluate_with_yarn(self, loop: Loop, stage: Path) -> dict[str, Any]:
        """The best checkpoint of the last stage at twice and a half the original positions."""
        model, context = self.folder / "models" / "nouscoder", 5 * recipe_model.ORIGINAL // 2
        export = (*ATROPOS, "export", str(stage), "--checkpoint", "best", "--out", str(model))
        loop.run_to_end("export", Process(export, "config/export"), "export of the best checkpoint")
        server = self.serve(loop, "serve-81920", model, context)
        paths = {
            "model": model, "servers": server, "env.run_dir": loop.run_dir,
            "evaluation.problems": self.folder / "test.jsonl",
        }  # fmt: skip
        words = flags(paths, {"env.context": context, "evaluation.n": 2, "env.verifier_workers": 1})
        argv = (*ATROPOS, "run-env", "livecode", "evaluate", *config("eval-81920"), *words)
        loop.run_to_end("evaluation", Process(argv, "config/evaluate.yaml"), "evaluation with YaRN")
        (record,) = lines(loop.run_dir / "evaluations.jsonl")
        return record


def test_the_recipe_runs_through_with_its_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "WANDB_MODE": "disabled"}.items():
        monkeypatch.setitem(os.environ, name, value)
    rehearsal = Rehearsal(tmp_path)
    with rehearsal.screen.stage("a model that knows two programs"):
        recipe_model.make(rehearsal.model)
    recipe_model.write_splits(tmp_path)
    first, second, last = (
        rehearsal.loop(name, evaluated_every=every) for name, every in (("stage-32k", 1), ("stage-40k", 1), ("yarn", 0))
    )
    try:
        server = rehearsal.serve(first, "serve-40k", rehearsal.model, recipe_model.LONGEST)
        rehearsal.stage(first, "32k", 32768 // SCALE, server)
        best = rehearsal.check_stage(first.run_dir)
        rehearsal.stage(second, "40k", 40960 // SCALE, server, first.run_dir)
        rehearsal.check_stage(second.run_dir)
        log = (second.run_dir / "logs" / "trainer.log").read_text()
        assert f"began with {first.run_dir / 'checkpoints' / best['checkpoint']}" in log
        for loop in (second, first):
            loop.stop()
        record = rehearsal.evaluate_with_yarn(last, second.run_dir)
    finally:
        for loop in (last, second, first):
            loop.stop()
    assert (record["settings"]["yarn_factor"], record["settings"]["context"]) == (2.5, 2560)
    assert (record["total"], record["no_verdict"], sorted(record["profiles"])) == (4, 0, ["livecodebench", "nouscoder"])
