"""Evaluations of a run's weights while it trains: each at one version, each once, and the best checkpoint from them.

The version is pinned by keeping groups back: the trainer publishes version v + 1 only after it has taken batch v, so
while version v is evaluated the API gets none of that batch's groups. They are generated all the same, wait in the
outbox, and are there at once when the evaluation ends. Nothing of this needs the trainer: it waits for a batch, which
it can at any moment.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from environments.common.errors import ConfigError
from environments.livecode.evaluation.best import choose, score_row
from environments.livecode.evaluation.drawing import WeightsMoved
from environments.livecode.evaluation.sets import RECORDS, HeldOutSets, Kind

if TYPE_CHECKING:
    from environments.livecode.environment import LivecodeEnv

logger = logging.getLogger(__name__)

_CHECKPOINT_S = 600.0  # how long a checkpoint may take to be written; the trainer's own limit
_FOLDER_S = 60.0  # how long after its publication a step's folder may appear
_POLL_S = 0.2


class DeliveryGate:
    """Lets groups through to the API until it has `most` of them; the others wait. most None: all go through."""

    def __init__(self, has: Callable[[], int]) -> None:
        """has: groups that the API has."""
        self._has, self._under_way = has, 0
        self._most: int | None = None
        self._changed = asyncio.Event()

    @property
    def most(self) -> int | None:
        return self._most

    @most.setter
    def most(self, groups: int | None) -> None:
        if groups != self._most:
            self._most = groups
            self._changed.set()

    def closed(self) -> bool:
        """Whether a group would have to wait."""
        return self._most is not None and self._has() + self._under_way >= self._most

    @asynccontextmanager
    async def passing(self) -> AsyncIterator[None]:
        """For as long as a group is being sent; entered when it may go."""
        while self.closed():
            self._changed.clear()
            await self._changed.wait()
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
            self._changed.set()


class TrainingEvaluations:
    """When the served weights are evaluated, what is known of earlier evaluations, and which checkpoint is the best.

    Due are version 0, every `evaluation.every`th one, and the last. One whose records are all in evaluations.jsonl is
    done, also for a trainer that goes back and trains on the same batches again.

    Raises:
        ConfigError: a trainer that sends no weights.
    """

    def __init__(self, env: LivecodeEnv, trainer: dict[str, Any]) -> None:
        self.env, self.every = env, env.run_config.evaluation.every
        if trainer.get("sends_weights") is False:
            raise ConfigError(
                f"evaluation.every {self.every}: the trainer sends no weights, so every evaluation would be of the "
                "same ones; give it --weights.servers, or set evaluation.every to 0"
            )
        self.sets = HeldOutSets(env)
        self.path = Path(env.config.run_dir) / RECORDS
        self.records: dict[int, dict[Kind, dict[str, Any]]] = {}
        self._read()
        self._task: asyncio.Task[None] | None = None
        self._settled = set(self.records)  # steps whose checkpoint was considered
        if self.records:
            self._settled.discard(max(self.records))  # a death may have come before its turn
        self._checkpoints = Path(env.checkpoint_dir) if env.checkpoint_dir else None
        interval = max(0, env.checkpoint_interval)
        self._saved_every = interval
        if self._checkpoints is not None and (not interval or self.every % interval):
            logger.warning(
                "evaluation.every %d with the trainer's checkpoint.every %d: of evaluated weights that no checkpoint "
                "has, checkpoints/best cannot tell; set checkpoint.every to a divisor of evaluation.every",
                self.every, interval,
            )  # fmt: skip

    def _read(self) -> None:
        for line in self.path.read_bytes().splitlines() if self.path.is_file() else ():
            try:
                record = json.loads(line)
                step, kind = record["step"], (record["set"], record["greedy"])
                record["pass_at_1"], record["per_problem"]
            except (ValueError, KeyError, TypeError):
                continue  # of an evaluation that is no part of the training, or damaged
            self.records.setdefault(step, {})[kind] = record

    def missing(self, version: int) -> list[Kind]:
        """What has to be evaluated of a version."""
        if version % self.every and version != self.env.config.total_steps:
            return []
        return [kind for kind in self.sets.kinds if kind not in self.records.get(version, {})]

    def _due(self, version: int) -> bool:
        return bool(self.missing(version)) or self._unsettled(version)

    def _unsettled(self, version: int) -> bool:
        return version in self.records and version not in self._settled

    def limit(self, version: int) -> int:
        """The most groups of this environment that the API may have while this version is served.

        Of several environments one evaluates. No batch is whole without its share, so the others need not wait.
        """
        steps = range(version, self.env.config.total_steps + 1)
        return self.env.places(next((step for step in steps if self._due(step)), steps.stop))

    @property
    def busy(self) -> bool:
        return self._task is not None

    def turn(self, version: int) -> bool:
        """Begins what is due of the served version, takes what is done; whether this version's turn is not over.

        Raises:
            As `evaluate`.
        """
        if self._task is not None and self._task.done():
            task, self._task = self._task, None
            task.result()
        if self._task is None and self._due(version):
            self._task = asyncio.create_task(self._evaluate(version))
            self._task.add_done_callback(lambda _: self.env.equipment.changed.set())
        return self._task is not None

    async def close(self) -> None:
        """Ends what runs; its samples are kept."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _evaluate(self, version: int) -> None:
        started = time.monotonic()
        if kinds := self.missing(version):
            logger.info("evaluating the weights of step %d; groups of the next batch wait meanwhile", version)
            try:
                records = await self.sets.score(kinds, version, pinned=True, step=version, time=time.time())
            except WeightsMoved as error:
                # Another environment feeds the same trainer, or the trainer went back to a checkpoint.
                logger.warning("%s: that evaluation is dropped", error)
                self.sets.forget(kinds, version)
                return
            for record in records:
                self.records.setdefault(version, {})[record["set"], record["greedy"]] = record
            await self._tell(records)
        await self._settle(version)
        logger.info("step %d evaluated in %.0f s", version, time.monotonic() - started)

    async def _tell(self, records: list[dict[str, Any]]) -> None:
        if self.env.config.use_wandb:
            names = {(record["set"], record["greedy"]): record["pass_at_1"] for record in records}
            await self.env.wandb_log(
                {f"eval/{name}{'_greedy' if greedy else ''}/pass_at_1": rate for (name, greedy), rate in names.items()}
            )

    # -- the best checkpoint -------------------------------------------------------------------------------

    async def _settle(self, version: int) -> None:
        """Points checkpoints/best to the best of the evaluated steps, once this one's checkpoint is written."""
        if await self._is_saved(version):
            self._choose()
        self._settled.add(version)

    async def _is_saved(self, version: int) -> bool:
        last = version == self.env.config.total_steps
        if self._checkpoints is None or not version or not (last or self._saved_every):
            return False
        if not last and version % self._saved_every:
            return False
        path, started = self._checkpoints / f"step-{version:08d}", time.monotonic()
        while not (path / "meta.json").is_file():
            waited = time.monotonic() - started
            if waited > (_CHECKPOINT_S if self._checkpoints.is_dir() else _FOLDER_S):
                logger.warning("%s: not there after %.0f s; checkpoints/best stays as it is", path, waited)
                return False
            await asyncio.sleep(_POLL_S)
        return True

    def _choose(self) -> None:
        """Of equal scores the earlier step; one whose checkpoint is gone was worse than an earlier best."""
        assert self._checkpoints is not None
        first = self.sets.kinds[0]
        scored = {step: kinds[first] for step, kinds in self.records.items() if first in kinds}
        there = [step for step in scored if (self._checkpoints / f"step-{step:08d}" / "meta.json").is_file()]
        if not there:
            return
        best = max(there, key=lambda step: (scored[step]["pass_at_1"], -step))
        name = f"step-{best:08d}"
        choose(self._checkpoints.parent, score_row(name, scored[best], "training"))
        logger.info("best checkpoint: %s, pass@1 %.3f on %s", name, scored[best]["pass_at_1"], first[0])
