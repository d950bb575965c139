"""The livecode environment: problems to prompts, rollouts, verdicts and scored groups for an Atropos trainer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from environments.common import worker_threads
from environments.common.agreement import terms
from environments.common.hub import model_folder
from environments.common.settings import ConfigError
from environments.livecode import command, offline
from environments.livecode.atropos_compat import CompatBaseEnv, GroupRefused, encode_group, readdressed, server_configs
from environments.livecode.config import RunConfig
from environments.livecode.evaluation.sets import HeldOutSets
from environments.livecode.evaluation.training import DeliveryGate, TrainingEvaluations
from environments.livecode.generation.chat_client import ChatClient
from environments.livecode.generation.completions import CompletionClient, SamplingParams
from environments.livecode.generation.served_weights import InfrastructureError, ServedWeights
from environments.livecode.pipeline import GroupRules, JudgedGroup, Pipeline, as_scored_data, make_group
from environments.livecode.problems.problem import Problem, TestCase
from environments.livecode.problems.prompts import PromptBuilder, prompt_builder
from environments.livecode.problems.sampler import build_sampler, load_set
from environments.livecode.problems.stored_tests import StoredTests
from environments.livecode.records.group_records import GroupRecords, append_jsonl
from environments.livecode.records.step_metrics import StepMetrics, flatten
from environments.livecode.recovery.progress import OpenGroup, Progress, ProgressError
from environments.livecode.recovery.progress_file import KeptGroup
from environments.livecode.staleness import may_begin
from environments.livecode.verification.base import SelfTested
from environments.livecode.verification.factory import build_verifier
from environments.livecode.verification.judge_requests import check_deadlines
from environments.livecode.verification.ordering import TestOrder

logger = logging.getLogger(__name__)

_POLL_S = 0.5
_PATIENCE_S = 60.0  # how long admission stays closed before a line says why
_SERVERS_AWAY_S = 600.0  # how long a run that goes on waits for its first server: vLLM takes minutes to start
_LOST_GROUPS_IN_A_ROW = 20  # then the fault is not a rollout's


class LivecodeEnv(CompatBaseEnv):
    """Competitive programming problems with the judge's verdict as the reward."""

    name = "livecode"
    run_config_cls = RunConfig
    prompt_builder_cls: type[PromptBuilder] = PromptBuilder
    """Makes the prompts; a subclass with another form overrides its `chat`."""

    def __init__(self, run: RunConfig) -> None:
        self.run_config = run
        field = "tokenizer" if run.tokenizer else "model"
        instead = "" if run.tokenizer else ", or its tokenizer's by --tokenizer DIR"
        self.tokenizer_folder = model_folder(run.tokenizer_path, field, weights=False, instead=instead)
        config = run.env.model_copy(update={"tokenizer_name": str(self.tokenizer_folder)})
        try:
            super().__init__(config, server_configs(run.servers, run.model))
        except OSError as error:
            raise ConfigError(f"tokenizer {run.tokenizer_path}: cannot be loaded ({error})") from None
        self.served = 0  # the weight version (batches trained) that the servers have now
        self.sent = 0  # groups that the API has, those of an earlier process of this run included
        self.api_groups = 0  # groups that the API ever got, whoever sent them
        self.in_flight: dict[asyncio.Task[None], OpenGroup] = {}
        self.gate = DeliveryGate(lambda: max(self.sent, self.api_groups))
        self.evaluations: TrainingEvaluations | None = None
        self.on_new_weights: Callable[[], None] = lambda: None
        self.dropped: Counter[str] = Counter()
        self.rules = GroupRules(
            group_size=config.group_size,
            sampling=SamplingParams(config.max_new_tokens, config.temperature),
            overlong_baseline=config.overlong_baseline,
            dynamic_sampling=config.dynamic_sampling,
        )
        self._keeping: set[asyncio.Task[bytes | None]] = set()
        self._lost_in_a_row = 0
        self._asked = -_POLL_S
        self._version_seen = False
        self.weights = ServedWeights(run.servers, config.max_staleness)
        self._unserved_said: float | None = None
        self._closed_since: float | None = None

    # -- Set-up ---------------------------------------------------------------------------------------------

    async def open(self, stack: AsyncExitStack, *, versions: bool, text: bool = False) -> None:
        """Everything that needs closing again; whatever is wrong with files or servers is said here.

        Args:
            versions: the servers must say which weights they serve.
            text: answers come as text, by OpenAI's chat route.
        """
        config = self.config
        self.prompts = prompt_builder(config, self.tokenizer, kind=self.prompt_builder_cls)
        self.records = GroupRecords(
            config.run_dir,
            rollouts_per_group=config.record_rollouts_per_group,
            every=config.record_every_groups,
            programs=config.record_programs,
            tokens=config.record_tokens,
        )
        self.client: CompletionClient | ChatClient = await stack.enter_async_context(self._client(text))
        resumed = versions and Progress.begun(Path(config.run_dir))
        await self.client.check(
            context=self.run_config.longest_context,
            need_versions=versions,
            patience_s=_SERVERS_AWAY_S if resumed else 0.0,
            wait_s=self.run_config.servers_wait_s,
        )
        self.verifier = await stack.enter_async_context(build_verifier(config))
        if isinstance(self.verifier, SelfTested):
            await self.verifier.self_test()
        self._changed = asyncio.Event()
        self.pipeline = Pipeline(
            client=self.client,
            verifier=self.verifier,
            prompts=self.prompts,
            max_concurrent=config.max_concurrent_rollouts,
            time_limit_s=config.time_limit_s,
            memory_limit_mb=config.memory_limit_mb,
            own_limits=config.own_limits,
            decimal_tolerance=config.decimal_tolerance,
            on_free=self.changed,
            order=self._order_of,
            judge_together=config.verifier_strategy == "problem",
        )
        self.order = TestOrder()
        self.meter = StepMetrics(config.max_concurrent_rollouts)
        self._stack = stack
        await stack.enter_async_context(self.open_api())

    def _client(self, text: bool) -> CompletionClient | ChatClient:
        run, deadline_s = self.run_config, self.config.rollout_deadline_s
        if text:
            return ChatClient(run.servers[0], run.evaluation.served_model or run.model, deadline_s=deadline_s)
        return CompletionClient(run.servers, deadline_s=deadline_s)

    async def setup(self) -> None:
        """The problems, every one with a prompt that fits, and the order they come in."""
        problems = await asyncio.to_thread(load_set, self.config.problems, self.config.seed)
        problems = await asyncio.to_thread(self.fitting, self.config.problems, problems)
        self.sampler = build_sampler(
            self.config.problem_sampling, problems, self.config.seed, self.config.sampling_floor_epochs
        )
        self._problems = problems
        logger.info("%d problems from %s", len(problems), self.config.problems)

    def changed(self) -> None:
        """Has the loop look around at once."""
        self._changed.set()

    def fitting(self, name: str, problems: Sequence[Problem], prompts: PromptBuilder | None = None) -> list[Problem]:
        """The problems of a set whose prompt leaves room for the answer; each other one is recorded, and counted in
        the log by its source. PromptError when none is left."""
        prompts = prompts or self.prompts
        fit, too_long = prompts.fitting(problems)
        check_deadlines(self.config, fit, getattr(self.verifier, "call_s", None))
        if too_long:
            sources = Counter(error.problem.source for error in too_long)
            logger.warning(
                "%s: %d of %d problems are left out, their prompts have more than %d tokens and leave no room for the "
                "answer in env.context: %s; see %s",
                name, len(too_long), len(problems), prompts.limit,
                ", ".join(f"{source} {count}" for source, count in sources.most_common()),
                self.records.left_out(name, too_long),
            )  # fmt: skip
        return fit

    # -- One group ------------------------------------------------------------------------------------------

    async def get_next_item(self) -> Problem:
        """The next problem of the sampling rule."""
        return self.sampler.next()

    def _order_of(self, problem: Problem) -> list[int] | None:
        if self.config.test_order == "file":
            return None
        return self.order.order(problem.id, _input_sizes(problem))

    async def make_group(self, problem: Problem, group_id: str | None = None) -> JudgedGroup:
        """A finished group of the problem, scored or dropped."""
        group = await make_group(
            self.pipeline, problem, self.rules, version=self.served, group_id=group_id,
            shuffle_seed=self.config.seed if self.config.shuffle_rewards else None,
        )  # fmt: skip
        if group.dropped == "infrastructure":
            logger.error("group of problem %s is lost on our side: %s", problem.id, group.reason)
            self._lost_in_a_row += 1
            if self._lost_in_a_row >= _LOST_GROUPS_IN_A_ROW:
                raise InfrastructureError(
                    f"{self._lost_in_a_row} groups in a row were lost, none of them scored; the last: {group.reason}"
                )
        elif group.dropped == "judge_fault":  # its programs' doing: it says nothing of the next group
            logger.error("group of problem %s is dropped: %s", problem.id, group.reason)
        else:
            self._lost_in_a_row = 0
        if group.dropped is not None:
            self.dropped[group.dropped] += 1
        return group

    def scored_data(self, group: JudgedGroup) -> dict[str, Any]:
        """The group as the API takes it."""
        return as_scored_data(group, temperature=self.config.temperature, context=self.config.context)

    async def collect_trajectories(self, item: Problem) -> tuple[dict[str, Any] | None, list[Problem]]:
        """Atropos' entry for one problem: its scored group, or None when the group is dropped; no backlog."""
        group = await self.make_group(item)
        self.sampler.update(item, group.pass_rate)
        return (None if group.dropped else self.scored_data(group)), []

    async def _feed(self, begun: OpenGroup) -> None:
        """One group from problem to API; it is in flight until the API has it or it is dropped."""
        group = await self.make_group(begun.problem, begun.group_id)
        keeping = asyncio.create_task(self._keep(group))
        self._keeping.add(keeping)
        keeping.add_done_callback(self._keeping.discard)
        body = await asyncio.shield(keeping)  # what is made is kept, also by a run that is being stopped
        del keeping
        if body is None:
            return
        if self.gate.closed():
            body = b""  # 25 MB each: read again when its turn comes
        await self._send_kept(begun.group_id, body)
        if self.config.use_wandb:
            self.completion_lengths += [len(rollout.sample.ids) for rollout in group.rollouts]
            await self.add_rollouts_for_wandb(self.scored_data(group), begun.problem)

    async def _keep(self, group: JudgedGroup) -> bytes | None:
        """Ends a group: on the disk with its record and, unless it is dropped, with the body that is returned."""
        body = None
        if group.dropped is None:
            # In one piece: in two, the first of all groups that end together would be in memory, 25 MB each.
            body = await worker_threads.groups(lambda: encode_group(self.scored_data(group) | {"env_id": self.env_id}))
        self.progress.end(group, self.records.line(group, sent=body is not None), body)
        self.meter.add(group)
        self.records.sample(group)
        await self.progress.written()
        return body

    async def _send_kept(self, group_id: str, body: bytes) -> None:
        """Sends a kept group once the gate lets it through; body empty: as it was kept."""
        async with self.gate.passing():
            await self.deliver(body or await self.progress.body(group_id))
            self.sent += 1
        self.progress.delivered(group_id)

    async def resume(self) -> None:
        """Takes up what an earlier process of this run left in its folder.

        Raises:
            ConfigError: the folder belongs to another run.
            ProgressError: a kept group that cannot be read or that the API refuses.
        """
        config, folder = self.config, Path(self.config.run_dir)
        names = ("problems", "seed", "problem_sampling", "sampling_floor_epochs", "group_size")
        self.progress = await worker_threads.progress(
            Progress,
            folder,
            problems=self._problems,
            settings={name: getattr(config, name) for name in names},
            sampler=self.sampler,
            order=self.order,
        )
        self._stack.callback(self.progress.close)
        # Without a name, after a trainer gave one, are the weights of a server that was started again.
        self.client.published = self.client.published or self.progress.named
        lost = await self._cut_off(list(self.progress.open.values()), "lost_inflight")
        delivered = self.progress.sent - len(self.progress.kept)
        if delivered > 0 and not self.api_groups:
            raise ConfigError(
                f"env.run_dir = {folder}: its run has sent {delivered} groups, and the API server at "
                f"{config.rollout_server_url} never had one. Start that run's server (--journal FILE), or give "
                "another folder."
            )
        for kept in self.progress.kept:
            if self.gate.closed():
                self._hold(kept)
                continue
            async with self.gate.passing():
                await self._send_again(kept.id)
                self.api_groups += 1
        if self.progress.sent or lost:
            logger.info(
                "resumed: %d groups were sent before, %d of them again now; %d were lost unfinished, their problems "
                "begin again", self.progress.sent, len(self.progress.kept), lost,
            )  # fmt: skip

    async def _send_again(self, group_id: str) -> None:
        """Sends a group that an earlier process kept, as one of this process."""
        body = await self.progress.body(group_id)
        try:
            body = await worker_threads.groups(readdressed, body, self.env_id)
            await self.deliver(body)
        except GroupRefused as error:
            raise ProgressError(
                f"{self.progress.path}: group {group_id}: {error}. To go on without it: "  # noqa: S608
                f"sqlite3 {self.progress.path} \"DELETE FROM outbox WHERE id = '{group_id}'\""
            ) from None
        self.progress.delivered(group_id)

    def _hold(self, kept: KeptGroup) -> None:
        """A kept group whose turn comes after an evaluation: in flight until then."""

        async def send() -> None:
            async with self.gate.passing():
                await self._send_again(kept.id)
                self.sent += 1

        task = asyncio.create_task(send())
        self.in_flight[task] = OpenGroup(kept.id, self.progress.problems[kept.problem], kept.version)
        task.add_done_callback(lambda _: self.changed())

    async def _cut_off(self, groups: Sequence[OpenGroup], reason: str) -> int:
        """Ends groups that began and have no rollouts that anybody could use; how many."""
        for begun in groups:
            prompt = self.prompts(begun.problem)
            group = JudgedGroup(begun.problem, prompt, begun.version, begun.group_id, dropped=reason)
            self.dropped[reason] += 1
            self.progress.cut_off(begun.group_id, self.records.line(group, sent=False))
        await self.progress.written()
        return len(groups)

    # -- Serving a trainer ----------------------------------------------------------------------------------

    async def env_manager(self) -> None:
        """Feeds the trainer until it has taken its steps."""
        await self.setup()
        await self.setup_wandb()
        own_steps = None if self.config.total_steps == -1 else self.config.total_steps
        await self.register_env()
        await self.get_server_info()
        agreement = terms(
            model=self.tokenizer_folder,
            context=self.config.context,
            group_size=self.config.group_size,
            overlong_baseline=self.config.overlong_baseline,
            steps=own_steps,
        )
        trainer = await self.agree(agreement)
        self.weights.agreed(trainer)
        step = await self._count()
        if self.run_config.evaluation.every:
            self.evaluations = await asyncio.to_thread(TrainingEvaluations, self, trainer)
            self.gate.most = self.evaluations.limit(step)
        await self.resume()
        await self._refresh()  # with what the outbox held: by a count of our own the last group might never begin
        while not self._version_seen:  # no group is to begin under a version that nobody serves
            await asyncio.sleep(_POLL_S)
            await self._refresh()
        self.sent = self.api_groups
        logger.info("feeding %d steps of %d groups", self.config.total_steps, self.groups_per_batch)
        if self.served >= self.config.total_steps:
            logger.warning("all %d steps are done: start the trainer with a higher --steps first", self.served)
        try:
            while self._evaluates() or self.served < self.config.total_steps or await self._longer(agreement):
                while self.may_begin():
                    self._begin(self.progress.begin(self.served))
                    await asyncio.sleep(0)  # thousands of rollouts that begin in one turn would stop the loop
                await self.progress.written()
                await self._wait()
                await self._refresh()
        finally:
            if self.evaluations is not None:
                await self.evaluations.close()
            await self._abandon()
            self._log_metrics()
        logger.info("done: %d groups sent, dropped: %s", self.sent, dict(self.dropped) or "none")

    def _evaluates(self) -> bool:
        """Whether the served weights are being evaluated; begins what is due."""
        return self.evaluations is not None and self.evaluations.turn(self.served)

    async def _longer(self, agreement: dict[str, Any]) -> bool:
        """Whether a trainer that was started anew goes beyond the number of steps that the last one registered."""
        if "steps" in agreement:
            return False
        steps = (await self.agree(agreement)).get("steps", 0)
        if steps <= self.config.total_steps:
            return False
        self.config.total_steps = steps
        logger.info("the trainer goes on to step %d", steps)
        return True

    @property
    def groups_per_batch(self) -> int:
        return int(self.config.batch_size // self.config.group_size)

    def may_begin(self) -> bool:
        """Whether one more group can begin; see `staleness.may_begin`.

        A group that is dropped frees its place. Generation slots must be free for the whole group; groups that
        wait for verdicts hold none.
        """
        config = self.config
        if self.pipeline.taken + config.group_size > config.max_concurrent_rollouts:
            return False
        return may_begin(
            oldest=min((begun.version for begun in self.in_flight.values()), default=self.served),
            ahead=max(self.sent, self.api_groups) + len(self.in_flight),
            groups_per_batch=self.groups_per_batch,
            max_staleness=config.max_staleness,
            total_steps=config.total_steps,
        )

    def _begin(self, begun: OpenGroup) -> None:
        self.pipeline.announce(self.config.group_size)
        task = asyncio.create_task(self._feed(begun))
        self.in_flight[task] = begun
        task.add_done_callback(lambda _: self._changed.set())

    async def _wait(self) -> None:
        """Until a slot is free, a group is done, or it is time to ask for the version again."""
        try:
            async with asyncio.timeout(_POLL_S):
                await self._changed.wait()
        except TimeoutError:
            pass
        self._changed.clear()
        for task in [task for task in self.in_flight if task.done()]:
            del self.in_flight[task]
            task.result()  # a failure of one group that is not its own ends the run, with its reason

    async def _refresh(self) -> None:
        """The served weight version and the API's count of groups, asked at most every half second."""
        now = time.monotonic()
        if now - self._asked < _POLL_S:
            return
        self._asked = now
        version, step = await asyncio.gather(self.client.weight_version(), self._count())
        version = self.weights.version(version, step, idle=not self.in_flight and not self.may_begin())
        self._version_seen = self._version_seen or version is not None
        if version is not None:
            self._unserved_said = None
        elif self.client.troubles and (self._unserved_said is None or now - self._unserved_said >= _PATIENCE_S):
            self._unserved_said = now
            logger.warning("waiting for a server that has the trainer's weights: %s", self.client.troubles)
        if self.client.published and not self.progress.named:
            self.progress.name()
        if version is not None and version != self.served:
            metrics = self._log_metrics()
            self.served = self.curr_step = version
            self.on_new_weights()
            self._closed_since = None
            if self.config.use_wandb:
                dropped = {f"train/dropped_{name}": n for name, n in self.dropped.items()}
                await self.wandb_log(dropped | flatten(metrics, "train/"))
        self._say_when_closed(now)

    async def _count(self) -> int:
        """The batches that the trainer has taken; sets `api_groups`."""
        status = await self.call_api("GET", "/status")
        # The step counter of the API counts formed batches; the rest of what it got still queues.
        self.api_groups = status["current_step"] * self.groups_per_batch + status["queue_size"]
        return int(status["current_step"])

    def _log_metrics(self) -> dict[str, Any]:
        """One row of environment_metrics.jsonl: what happened while the served version was served."""
        row = self.meter.row(
            step=self.served,
            slot_seconds=self.pipeline.slot_seconds(),
            counters={
                "in_flight": len(self.in_flight),
                "resubmitted_abort": self.client.counters.resubmitted_abort,
                "resubmitted_failure": self.client.counters.resubmitted_failure,
            },
        )
        append_jsonl(Path(self.config.run_dir) / "environment_metrics.jsonl", row)
        return row

    def _say_when_closed(self, now: float) -> None:
        if self.in_flight or self.may_begin() or (self.evaluations is not None and self.evaluations.busy):
            self._closed_since = None
        elif self._closed_since is None:
            self._closed_since = now
        elif now - self._closed_since > _PATIENCE_S:
            self._closed_since = now
            logger.info(
                "no group may begin: %d sent, version %d is served, max_staleness %d: waiting for the trainer",
                max(self.sent, self.api_groups), self.served, self.config.max_staleness,
            )  # fmt: skip

    async def _abandon(self) -> None:
        """Groups that nobody will train on any more: counted, never silent."""
        for task in self.in_flight:
            task.cancel()
        await asyncio.gather(*self.in_flight, return_exceptions=True)
        await asyncio.gather(*self._keeping, return_exceptions=True)
        self.in_flight.clear()
        await self._cut_off(list(self.progress.open.values()), "stopped")

    # -- Without a trainer ----------------------------------------------------------------------------------

    async def process_manager(self) -> None:
        """Makes process.groups groups and writes every one of them, flat ones too, to a JSONL file."""
        await self.setup()
        await offline.make_groups(self)

    async def evaluate(self, *_: Any, **__: Any) -> list[dict[str, Any]]:
        """Every set of evaluation.problems, sampled and greedy, appended to evaluations.jsonl in the run's folder."""
        held_out = HeldOutSets(self)
        return await held_out.score(held_out.kinds, await self.client.weight_version())

    # -- The command ----------------------------------------------------------------------------------------

    @classmethod
    def run(cls, mode: str, config: RunConfig) -> int:
        """Runs a mode to its end and gives the exit code; see `command.run`."""
        return command.run(cls, mode, config)

    @classmethod
    def run_command(cls, mode: str, argv: Sequence[str]) -> int:
        """`atropos run-env livecode MODE [--config FILE] [--env.option value ...]`."""
        return command.run_command(cls, mode, argv)


def _input_sizes(problem: Problem) -> list[int]:
    tests: Sequence[TestCase] = problem.tests
    return tests.input_sizes() if isinstance(tests, StoredTests) else [len(test.input) for test in tests]
