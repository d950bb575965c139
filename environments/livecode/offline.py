"""What the environment does without a trainer: groups into a file."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from environments.livecode.pipeline import all_of
from environments.livecode.problems.problem import Problem
from environments.livecode.records.group_records import append_jsonl, count_lines

if TYPE_CHECKING:
    from environments.livecode.environment import LivecodeEnv

logger = logging.getLogger(__name__)


async def make_groups(env: LivecodeEnv) -> None:
    """Makes process.groups groups and adds every one of them, flat ones too, to a JSONL file."""
    config, options = env.config, env.run_config.process
    target = Path(options.output or config.own_dir / "groups.jsonl")
    wanted = asyncio.Semaphore(max(1, config.max_concurrent_rollouts // config.group_size))
    before = count_lines(target)

    async def one(problem: Problem) -> None:
        async with wanted:
            group = await env.make_group(problem)
        env.equipment.records.group(group, sent=False, written=str(target) if group.scores else None)
        if group.scores:
            append_jsonl(target, env.scored_data(group) | {"dropped": group.dropped})

    await all_of([one(await env.get_next_item()) for _ in range(options.groups)])
    reasons = ", ".join(f"{name} {count}" for name, count in env.dropped.items()) or "none"
    logger.info(
        "%d groups added to %s, which had %d; without signal: %s", count_lines(target) - before, target, before, reasons
    )
