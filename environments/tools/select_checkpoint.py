"""`atropos select`: which checkpoint of a run is the best, by serving and evaluating them.

All complete checkpoints are screened with few samples and equal seeds; the best few are scored in full. scores.jsonl
gets a line for each score, best.json the choice with its paired intervals, checkpoints/best its name: a next stage
begins there (`init_from.select: best`). A run with `evaluation.every` has both already, from its evaluations; a
selection replaces them. An interrupted selection resumes: what is scored by the same settings is not
scored again, and of an evaluation only the missing samples are generated.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from environments.common.run_folder import check
from environments.common.settings import ConfigError, Settings, load
from environments.launch.processes import Child, ProcessError
from environments.launch.serve_model import ServeConfig, serve_command

if TYPE_CHECKING:
    from environments.livecode.config import RunConfig

Record = dict[str, Any]


class SelectConfig(Settings):
    """Chooses the best checkpoint of a run by serving and evaluating each."""

    EXAMPLE: ClassVar[str] = (
        "atropos select --run runs/mine --evaluation configs/nouscoder-14b/eval-40k.yaml "
        "--serving configs/nouscoder-14b/serve-40k.yaml"
    )

    run: Path = Field(description="The training run's folder.")
    evaluation: Path = Field(description="YAML of the evaluation (run-env livecode evaluate): its first set counts.")
    serving: Path = Field(description="YAML of the server (as for serve-model); model and port are set here.")
    screen_n: int = Field(2, ge=1, description="Samples per problem in the first round.")
    screen_limit: int | None = Field(None, ge=1, description="Problems of the first round; empty: all.")
    finalists: int = Field(3, ge=1, description="Checkpoints that are scored with all samples.")
    port: int = Field(8011, ge=1, le=65535, description="Port of the server.")
    start_deadline_s: float = Field(1800.0, gt=0, description="Longest start of a server.")


def main(argv: Sequence[str]) -> int:
    """The command line; the exit code. ConfigError for what the user can fix."""
    best = select(load(SelectConfig, argv, "atropos select"), lambda line: print(line, flush=True))
    print(f"best: {best['checkpoint']}, pass@1 {best['pass_at_1']:.3f} on {best['set']}")
    return 0


def select(config: SelectConfig, say: Callable[[str], None]) -> Record:
    """Scores the run's checkpoints and returns what best.json holds.

    Raises:
        ConfigError: no complete checkpoint, files that do not fit each other, a server that does not start.
    """
    # Imported here, and below: --help should not pay for torch.
    from environments.livecode.config import load_run_config
    from environments.livecode.evaluation.best import choose, score_row
    from environments.livecode.evaluation.evaluate import paired_difference
    from trainer.checkpoint_folder import complete_checkpoints

    check(config.run)
    found = complete_checkpoints(config.run / "checkpoints")
    if not found:
        raise ConfigError(
            f"select: {config.run}: no complete checkpoint in checkpoints/. Give a training run's folder."
        )
    settings = load_run_config(config.evaluation, ["--model", str(_model(config.run))])
    name, n = settings.evaluation_sets[0], settings.evaluation.n
    say(f"{len(found)} checkpoints, scored on {name}")
    screened = [(_score(config, path, name, config.screen_n, "screen", say), path) for path in found]
    screened.sort(key=lambda one: -one[0]["pass_at_1"])
    finals = [(_score(config, path, name, n, "full", say), path) for _, path in screened[: config.finalists]]
    finals.sort(key=lambda one: -one[0]["pass_at_1"])
    best, path = finals[0]
    against = []
    for other, other_path in finals[1:]:
        gain, interval = paired_difference(other, best)
        against.append({"checkpoint": other_path.name, "gain": gain, "ci95": list(interval)})
        low, high = (100 * end for end in interval)
        say(f"{path.name} against {other_path.name}: {100 * gain:+.1f} points [{low:.1f}, {high:.1f}]")
    choice = score_row(path.name, best, "full") | {"against": against}
    choose(config.run, choice)
    return choice


def _score(config: SelectConfig, path: Path, name: str, n: int, stage: str, say: Callable[[str], None]) -> Record:
    """The evaluation's record of one checkpoint, from a server of its own; a line in scores.jsonl."""
    from environments.livecode.command import run_evaluate
    from environments.livecode.environment import LivecodeEnv
    from environments.livecode.evaluation.best import score_row
    from environments.livecode.evaluation.evaluate import EvaluationError
    from environments.livecode.generation.served_weights import InfrastructureError
    from environments.livecode.generation.vllm_servers import RolloutError
    from environments.livecode.problems.problem import ProblemError
    from environments.livecode.problems.prompts import PromptError
    from environments.livecode.records.group_records import append_jsonl
    from environments.livecode.verification.base import VerifierError
    from trainer.model.export_command import export

    serving, settings = settings_of(config, path, name, n, stage)
    folder, model = config.run / "select" / path.name, serving.model
    kept = folder / stage / "score.json"
    own = digest(path, serving, settings)
    if (earlier := _earlier(kept, own)) is not None:
        say(f"{stage} {path.name}: pass@1 {earlier['pass_at_1']:.3f}, scored before")
        return earlier
    begin(folder / stage, own)
    export(config.run, path.name, model, "float32")
    settings = settings.model_copy(update={"model": str(model)})
    command, variables = serve_command(serving)
    server = Child("vLLM", command, folder / "vllm.log", variables)
    try:
        server.wait_ready(f"{serving.url}/health", config.start_deadline_s)
        (record,) = asyncio.run(run_evaluate(LivecodeEnv, settings))
    except (EvaluationError, InfrastructureError, ProblemError, ProcessError, PromptError, RolloutError,
            VerifierError) as error:  # fmt: skip
        raise ConfigError(f"select: {path.name}: {error}") from None
    finally:
        server.stop()
    shutil.rmtree(model)  # of a large model there is no room for one of each checkpoint
    append_jsonl(config.run / "scores.jsonl", score_row(path.name, record, stage))
    part = kept.with_suffix(".new")
    part.write_text(json.dumps({"digest": own, "record": record}), encoding="utf-8")
    part.replace(kept)
    low, high = record["ci95"]
    say(f"{stage} {path.name}: pass@1 {record['pass_at_1']:.3f} [{low:.3f}, {high:.3f}], n = {record['n']}")
    return record


