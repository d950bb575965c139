"""The simulated loop against what can be computed by hand, and against the rules that the processes keep."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from environments.common.settings import ConfigError, load
from environments.tools.plan.clock import Clock, Pool
from environments.tools.plan.config import PlanConfig
from environments.tools.plan.figures import simulate, with_bottleneck
from environments.tools.plan.loop import Loop
from environments.tools.plan.rates import Answer, Rates
from environments.tools.plan.recipe import Recipe
from environments.tools.plan.servers import Server, Servers, Speed
from environments.tools.plan.workload import Drawn, workload

ROOT = Path(__file__).parents[2]
FILE = ROOT / "configs" / "plan" / "48-b200.yaml"
SPEED = Speed(
    weights_s=0.1, sequence_s=0.0, kv_token_s=0.0, overhead_s=0.0, prompt_token_s=0.0, cache_tokens=1e9, most_running=64
)
RECIPE = Recipe(
    steps=1000, group_size=4, groups_per_batch=2, max_staleness=0, max_concurrent=64, answer=1000,
    evaluation_answer=1000, overlong_baseline="include", dynamic_sampling=True, verifier="local",
    one_call_for_a_group=False, verifier_places=64, evaluation_every=0, evaluation_samples=1,
    pause_while_training=False, checkpoint_every=0, backend="disk", recompute_old=False,
    max_num_seqs=64, tensor_parallel=1, bytes_weight=2,
)  # fmt: skip
RATES = Rates(
    speed=SPEED, servers=1, train_s=3.0, train_token_s=0.0, train_flops_s=1.0, shape=None, recompute_old=False,
    publish_s=1.0, pause_s=1.0, checkpoint_s=0.0, verify_call_s=2.0, verify_test_s=0.0, starts_per_s=None, burst=1,
    environment_rollout_s=0.0, environment_token_s=0.0, api_post_token_s=0.0, api_lease_token_s=0.0,
)  # fmt: skip


class Same:
    """Groups that are all alike: half of the answers pass."""

    test_s = 0.0

    def __init__(self, length: int = 100, *, flat_every: int = 0) -> None:
        self.length, self.flat_every = length, flat_every

    def group(self, number: int, answers: int, most: int) -> Drawn:
        flat = bool(self.flat_every) and number % self.flat_every == 0
        return Drawn(10, [Answer(self.length, False, flat or place % 2 == 0, 1.0) for place in range(answers)])


def plan(**options: Any) -> PlanConfig:
    return load(PlanConfig, ["--config", str(FILE), *(w for k, v in options.items() for w in (f"--{k}", str(v)))])


def figures(chosen: Recipe = RECIPE, taken: Rates = RATES, work: Any = None, *, steps: int = 12, first: int = 2) -> Any:
    config = plan(simulated_steps=steps, first_steps=first)
    return simulate(config, chosen, taken, work or Same())


# -- places and servers ------------------------------------------------------------------------------------------


def ends(pool_of: Any, seconds: list[float]) -> list[float]:
    clock = Clock()
    pool, found = pool_of(clock), []
    for each in seconds:
        pool.submit(each, lambda: found.append(round(clock.now, 6)))
    clock.run(lambda: len(found) == len(seconds))
    return found


def test_a_pool_works_in_order_on_as_many_places_as_it_has() -> None:
    assert ends(lambda clock: Pool(clock, 2), [3.0, 1.0, 1.0, 5.0]) == [1.0, 2.0, 3.0, 7.0]


def test_beginnings_beyond_the_burst_come_at_the_rate() -> None:
    found = ends(lambda clock: Pool(clock, 100, starts_per_s=2.0, burst=3), [1.0] * 6)
    assert found == [1.0, 1.0, 1.0, 1.5, 2.0, 2.5]


def served(speed: Speed, requests: list[tuple[int, int, int]], servers: int = 1) -> list[float]:
    clock = Clock()
    pool, found = Servers(clock, [speed] * servers), []
    for prompt, length, prefix in requests:
        pool.submit(prompt, length, prefix, lambda: found.append(round(clock.now, 4)))
    clock.run(lambda: len(found) == len(requests))
    return found


def test_a_request_takes_its_prompt_and_a_step_for_each_token() -> None:
    speed = replace(SPEED, prompt_token_s=0.01)
    assert served(speed, [(50, 20, 0)]) == [0.5 + 20 * 0.1]


def test_a_step_takes_the_longer_of_weights_and_products_and_the_cache_beside_it() -> None:
    speed = Speed(0.1, 0.04, 0.001, 0.01, 0.0, 1e9, 64)
    assert speed.step_s(2, 0) == pytest.approx(0.11)
    assert speed.step_s(5, 100) == pytest.approx(0.2 + 0.1 + 0.01)


def test_a_shared_prompt_is_computed_once_and_delays_all() -> None:
    speed = replace(SPEED, prompt_token_s=0.01)
    assert served(speed, [(100, 10, 7), (100, 10, 7)]) == [2.0, 2.0]
    assert served(speed, [(100, 10, 7), (100, 10, 8)]) == [3.0, 3.0]


def test_requests_beyond_the_most_wait_for_one_that_ends() -> None:
    assert served(replace(SPEED, most_running=2), [(1, 10, 0), (1, 30, 1), (1, 10, 2)]) == [1.0, 2.0, 3.0]


def test_requests_go_to_the_server_with_the_fewest() -> None:
    speed = replace(SPEED, weights_s=0.0, sequence_s=0.1)
    assert served(speed, [(1, 10, 0), (1, 10, 1)], servers=2) == [1.0, 1.0]
    assert served(speed, [(1, 10, 0), (1, 10, 1)], servers=1) == [2.0, 2.0]


def test_a_full_cache_puts_the_newest_back_and_computes_it_again() -> None:
    speed = replace(SPEED, cache_tokens=100.0, prompt_token_s=0.0)
    clock, found = Clock(), []
    pool = Servers(clock, [speed])
    for name in "ab":
        pool.submit(10, 60, ord(name), lambda name=name: found.append((name, round(clock.now, 2))))  # type: ignore[misc]
    clock.run(lambda: len(found) == 2)
    assert pool.all[0].preempted == 1
    # 2 x (10 + 40) tokens are all that fit: b has 40 tokens when it is put back, and makes its last 20 after a.
    assert [name for name, _ in found] == ["a", "b"]
    assert found[0][1] == pytest.approx(6.0, abs=0.2)
    assert found[1][1] == pytest.approx(8.0, abs=0.3)


def test_a_paused_server_makes_no_token_and_new_weights_have_the_cache_computed_again() -> None:
    clock, found = Clock(), []
    server = Server(clock, replace(SPEED, prompt_token_s=0.01))
    pool = Servers(clock, [])
    pool.all, pool._heap = [server], [(0, 0)]
    pool.submit(100, 20, 0, lambda: found.append(clock.now))
    clock.at(2.0, pool.pause)  # the prompt takes until 1.0, ten tokens until 2.0
    clock.at(7.0, lambda: pool.resume(cleared=True))
    clock.run(lambda: bool(found))
    assert found[0] == pytest.approx(7.0 + 110 * 0.01 + 10 * 0.1)


# -- the loop ----------------------------------------------------------------------------------------------------


def test_an_on_policy_step_is_the_sum_of_its_phases() -> None:
    found = figures()
    # Generation 100 x 0.1 s and a verdict of 2 s from the moment that the environment hears of the weights, at the
    # next half second; the trainer asks each half second too, counted from its own beginning.
    assert found.step_s == pytest.approx(10.0 + 2.0 + 3.0 + 1.0 + 1.0, abs=0.51)
    assert found.phases["train"] == 3.0
    assert found.phases["sync"] == 2.0
    assert found.staleness == (0.0, 0)
    assert found.busy["servers"] == pytest.approx(10 / found.step_s, abs=0.01)


def test_a_slow_trainer_never_waits_and_what_it_trains_on_is_as_old_as_allowed() -> None:
    found = figures(replace(RECIPE, max_staleness=2), replace(RATES, train_s=100.0))
    assert found.step_s == pytest.approx(102.0, abs=0.51)
    assert found.phases["wait"] < 0.51
    assert found.staleness == (2.0, 2)


@pytest.mark.parametrize("bound", [0, 1, 3])
@pytest.mark.parametrize("train_s", [0.0, 20.0])
def test_no_group_is_older_than_the_bound(bound: int, train_s: float) -> None:
    config = plan(**{"workload.length_mean": 300})
    chosen = replace(RECIPE, max_staleness=bound, max_concurrent=20)
    found = figures(chosen, replace(RATES, train_s=train_s), workload(config.workload, 1), steps=20)
    assert found.staleness[1] <= bound


def test_flat_groups_are_dropped_and_made_up_for() -> None:
    found = figures(replace(RECIPE, max_staleness=1), RATES, Same(flat_every=4), steps=40)
    assert found.groups["all_pass"] == pytest.approx(0.25, abs=0.03)
    assert found.tokens_step == 2 * (10 + 4 * 100)


def test_slots_bound_what_is_generated_and_verdicts_hold_none() -> None:
    slow = replace(RATES, verify_call_s=50.0, train_s=0.0, publish_s=0.0, pause_s=0.0)
    loop = Loop(replace(RECIPE, max_concurrent=8, max_staleness=100), slow, Same(), 0)
    loop.run(20)
    assert loop.slots.most == 8
    assert loop.verifier.busy.most > 8  # more than all slots wait for verdicts
    by_slots = 8 / 10.0  # answers a second
    assert loop.answers / loop.clock.now == pytest.approx(by_slots, rel=0.05)


def test_few_judges_bound_the_run_by_their_verdicts_a_second() -> None:
    few = replace(RATES, verify_call_s=5.0)
    found = figures(replace(RECIPE, verifier_places=1, max_staleness=20), few, steps=20, first=5)
    assert found.step_s == pytest.approx(8 * 5.0, rel=0.05)
    assert found.busy["verifier"] == pytest.approx(1.0, abs=0.02)


def test_a_group_in_one_call_takes_one_start() -> None:
    chosen = replace(RECIPE, one_call_for_a_group=True)
    apart, together = figures(), figures(chosen)
    assert together.busy["verifier"] * together.step_s == pytest.approx(
        apart.busy["verifier"] * apart.step_s / 4, rel=0.01
    )


def test_pausing_while_training_leaves_nothing_generated_meanwhile() -> None:
    chosen = replace(RECIPE, max_staleness=1)
    going, paused = figures(chosen), figures(replace(chosen, pause_while_training=True))
    assert going.step_s < paused.step_s
    assert paused.step_s == pytest.approx(10.0 + 2.0 + 3.0 + 2.0, abs=2.1)


def test_an_evaluation_holds_back_the_groups_of_the_next_batch() -> None:
    every = replace(RECIPE, evaluation_every=4, evaluation_samples=2, max_staleness=1)
    loop = Loop(every, RATES, Same(400), 10)
    loop.run(9)
    evaluated = [place for place, step in enumerate(loop.steps) if step.evaluation > 0]
    assert evaluated == [0, 4, 8]
    assert loop._evaluated_versions == {0, 4, 8}


def test_what_is_in_flight_is_arrivals_times_their_time() -> None:
    """Little's law, over the whole loop."""
    work = workload(plan(**{"workload.length_mean": 300}).workload, 0)
    loop = Loop(replace(RECIPE, max_staleness=30, max_concurrent=24), replace(RATES, pause_s=0.0), work, 0)
    loop.run(60)
    mean = loop.slots.total() / loop.clock.now
    tokens_s = loop.finished_tokens / loop.clock.now
    assert mean == pytest.approx(tokens_s * SPEED.weights_s, rel=0.03)


def test_a_run_in_which_nothing_may_begin_says_so() -> None:
    with pytest.raises(ConfigError, match="no group may begin"):
        figures(replace(RECIPE, max_concurrent=2))


@pytest.mark.parametrize(
    ("part", "chosen", "taken"),
    [
        ("training", {"max_staleness": 1}, {"train_s": 60.0}),
        ("generation", {}, {"verify_call_s": 0.0, "train_s": 0.1, "publish_s": 0.0, "pause_s": 0.0}),
        ("verification", {"verifier_places": 1, "max_staleness": 20}, {"verify_call_s": 9.0}),
        ("publication of weights", {"max_staleness": 1}, {"train_s": 1.0, "publish_s": 60.0}),
    ],
)
def test_the_bottleneck_is_the_part_that_was_made_slow(
    part: str, chosen: dict[str, Any], taken: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("environments.tools.plan.figures.workload", lambda *_: Same())
    config = plan(simulated_steps=12, first_steps=2)
    here, there = replace(RECIPE, **chosen), replace(RATES, **taken)
    found = with_bottleneck(config, here, there, simulate(config, here, there, Same()))
    assert found.bottleneck == part
