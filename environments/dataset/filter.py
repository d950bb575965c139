"""`atropos data filter`: what a start model always (or never) solves, left out; the pass rates of the rest, kept."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from environments.common.run_folder import claim
from environments.common.settings import ConfigError
from environments.livecode.config import RunConfig
from environments.livecode.environment import LivecodeEnv
from environments.livecode.evaluation.drawing import draw_samples
from environments.livecode.evaluation.samples import Sample, SampleStore, without_texts
from environments.livecode.generation.completions import SamplingParams
from environments.livecode.problems.load import load_problems, save_problems
from environments.livecode.problems.problem import Problem
from environments.livecode.problems.prompts import PromptBuilder
from environments.livecode.problems.stored_tests import is_built, read_rows, write_json, write_rows

_DECIDES = (
    *("context", "max_new_tokens", "temperature", "prompt_style", "fewshot_turns", "fewshot_path"),
    *("fewshot_scaffold", "thinking", "time_limit_s", "memory_limit_mb", "decimal_tolerance"),
    *("own_time_factor", "own_memory_factor"),
)
"""Options of the environment that a pass rate depends on."""


@dataclass(frozen=True)
class Split:
    """The problems to filter: a split that was built, or a JSONL file; and the folder that takes what is left.

    Raises:
        ConfigError: a folder from which the split's test sets would not be found.
    """

    path: Path
    out: Path

    def __post_init__(self) -> None:
        if self.out.resolve() in (self.path.resolve(), self.file.parent.resolve()):
            raise ConfigError(f"--out {self.out}: the problems themselves are there; give another folder")
        beside = self.file.resolve().parent.parent
        if self.built and self.out.resolve().parent != beside:
            raise ConfigError(
                f"--out {self.out}: a built split's test sets are in {beside / 'tests'}, so what is left of it has to "
                f"lie beside it; give a folder in {beside}"
            )

    @property
    def built(self) -> bool:
        return is_built(self.path)

    @property
    def file(self) -> Path:
        """The file that holds the problems."""
        return self.path / "problems.parquet" if self.path.is_dir() else self.path

    @property
    def work(self) -> Path:
        """The folder of the samples and of what the environment writes beside them."""
        return self.out / "samples"

    @property
    def left(self) -> Path:
        """What env.problems is set to for what is left."""
        return self.out if self.built else self.out / "problems.jsonl"

    def write(self, problems: Sequence[Problem], rates: Mapping[str, float]) -> None:
        """Writes what is left, each with its pass rate where there is one."""
        if self.built:
            rows = {row["id"]: row for row in read_rows(self.file)}
            kept = [rows[problem.id] | {"pass_rate": rates.get(problem.id)} for problem in problems]
            return write_rows(self.out / "problems.parquet", kept)
        part = self.left.with_suffix(".part")
        save_problems((problem.model_copy(update={"pass_rate": rates.get(problem.id)}) for problem in problems), part)
        part.replace(self.left)
        return None


class RateStore(SampleStore):
    """Samples whose texts nobody reads: millions of answers would fill the disk. It is never finished, so that
    another filter of the same model (more samples, `--leave-out-never`) generates only what is missing."""

    def begin(self, problems: Sequence[Problem], prompts: PromptBuilder) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, sample: Sample) -> None:
        super().add(without_texts(sample))

    def finish(self, problems: Sequence[Problem]) -> None:
        """Stays open."""


async def measure_and_write(config: RunConfig, split: Split, samples: int, leave_out_never: bool) -> dict[str, Any]:
    """Samples every problem from the running servers, writes what is left into split.out; returns the manifest.

    Args:
        config: of the environment, as for training: its prompts, temperature, limits and servers. env.run_dir is
            split.work, and env.problems the split.
        samples: of each problem.

    Raises:
        ConfigError: problems or settings that cannot be used, or nothing left.
        LivecodeError: servers or verifier refuse.
    """
    problems = load_problems(split.path)
    claim(split.work)
    source = hashlib.sha256(split.file.read_bytes()).hexdigest()
    drawn, settings = await _draw(config, split, problems, samples, source)
    rates, incomplete = pass_rates(drawn, samples)
    gone = excluded(rates, incomplete, leave_out_never)
    without = {name for names in gone.values() for name in names}
    left = [problem for problem in problems if problem.id not in without]
    if not left:
        raise ConfigError(
            f"data filter: of {len(problems)} problems none is left: {_counts(gone)}. Take harder problems, or leave "
            "--leave-out-never out."
        )
    manifest = {
        "source": str(split.path),
        "source_sha256": source,
        "samples": samples,
        "leave_out_never": leave_out_never,
        "settings": settings,
        "problems": {"source": len(problems), "measured": len(rates), "left": len(left)},
        "excluded": gone,
        "not_measured": sorted({problem.id for problem in problems} - rates.keys()),
        "without_some_verdicts": sorted(incomplete),
        "rates": {f"{rate:g}": count for rate, count in sorted(Counter(rates.values()).items())},
        "versions": {"atropos-livecode": version("atropos-livecode")},
    }
    split.write(left, rates)
    write_json(split.out / "manifest.json", manifest)
    return manifest


async def _draw(
    config: RunConfig, split: Split, problems: list[Problem], samples: int, source: str
) -> tuple[list[Sample], dict[str, Any]]:
    """Judged samples of every problem that fits, and the settings that decide what a pass rate is."""
    async with AsyncExitStack() as stack:
        env = LivecodeEnv(config)
        await env.open(stack, versions=False, text=config.evaluation.route == "chat")
        settings: dict[str, Any] = {
            "model": config.model,
            "weight_version": await env.equipment.client.weight_version(),
            "seed": config.evaluation.seed,
            "route": config.evaluation.route,
            **config.env.model_dump(mode="json", include=set(_DECIDES)),
        }
        store = RateStore(split.work, "rates", settings | {"source_sha256": source})
        fit = env.fitting(str(split.path), problems)
        store.begin(fit, env.equipment.prompts)
        drawn = await draw_samples(
            fit, samples, SamplingParams(config.env.max_new_tokens, config.env.temperature),
            pipeline=env.equipment.pipeline, name=str(split.path), seed=config.evaluation.seed, samples=store,
        )  # fmt: skip
        return drawn, settings


def pass_rates(samples: Sequence[Sample], wanted: int) -> tuple[dict[str, float], set[str]]:
    """({problem: share of its judged samples that passed}, problems with fewer than `wanted` verdicts)."""
    verdicts: dict[str, list[bool]] = {}
    names = {sample.problem for sample in samples}
    for sample in samples:
        if sample.status is not None:
            verdicts.setdefault(sample.problem, []).append(sample.status == "accepted")
    rates = {name: sum(row) / len(row) for name, row in verdicts.items()}
    return rates, {name for name in names if len(verdicts.get(name, ())) < wanted}


def excluded(rates: Mapping[str, float], incomplete: set[str], leave_out_never: bool) -> dict[str, list[str]]:
    """{always_solved, never_solved: ids}. Whose verdicts are not all there stays: the missing ones may decide."""
    ends = {"always_solved": 1.0} | ({"never_solved": 0.0} if leave_out_never else {})
    return {
        reason: sorted(name for name, rate in rates.items() if rate == end and name not in incomplete)
        for reason, end in ends.items()
    }


def _counts(gone: Mapping[str, Sequence[str]]) -> str:
    return ", ".join(f"{len(names)} {reason.replace('_', ' ')}" for reason, names in gone.items())


def report(manifest: Mapping[str, Any], split: Split) -> list[str]:
    """What was done, in lines for a terminal."""
    counts = manifest["problems"]
    lines = [
        f"{split.left}: {counts['left']} of {counts['source']} problems; left out: {_counts(manifest['excluded'])}",
        f"  pass rates of {manifest['samples']} samples: {json.dumps(manifest['rates'])}",
        f"  {split.out / 'manifest.json'} has the ids and the settings; env.problem_sampling learnable begins with the "
        "rates",
    ]
    if count := len(manifest["not_measured"]):
        lines.append(f"  {count} problems were not measured (prompt too long, or no verdict) and stay in")
    if count := len(manifest["without_some_verdicts"]):
        lines.append(f"  {count} problems lack verdicts: the same command asks for the missing samples again")
    return lines