def begin(folder: Path, own: str) -> None:
    """Resumes the samples of an interrupted evaluation, unless they are of something else."""
    note = folder / "digest"
    if not note.is_file() or note.read_text(encoding="utf-8") != own:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        note.write_text(own, encoding="utf-8")


def settings_of(config: SelectConfig, path: Path, name: str, n: int, stage: str) -> tuple[ServeConfig, RunConfig]:
    """How a checkpoint is served, and how it is evaluated; ConfigError where that cannot be."""
    from environments.livecode.config import load_run_config

    folder = config.run / "select" / path.name
    words = ["--config", str(config.serving), "--model", str(folder / "model"), "--port", str(config.port)]
    serving = load(ServeConfig, words, "atropos select")
    limit = [] if stage == "full" or config.screen_limit is None else ["--evaluation.limit", str(config.screen_limit)]
    settings = load_run_config(
        config.evaluation,
        ["--model", str(_model(config.run)), "--servers", serving.url, "--env.run_dir", str(folder / stage),
         "--evaluation.problems", name, "--evaluation.n", str(n), "--evaluation.greedy", "false", *limit],
    )  # fmt: skip
    return serving, settings


def digest(path: Path, serving: ServeConfig, settings: RunConfig) -> str:
    """A name for all that decides a score. A checkpoint rewritten after a crash is another one."""
    told = {
        "checkpoint": path.stat().st_mtime_ns,
        "serving": serving.model_dump(mode="json", exclude={"port"}),
        "settings": settings.model_dump(mode="json", exclude={"servers"}),
        "problems": [
            (str(file), file.stat().st_size, file.stat().st_mtime_ns)
            for name in map(Path, settings.evaluation_sets)
            for file in (sorted(name.glob("*")) if name.is_dir() else [name] if name.is_file() else [])
        ],
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _earlier(kept: Path, digest: str) -> Record | None:
    try:
        found = json.loads(kept.read_bytes())
    except (OSError, ValueError):
        return None
    return found["record"] if found.get("digest") == digest else None


def _model(run: Path) -> Path:
    from trainer.config import TrainerConfig

    settings = run / "config" / "trainer.yaml"
    if not settings.is_file():
        raise ConfigError(f"select: {run}: no config/trainer.yaml there. Give the folder that --run_dir named.")
    return load(TrainerConfig, ["--config", str(settings)], "atropos select").model
