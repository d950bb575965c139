"""What a simulated run comes to: speed, idle shares, queues, staleness, drops, money, and what holds it up."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import fmean
from typing import Any, TypeVar

from environments.common.settings import ConfigError
from environments.tools.plan.clock import Level
from environments.tools.plan.config import ClusterConfig, PlanConfig, PricesConfig
from environments.tools.plan.loop import Loop, Step
from environments.tools.plan.rates import Rates
from environments.tools.plan.recipe import Recipe
from environments.tools.plan.servers import Speed
from environments.tools.plan.workload import Workload, workload

HOUR = 3600.0
T = TypeVar("T", Rates, Speed)
FASTER = 1.25
"""How much faster each part is made to see which one holds the run up."""
FELT = 0.02
"""Gains below this are noise of the drawn answers' order."""


@dataclass(frozen=True)
class Figures:
    """All of it; seconds are means of a step, shares are of the time that is counted."""

    steps_hour: float
    step_s: float
    phases: dict[str, float]
    """Seconds of a step: wait, evaluation (of the wait), old_logprobs, train, sync, checkpoint."""
    busy: dict[str, float]
    """Share of a part that works."""
    queues: dict[str, tuple[float, float]]
    """(mean, most) of what waits."""
    staleness: tuple[float, int]
    """(mean, most) of the trained groups, in steps."""
    groups: dict[str, float]
    """Shares of the finished groups: sent, and dropped by reason."""
    overlong: float
    tokens_step: float
    tokens_s: float
    """Generated, of finished answers."""
    answers_s: float
    preempted: int
    wire_mb_s: float
    money: dict[str, float]
    """Of a step, by phase."""
    money_step: float
    hours_run: float
    money_run: float
    bottleneck: str = ""
    gains: Mapping[str, float] | None = None
    """{part: share of steps an hour that is gained where it is a quarter faster}"""

    def as_json(self) -> dict[str, Any]:
        """For a file."""
        return asdict(self)


class Counted:
    """A loop's levels from the first counted step on."""

    def __init__(self, loop: Loop) -> None:
        servers = loop.servers.all
        self.levels: dict[str, list[Level]] = {
            "slots": [loop.slots], "flying": [loop.flying], "queued": [loop.queued], "held": [loop.held],
            "verifier": [loop.verifier.busy], "verifier waiting": [loop.verifier.queue],
            "environment": [loop.environment.busy], "environment waiting": [loop.environment.queue],
            "api": [loop.api.busy], "api waiting": [loop.api.queue],
            "decoding": [server.decoding for server in servers], "running": [server.running for server in servers],
            "paused": [server.paused for server in servers], "server waiting": [server.queue for server in servers],
        }  # fmt: skip
        for levels in self.levels.values():
            for level in levels:
                level.restart()
        self.began = loop.clock.now
        self.ended, self.answers, self.tokens = loop.ended.copy(), loop.answers, loop.finished_tokens
        self.judged = loop.verifier.done
        self.overlong, self.preempted = loop.overlong, sum(server.preempted for server in servers)

    def mean(self, name: str, seconds: float) -> float:
        """Time average of the sum of a name's levels."""
        return sum(level.total() for level in self.levels[name]) / seconds

    def queue(self, name: str, seconds: float) -> tuple[float, float]:
        """(mean, most) of it; of several the largest one's."""
        return round(self.mean(name, seconds), 1), max(level.most for level in self.levels[name])


def simulate(config: PlanConfig, recipe: Recipe, rates: Rates, work: Workload | None = None) -> Figures:
    """One run's figures; ConfigError where it stops of itself."""
    work = work or workload(config.workload, config.seed)
    loop = Loop(recipe, rates, work, config.workload.evaluation_problems)
    last = min(config.simulated_steps, recipe.steps)
    first = min(config.first_steps, last - 1)
    whole = loop.run(first)
    counted = Counted(loop)
    if not (whole and loop.clock.run(lambda: len(loop.steps) >= last)):
        raise ConfigError(
            f"the run stops after step {len(loop.steps)}: {dict(loop.ended)}, and no group may begin; raise "
            "max_staleness or max_concurrent_rollouts"
        )
    return _figures(config, recipe, rates, loop, counted, first)


def _phases(steps: Sequence[Step]) -> dict[str, float]:
    """Mean seconds of each phase."""
    return {
        "wait": fmean(step.wait for step in steps), "evaluation": fmean(step.evaluation for step in steps),
        "old_logprobs": fmean(step.old for step in steps), "train": fmean(step.train for step in steps),
        "sync": fmean(step.sync for step in steps), "checkpoint": fmean(step.checkpoint for step in steps),
    }  # fmt: skip


QUEUES = {
    "groups under way": "flying", "groups at the API": "queued", "groups held by an evaluation": "held",
    "answers before a server": "server waiting", "programs before the verifier": "verifier waiting",
    "answers before the environment": "environment waiting", "calls before the API": "api waiting",
}  # fmt: skip
"""What they are called, and their level."""


