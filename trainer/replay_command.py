"""`atropos replay RUN --step N [trainer options]`: a recorded step again, as it was or as if options had been others.

Exit code 0: bit for bit the same, or the comparison of other options is done; 1: it parts, the first tensor and phase
are named; 2: wrong input. More ranks than one are started as torchrun does.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from environments.common.errors import LivecodeError, report
from environments.common.flags import merged, parse
from environments.common.run_folder import check
from environments.common.settings import ConfigError, explain
from trainer.config import TrainerConfig

if TYPE_CHECKING:
    from trainer.replay import AsIf

SHOWN = ("loss", "grad_norm", "clip_low_tokens", "clip_high_tokens", "clip_low_sequences", "clip_high_sequences",
         "optimizer_steps", "skipped_optimizer_steps", "sequences", "tokens")  # fmt: skip
"""Metrics that are always shown beside those that differ."""


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    reader = argparse.ArgumentParser(
        "atropos replay", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    reader.add_argument("run", type=Path, help="a training run's folder; --keep_batches N kept its batches")
    reader.add_argument("--step", type=int, required=True, help="the weight version that the step made: 1 is the first")
    options, rest = reader.parse_known_args(words)
    try:
        return _main(options.run, options.step, rest, words)
    except LivecodeError as error:
        return report(error)


def _main(run: Path, step: int, rest: Sequence[str], words: Sequence[str]) -> int:
    import os

    if not run.is_dir():
        raise ConfigError(f"replay: {run}: no such folder; give the one that --run_dir named")
    check(run)
    if step < 1:
        raise ConfigError(f"--step {step}: give 1 or more, the weight version that the step made")
    # Imported here: --help should not pay for torch.
    from trainer.replay_store import FOLDER, read_step

    stored = read_step(run / FOLDER, step)
    if rest:
        other_options(TrainerConfig.model_validate(stored.config), rest)  # refused before ranks are started
    if stored.world_size > 1 and "RANK" not in os.environ:
        return _launch(stored.world_size, words)
    return _replay(run, step, rest)


def other_options(config: TrainerConfig, words: Sequence[str]) -> TrainerConfig:
    """The recorded options with those of the command line over them. ConfigError where they do not fit."""
    flags = parse(TrainerConfig, list(words))
    try:
        return TrainerConfig.model_validate(merged(config.model_dump(mode="json"), flags.values))
    except ValidationError as error:
        raise ConfigError(explain(error, TrainerConfig, "the recorded options", flags.given)) from None


def _launch(ranks: int, words: Sequence[str]) -> int:
    import subprocess

    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), __file__, *words]
    code = subprocess.run([sys.executable, *command], check=False).returncode
    return code if code in (0, 1) else 1


def _replay(run: Path, step: int, rest: Sequence[str]) -> int:
    from trainer.parallel import broadcast, distributed
    from trainer.replay import replay, replay_as_if

    with distributed() as parallel:

        def say(line: str) -> None:
            if parallel.is_main:
                print(line, file=sys.stderr, flush=True)

        if rest:
            found = replay_as_if(run, step, lambda config: other_options(config, rest), parallel, say)
            if parallel.is_main:
                print("\n".join(as_if_lines(step, rest, found)))
            return 0
        partings: list[str] = broadcast(replay(run, step, parallel, say), parallel)
        if parallel.is_main:
            same = f"step {step}: batch, log-probabilities, gradients, weights and metrics are the same bit for bit"
            print("\n".join(partings or [same]))
        return 1 if partings else 0


def as_if_lines(step: int, words: Sequence[str], found: AsIf) -> list[str]:
    """The comparison for a terminal."""
    before, after = found.before, found.after
    lines = [
        f"step {step} as recorded, and with {' '.join(words)}",
        f"gradient: cosine {found.gradient_cosine:.6f}, norm {found.gradient_ratio:.6g} times as large",
        f"update of the weights: cosine {found.update_cosine:.6f}, norm {found.update_ratio:.6g} times as large",
        f"{'metric':<28}{'recorded':>16}{'as if':>16}",
    ]
    for name in dict.fromkeys([*SHOWN, *sorted(before.metrics)]):
        was, now = before.metrics.get(name), after.metrics.get(name)
        if was != now or (name in SHOWN and was is not None):
            lines.append(f"{name:<28}{_number(was):>16}{_number(now):>16}")
    for title, one, two in (("dropped now", after, before), ("dropped no longer", before, after)):
        names = sorted(one.dropped.keys() - two.dropped.keys())
        lines.append(f"groups {title}: {', '.join(f'{name} ({one.dropped[name]})' for name in names) or 'none'}")
    return lines


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.6g}"


if __name__ == "__main__":
    sys.exit(main())
