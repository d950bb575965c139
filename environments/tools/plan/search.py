"""Which division of the GPUs, and how large a verifier, is fastest or cheapest within bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from environments.common.settings import ConfigError
from environments.tools.plan.config import PlanConfig
from environments.tools.plan.figures import HOUR, Figures, simulate
from environments.tools.plan.rates import rates
from environments.tools.plan.recipe import Files, recipe

Fits = Callable[[PlanConfig], bool]


@dataclass(frozen=True)
class Found:
    """One division and what it comes to."""

    trainer_gpus: int
    server_gpus: int
    places: int
    figures: Figures

    @property
    def money_hour(self) -> float:
        return self.figures.money_step * HOUR / self.figures.step_s


def divided(config: PlanConfig, trainer: int, server: int, places: int | None) -> PlanConfig:
    """The plan with this division."""
    sizes = {"trainer_gpus": trainer, "server_gpus": server, "verifier_places": places}
    return config.model_copy(update={"cluster": config.cluster.model_copy(update=sizes)})


def divisions(config: PlanConfig) -> Iterator[tuple[int, int, int | None]]:
    """(training GPUs, generating GPUs, verifier places) to try."""
    bounds, cluster = config.bounds, config.cluster
    gpus = bounds.gpus or cluster.trainer_gpus + cluster.server_gpus
    places: Sequence[int | None] = bounds.places or [cluster.verifier_places]
    for trainer in range(bounds.gpus_together, gpus, bounds.gpus_together):
        for count in places:
            yield trainer, gpus - trainer, count


def search(config: PlanConfig, files: Files, fits: Fits) -> list[Found]:
    """All divisions that fit and keep the bounds, the best first.

    fits: whether a step fits the memory of the training GPUs.

    Raises:
        ConfigError: there is none.
    """
    bounds, found, small = config.bounds, [], set()
    for trainer, server, places in divisions(config):
        changed = divided(config, trainer, server, places)
        chosen = recipe(changed, files)
        if server < chosen.tensor_parallel:
            continue
        if trainer in small or not fits(changed):
            small.add(trainer)
            continue
        figures = simulate(changed, chosen, rates(changed, files, chosen))
        found.append(Found(trainer, server, chosen.verifier_places, figures))
    kept = [
        one
        for one in found
        if (bounds.hours is None or one.figures.hours_run <= bounds.hours)
        and (bounds.money is None or one.figures.money_run <= bounds.money)
        and (bounds.money_hour is None or one.money_hour <= bounds.money_hour)
    ]
    if not kept:
        raise ConfigError(
            f"bounds: none of {len(found)} divisions keeps them"
            + (f", {len(small)} have too little memory to train" if small else "")
            + "; raise bounds.hours, bounds.money, bounds.money_hour or bounds.gpus"
        )
    if config.search == "fastest":
        return sorted(kept, key=lambda one: (-one.figures.steps_hour, one.figures.money_step))
    return sorted(kept, key=lambda one: (one.figures.money_step, one.figures.step_s))
