"""One problem's rollouts become a group: scores, overlong, faults, and who holds a generation slot."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from environments.livecode.generation.completions import CompletionClient, SamplingParams
from environments.livecode.generation.vllm_servers import ServerRefused
from environments.livecode.pipeline import GroupRules, Pipeline, make_group
from environments.livecode.problems.problem import Problem, TestCase
from environments.livecode.problems.prompts import PromptBuilder
from environments.livecode.records.step_metrics import StepMetrics
from environments.livecode.scored_data import as_scored_data
from environments.livecode.verification.base import JudgeFault, VerifierError
from environments.livecode.verification.local import LocalVerifier
from verifier_app.judge.verdict import Verdict

RIGHT, WRONG = "```python\nprint(int(input()) + 1)\n```", "```python\nprint(0)\n```"
ADD = Problem(id="add", source="t", kind="stdin", statement="Add one.", tests=[TestCase(input="1\n", output="2\n")])


def rules(size: int = 4, *, baseline: str = "include", dynamic: bool = True) -> GroupRules:
    return GroupRules(size, SamplingParams(50, 0.7), baseline, dynamic)


class Broken:
    """The judge's side of a fault: the first requests get no verdict, later ones go to the real judge."""

    def __init__(self, inner: LocalVerifier, times: int, error: type[VerifierError] = VerifierError) -> None:
        self.inner, self.times, self.calls, self.error = inner, times, 0, error

    async def __aenter__(self) -> Broken:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def verify(self, request: dict[str, Any]) -> Verdict:
        self.calls += 1
        if self.calls <= self.times:
            raise self.error("scripted")
        return await self.inner.verify(request)


@pytest.fixture
async def verifier() -> AsyncIterator[LocalVerifier]:
    async with LocalVerifier(workers=1) as local:
        yield local


@pytest.fixture
async def client(generation: Any) -> AsyncIterator[CompletionClient]:
    async with CompletionClient([generation.url]) as rollouts:
        yield rollouts


@pytest.fixture
def pipeline(client: CompletionClient, verifier: LocalVerifier, tokenizer: Any) -> Pipeline:
    return pipeline_with(client, verifier, tokenizer)


def pipeline_with(client: CompletionClient, verifier: Any, tokenizer: Any) -> Pipeline:
    return Pipeline(
        client=client,
        verifier=verifier,
        prompts=PromptBuilder(tokenizer, limit=4000),
        max_concurrent=8,
        time_limit_s=5,
        memory_limit_mb=512,
    )


def answers(generation: Any, *items: Any) -> None:
    table = [item if isinstance(item, dict) else {"text": item} for item in items]
    generation.script = lambda prompt, number: table[number]


async def test_scores_follow_the_verdicts(generation: Any, pipeline: Pipeline) -> None:
    answers(generation, RIGHT, WRONG, "no program", "```python\n1/0\n```")
    group = await make_group(pipeline, ADD, rules(), version=3)
    by_status = {rollout.status: score for rollout, score in zip(group.rollouts, group.scores, strict=True)}
    assert by_status == {"accepted": 1.0, "wrong_answer": -1.0, "no_code": -1.0, "runtime_error": -1.0}
    assert (group.dropped, group.pass_rate) == (None, 0.25)


@pytest.mark.parametrize(("text", "reason"), [(RIGHT, "all_pass"), (WRONG, "all_fail")])
async def test_a_flat_group_is_dropped_with_its_reason(
    generation: Any, pipeline: Pipeline, text: str, reason: str
) -> None:
    answers(generation, text, text)
    assert (await make_group(pipeline, ADD, rules(2), version=0)).dropped == reason


async def test_without_dynamic_sampling_a_flat_group_is_kept(generation: Any, pipeline: Pipeline) -> None:
    answers(generation, RIGHT, RIGHT)
    group = await make_group(pipeline, ADD, rules(2, dynamic=False), version=0)
    assert (group.dropped, group.scores) == (None, [1.0, 1.0])


async def test_an_overlong_rollout_is_judged_under_include(generation: Any, pipeline: Pipeline) -> None:
    answers(generation, {"text": RIGHT, "finish_reason": "length"}, WRONG, WRONG)
    group = await make_group(pipeline, ADD, rules(3), version=0)
    assert [(r.overlong, r.status) for r in group.rollouts if r.overlong] == [(True, "accepted")]
    assert sorted(group.scores) == [-1.0, -1.0, 1.0]
    wire = as_scored_data(group, temperature=0.7, context=64)
    assert Counter(row["set_advantage_to_zero"] for row in wire["overrides"]) == {True: 1, False: 2}
    assert group.dropped is None  # the finished ones differ from the mean


