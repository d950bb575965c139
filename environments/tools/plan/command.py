"""`atropos plan`: what a recipe does on a cluster, before the cluster is rented.

atropos plan --config configs/plan/48-b200.yaml
atropos plan --config configs/plan/48-b200.yaml --search fastest
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from environments.common.errors import BAD_INPUT, ConfigError
from environments.common.settings import load
from environments.common.terminal import take_any_text
from environments.tools.plan.config import PlanConfig
from environments.tools.plan.figures import Figures, simulate, with_bottleneck
from environments.tools.plan.rates import KINDS, Rates, rates
from environments.tools.plan.recipe import Files, Recipe, read, recipe
from environments.tools.plan.search import Found, divided, search

_SHOWN = 10


def fits(config: PlanConfig, files: Files) -> bool:
    """Whether a step fits the memory of the training GPUs, by `trainer.planning`; True where it is not asked."""
    if not config.memory or config.cluster.trainer_gpu == "cpu":
        return True
    from trainer.planning.fit import model_config, setup
    from trainer.planning.timeline import plan

    trainer = files.trainer
    if config.recipe.rollouts is not None or config.recipe.group_size is not None:
        sizes = {
            "rollouts": config.recipe.rollouts or trainer.batch.rollouts,
            "group_size": config.recipe.group_size or trainer.batch.group_size,
        }
        trainer = trainer.model_copy(update={"batch": trainer.batch.model_copy(update=sizes)})
    needed = plan(model_config(trainer.model), setup(trainer, config.cluster.trainer_gpus)).needed
    return needed <= KINDS[config.cluster.trainer_gpu].memory_gib * 2**30


def lines(config: PlanConfig, recipe: Recipe, rates: Rates, found: Figures) -> Iterator[str]:
    """The figures in words."""
    cluster, speed = config.cluster, rates.speed
    yield (
        f"{cluster.trainer_gpus} x {cluster.trainer_gpu} train, {cluster.server_gpus} x {cluster.server_gpu} generate "
        f"({rates.servers} servers, cache of {speed.cache_tokens:,.0f} tokens each), {recipe.verifier_places} places "
        f"verify ({recipe.verifier}); {recipe.rollouts} rollouts a step"
    )
    yield (
        f"{found.steps_hour:.2f} steps an hour, {found.step_s:,.1f} s each; {recipe.steps} steps: "
        f"{found.hours_run:,.1f} h"
    )
    yield f"bottleneck: {found.bottleneck}" if found.bottleneck else ""
    for name, gain in sorted((found.gains or {}).items(), key=lambda item: -item[1]):
        yield f"  {gain:+6.1%} steps an hour, a quarter more of: {name}"
    yield "seconds of a step"
    for name, seconds in found.phases.items():
        yield f"  {name:<34}{seconds:12,.2f}" + ("   (of the wait)" if name == "evaluation" else "")
    yield "idle share"
    for name, share in found.busy.items():
        yield f"  {name:<34}{1 - share:12.1%}"
    yield "queues, mean and most"
    for name, (mean, most) in found.queues.items():
        yield f"  {name:<34}{mean:12,.1f}{most:12,.0f}"
    yield f"staleness of trained groups: {found.staleness[0]:.2f} steps on average, {found.staleness[1]} at most"
    shares = ", ".join(f"{name} {share:.1%}" for name, share in found.groups.items())
    yield f"groups: {shares}; answers cut: {found.overlong:.1%}; put back by a full cache: {found.preempted}"
    yield (
        f"{found.answers_s:,.1f} answers and {found.tokens_s:,.0f} tokens a second; {found.tokens_step:,.0f} tokens "
        f"trained a step; {found.wire_mb_s:,.2f} MB/s through the API"
    )
    if found.money_step:
        yield f"money: {found.money_step:,.2f} a step, {found.money_run:,.0f} for the run"
        for name, money in found.money.items():
            yield f"  {name:<38}{money:12,.3f}"


def table(found: Sequence[Found]) -> Iterator[str]:
    """The best divisions."""
    yield "training GPUs  generating  places  steps/h    hours     money  money/h  trainer idle  servers idle"
    for one in found[:_SHOWN]:
        got = one.figures
        yield (
            f"{one.trainer_gpus:13}{one.server_gpus:12}{one.places:8}{got.steps_hour:9.2f}{got.hours_run:9.1f}"
            f"{got.money_run:10,.0f}{one.money_hour:9.2f}{1 - got.busy['trainer']:14.1%}{1 - got.busy['servers']:14.1%}"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: exit code 0, 1 where a step does not fit the GPUs' memory, 2 for what cannot be planned."""
    take_any_text()
    try:
        return _plan(load(PlanConfig, sys.argv[1:] if argv is None else argv, "atropos plan"))
    except ConfigError as error:
        print(f"error {error}", file=sys.stderr)
        return BAD_INPUT


def _plan(config: PlanConfig) -> int:
    files = read(config)
    kept: dict[str, Any] = {}
    if config.search != "none":
        divisions = search(config, files, lambda changed: fits(changed, files))
        print("\n".join(table(divisions)), flush=True)
        best = divisions[0]
        config = divided(config, best.trainer_gpus, best.server_gpus, best.places)
        kept["divisions"] = [
            {"trainer_gpus": one.trainer_gpus, "server_gpus": one.server_gpus, "places": one.places}
            | {"figures": one.figures.as_json()}
            for one in divisions
        ]
    elif not fits(config, files):
        print(
            f"error cluster.trainer_gpus {config.cluster.trainer_gpus}: a step does not fit their memory; see `atropos "
            f"budget --config {config.trainer} --gpus {config.cluster.trainer_gpus}`",
            file=sys.stderr,
        )
        return 1
    chosen = recipe(config, files)
    found_rates = rates(config, files, chosen)
    found = simulate(config, chosen, found_rates)
    if config.bottleneck:
        found = with_bottleneck(config, chosen, found_rates, found)
    print("\n".join(filter(None, lines(config, chosen, found_rates, found))))
    if config.out is not None:
        kept |= {"config": config.model_dump(mode="json", exclude={"out"}), "figures": found.as_json()}
        config.out.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return 0