def _figures(config: PlanConfig, recipe: Recipe, rates: Rates, loop: Loop, counted: Counted, first: int) -> Figures:
    seconds, steps = loop.clock.now - counted.began, loop.steps[first:]
    mean = partial(counted.mean, seconds=seconds)
    phases = _phases(steps)
    each = seconds / len(steps)
    busy = {
        "trainer": (phases["old_logprobs"] + phases["train"]) / each,
        "servers": mean("decoding") / rates.servers,
        "server sequences": mean("running") / rates.servers / rates.speed.most_running,
        "slots": mean("slots") / recipe.max_concurrent,
        "verifier": mean("verifier") / recipe.verifier_places,
        "container starts": (loop.verifier.done - counted.judged) / seconds / (rates.starts_per_s or math.inf),
        "environment process": mean("environment"),
        "API process": mean("api"),
    }
    ended = loop.ended - counted.ended
    total = max(1, sum(ended.values()))
    answers, tokens = loop.answers - counted.answers, loop.finished_tokens - counted.tokens
    money = cost(config.cluster, config.prices, recipe, phases, busy, each, mean("verifier"))
    hours = recipe.steps * each / HOUR
    stale = [age for step in steps for age in step.staleness]
    return Figures(
        steps_hour=HOUR / each,
        step_s=each,
        phases=phases,
        busy=busy,
        queues={name: counted.queue(level, seconds) for name, level in QUEUES.items()},
        staleness=(fmean(stale), max(stale)),
        groups={name: count / total for name, count in sorted(ended.items())},
        overlong=(loop.overlong - counted.overlong) / max(1, answers),
        tokens_step=fmean(step.tokens for step in steps),
        tokens_s=tokens / seconds,
        answers_s=answers / seconds,
        preempted=sum(server.preempted for server in loop.servers.all) - counted.preempted,
        wire_mb_s=2 * fmean(step.tokens for step in steps) * config.rates.wire_bytes_token / each / 1e6,
        money=money,
        money_step=sum(money.values()),
        hours_run=hours,
        money_run=sum(money.values()) * recipe.steps,
    )


def cost(
    cluster: ClusterConfig,
    prices: PricesConfig,
    recipe: Recipe,
    phases: Mapping[str, float],
    busy: Mapping[str, float],
    step_s: float,
    containers: float,
) -> dict[str, float]:
    """Money of one step by phase. containers: mean number of places that work; Modal's are paid while they do."""
    trainer = cluster.trainer_gpus * prices.trainer_gpu_hour / HOUR
    server = cluster.server_gpus * prices.server_gpu_hour * step_s / HOUR
    if recipe.verifier == "modal":
        verifier = containers * step_s * prices.container_s
    else:
        verifier = recipe.verifier_places * step_s * prices.verifier_place_hour / HOUR
    trained = phases["old_logprobs"] + phases["train"]
    moved = phases["sync"] + phases["checkpoint"]
    return {
        "training": trainer * trained,
        "training GPUs, publishing and saving": trainer * moved,
        "training GPUs, waiting": trainer * max(0.0, step_s - trained - moved),
        "generating": server * busy["servers"],
        "generating GPUs, idle or paused": server * (1 - busy["servers"]),
        "verifying": verifier,
    }


def parts(recipe: Recipe, rates: Rates) -> dict[str, tuple[Recipe, Rates]]:
    """{part: the run in which it alone is a quarter faster, or has a quarter more}."""
    speed, starts = rates.speed, rates.starts_per_s
    most, cache = round(speed.most_running * FASTER), speed.cache_tokens * FASTER
    steps = ("weights_s", "sequence_s", "kv_token_s", "overhead_s", "prompt_token_s")
    training = _less(rates, "train_s", *(() if rates.train_token_s is None else ("train_token_s",)))
    places = max(round(recipe.verifier_places * FASTER), recipe.verifier_places + 1)
    return {
        "training": (recipe, replace(training, train_flops_s=rates.train_flops_s * FASTER)),
        "generation": (recipe, replace(rates, speed=_less(speed, *steps))),
        "sequences of a server (max_num_seqs, cache)": (
            recipe,
            replace(rates, speed=replace(speed, most_running=most, cache_tokens=cache)),
        ),
        "verification": (
            replace(recipe, verifier_places=places),
            replace(rates, starts_per_s=None if starts is None else starts * FASTER),
        ),
        "publication of weights": (recipe, _less(rates, "publish_s", "pause_s")),
        "the environment's process": (recipe, _less(rates, "environment_token_s", "environment_rollout_s")),
        "the API's process": (recipe, _less(rates, "api_post_token_s", "api_lease_token_s")),
        "slots (max_concurrent_rollouts)": (
            replace(recipe, max_concurrent=round(recipe.max_concurrent * FASTER)),
            rates,
        ),
        "admission (max_staleness)": (replace(recipe, max_staleness=recipe.max_staleness + 1), rates),
    }


def _less(constants: T, *names: str) -> T:
    """The constants with some of them divided by FASTER."""
    changed: dict[str, Any] = {name: getattr(constants, name) / FASTER for name in names}
    return replace(constants, **changed)


def with_bottleneck(config: PlanConfig, recipe: Recipe, rates: Rates, found: Figures) -> Figures:
    """The figures with the part whose speed matters most."""
    work = workload(config.workload, config.seed)
    gains = {
        name: simulate(config, *changed, work).steps_hour / found.steps_hour - 1
        for name, changed in parts(recipe, rates).items()
    }
    most = max(gains, key=lambda name: gains[name])
    name = most if gains[most] >= FELT else "no single part"
    return replace(found, bottleneck=name, gains=gains)