async def test_an_overlong_rollout_is_not_judged_under_exclude(generation: Any, pipeline: Pipeline) -> None:
    answers(generation, {"text": RIGHT, "finish_reason": "length"}, WRONG, WRONG)
    group = await make_group(pipeline, ADD, rules(3, baseline="exclude"), version=0)
    assert Counter(rollout.status for rollout in group.rollouts) == {"overlong": 1, "wrong_answer": 2}
    assert group.dropped == "finished_equal"


async def test_a_rollout_without_verdict_is_replaced_by_a_new_one(
    generation: Any, client: CompletionClient, verifier: LocalVerifier, tokenizer: Any
) -> None:
    answers(generation, RIGHT, RIGHT, WRONG, WRONG)
    group = await make_group(
        pipeline_with(client, Broken(verifier, 2), tokenizer), ADD, rules(2, dynamic=False), version=0
    )
    assert len(generation.requests) == 4
    assert group.scores == [-1.0, -1.0]


async def test_a_group_without_verdicts_is_infrastructure_and_has_no_scores(
    generation: Any, client: CompletionClient, verifier: LocalVerifier, tokenizer: Any
) -> None:
    generation.script = lambda prompt, number: {"text": RIGHT}
    group = await make_group(pipeline_with(client, Broken(verifier, 99), tokenizer), ADD, rules(2), version=0)
    assert (group.dropped, group.reason, group.scores) == ("infrastructure", "scripted", [])
    assert len(generation.requests) == 6  # two rollouts and two new ones for each


async def test_a_group_at_whose_programs_the_judge_fails_has_a_reason_of_its_own(
    generation: Any, client: CompletionClient, verifier: LocalVerifier, tokenizer: Any
) -> None:
    generation.script = lambda prompt, number: {"text": RIGHT}
    broken = Broken(verifier, 99, JudgeFault)
    group = await make_group(pipeline_with(client, broken, tokenizer), ADD, rules(2), version=0)
    assert (group.dropped, group.reason, group.scores) == ("judge_fault", "scripted", [])


async def test_a_server_that_refuses_ends_the_run(generation: Any, pipeline: Pipeline) -> None:
    generation.status = 403
    with pytest.raises(ServerRefused, match="--enable-scale-out"):
        await make_group(pipeline, ADD, rules(), version=0)


async def test_a_generation_slot_is_free_while_its_program_is_judged(generation: Any, pipeline: Pipeline) -> None:
    slow = "```python\nimport time\ntime.sleep(1.5)\nprint(2)\n```"
    generation.script = lambda prompt, number: {"text": slow}
    free = asyncio.Event()
    pipeline._on_free = free.set
    task = asyncio.create_task(pipeline.run(ADD, SamplingParams(50, 0.7)))
    await free.wait()
    assert pipeline.generating == 0
    assert not task.done()
    assert (await task).status == "accepted"


async def test_shuffled_rewards_keep_their_number(generation: Any, pipeline: Pipeline) -> None:
    orders = set()
    for seed in range(6):
        generation.requests.clear()
        answers(generation, RIGHT, WRONG, WRONG, WRONG)
        group = await make_group(pipeline, ADD, rules(), version=0, group_id=f"g{seed}", shuffle_seed=seed)
        assert Counter(group.scores) == {1.0: 1, -1.0: 3}
        orders.add(next(r.status for r, s in zip(group.rollouts, group.scores, strict=True) if s > 0))
    assert orders == {"accepted", "wrong_answer"}


async def test_a_groups_version_is_its_oldest_tokens(generation: Any, pipeline: Pipeline) -> None:
    generation.version = "5"
    answers(generation, RIGHT, WRONG)
    assert (await make_group(pipeline, ADD, rules(2), version=4)).weight_version == 5


async def test_the_meter_keeps_numbers_and_not_the_groups(generation: Any, pipeline: Pipeline) -> None:
    answers(generation, RIGHT, WRONG, WRONG, {"text": RIGHT, "finish_reason": "length"})
    group = await make_group(pipeline, ADD, rules(), version=3)
    lengths = [rollout.sample.length for rollout in group.rollouts if rollout.overlong]
    for rollout, tried in zip(group.rollouts, ({"sockets": 7}, {"sockets": 1, "kernel": 2}, {}, None), strict=True):
        assert rollout.verdict is not None
        rollout.verdict["attempts"] = tried
    meter, kept = StepMetrics(4), weakref.ref(group)
    meter.add(group)
    del group
    gc.collect()
    assert kept() is None
    row = meter.row(step=3, slot_seconds=1.0, counters={})
    assert row["verdicts"] == {"accepted": 2, "wrong_answer": 2}
    assert row["attempts"] == {"sockets": 2, "kernel": 1}  # programs, not calls
    assert (row["pass_rate"], row["overlong_share"]) == (0.5, 0.25)
    assert row["length"]["overlong"]["max"] == lengths[0]
