"""What rollouts are made with, whatever they are for: opened and checked once, before work starts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from environments.common.server_list import watched
from environments.livecode.config import LivecodeEnvConfig, RunConfig
from environments.livecode.generation.chat_client import ChatClient
from environments.livecode.generation.completions import CompletionClient
from environments.livecode.pipeline import Pipeline
from environments.livecode.problems.problem import Problem, TestCase
from environments.livecode.problems.prompts import PromptBuilder
from environments.livecode.problems.stored_tests import StoredTests
from environments.livecode.records.group_records import GroupRecords
from environments.livecode.recovery.progress import Progress
from environments.livecode.verification.base import SelfTested, Verifier
from environments.livecode.verification.factory import build_verifier
from environments.livecode.verification.ordering import TestOrder

_SERVERS_AWAY_S = 600.0  # how long a resumed run waits for its first server: vLLM takes minutes to start

Client = CompletionClient | ChatClient


@dataclass(frozen=True)
class Equipment:
    """changed: set whenever somebody who waits for work should look around. stack: closes what is opened later, too."""

    client: Client
    verifier: Verifier
    prompts: PromptBuilder
    order: TestOrder
    pipeline: Pipeline
    records: GroupRecords
    changed: asyncio.Event
    stack: AsyncExitStack


async def equip(
    stack: AsyncExitStack, run: RunConfig, prompts: PromptBuilder, *, versions: bool, text: bool
) -> Equipment:
    """Opens servers, verifier and records; `stack` closes them.

    Args:
        versions: the servers must say which weights they serve.
        text: answers come as text, by OpenAI's chat route.

    Raises:
        LivecodeError: files or servers that cannot be used.
    """
    config = run.env
    records = GroupRecords(
        config.own_dir,
        rollouts_per_group=config.record_rollouts_per_group,
        every=config.record_every_groups,
        programs=config.record_programs,
        tokens=config.record_tokens,
    )
    client: Client = await stack.enter_async_context(_client(run, text))
    # Of servers that come and go, any may be on its way.
    some = versions and (Progress.begun(config.own_dir) or run.servers_from is not None)
    await client.check(
        context=run.longest_context,
        need_versions=versions,
        patience_s=_SERVERS_AWAY_S if some else 0.0,
        wait_s=run.servers_wait_s,
    )
    verifier = await stack.enter_async_context(build_verifier(config))
    if isinstance(verifier, SelfTested):
        await verifier.self_test()
    order, changed = TestOrder(), asyncio.Event()
    pipeline = _pipeline(config, client, verifier, prompts, order, changed)
    return Equipment(client, verifier, prompts, order, pipeline, records, changed, stack)


def _client(run: RunConfig, text: bool) -> Client:
    deadline_s = run.env.rollout_deadline_s
    if text:
        return ChatClient(run.servers[0], run.evaluation.served_model or run.model, deadline_s=deadline_s)
    listed = watched(run.servers_from, "servers_from")
    if listed is None:
        return CompletionClient(run.servers, deadline_s=deadline_s)
    return CompletionClient(listed.staying(), deadline_s=deadline_s, watched=listed)


def _pipeline(
    config: LivecodeEnvConfig,
    client: Client,
    verifier: Verifier,
    prompts: PromptBuilder,
    order: TestOrder,
    changed: asyncio.Event,
) -> Pipeline:
    def order_of(problem: Problem) -> list[int] | None:
        return None if config.test_order == "file" else order.order(problem.id, _input_sizes(problem))

    return Pipeline(
        client=client,
        verifier=verifier,
        prompts=prompts,
        max_concurrent=config.max_concurrent_rollouts,
        time_limit_s=config.time_limit_s,
        memory_limit_mb=config.memory_limit_mb,
        own_limits=config.own_limits,
        decimal_tolerance=config.decimal_tolerance,
        on_free=changed.set,
        order=order_of,
        judge_together=config.verifier_strategy == "problem",
    )


def _input_sizes(problem: Problem) -> list[int]:
    tests: Sequence[TestCase] = problem.tests
    return tests.input_sizes() if isinstance(tests, StoredTests) else [len(test.input) for test in tests]
