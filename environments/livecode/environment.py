"""The livecode environment: problems to prompts, rollouts, verdicts and scored groups for an Atropos trainer."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

from environments.common import worker_threads
from environments.common.agreement import terms
from environments.common.hub import model_folder
from environments.common.settings import ConfigError
from environments.livecode import command, offline
from environments.livecode.atropos_compat import CompatBaseEnv, server_configs
from environments.livecode.config import RunConfig
from environments.livecode.equipment import Equipment, equip
from environments.livecode.evaluation.sets import HeldOutSets
from environments.livecode.evaluation.training import TrainingEvaluations
from environments.livecode.generation.completions import SamplingParams
from environments.livecode.generation.served_weights import InfrastructureError
from environments.livecode.pipeline import GroupRules, JudgedGroup, make_group
from environments.livecode.problems.problem import Problem
from environments.livecode.problems.prompts import PromptBuilder, prompt_builder
from environments.livecode.problems.sampler import Sampler, build_sampler, load_set
from environments.livecode.recovery.progress import Progress
from environments.livecode.scored_data import as_scored_data
from environments.livecode.serving import Serving
from environments.livecode.verification.judge_requests import check_deadlines

logger = logging.getLogger(__name__)

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
        self.serving: Serving | None = None  # while a trainer is fed
        self.problems: list[Problem] = []
        self.on_new_weights: Callable[[], None] = lambda: None
        self.dropped: Counter[str] = Counter()
        self.rules = GroupRules(
            group_size=config.group_size,
            sampling=SamplingParams(config.max_new_tokens, config.temperature),
            overlong_baseline=config.overlong_baseline,
            dynamic_sampling=config.dynamic_sampling,
        )
        self._equipment: Equipment | None = None
        self._sampler: Sampler | None = None
        self._lost_in_a_row = 0

    # -- Set-up ---------------------------------------------------------------------------------------------

    async def open(self, stack: AsyncExitStack, *, versions: bool, text: bool = False) -> None:
        """Everything that needs closing again; whatever is wrong with files or servers is raised here.

        Args:
            versions: the servers must say which weights they serve.
            text: answers come as text, by OpenAI's chat route.
        """
        prompts = prompt_builder(self.config, self.tokenizer, kind=self.prompt_builder_cls)
        self._equipment = await equip(stack, self.run_config, prompts, versions=versions, text=text)
        await stack.enter_async_context(self.open_api())

    @property
    def equipment(self) -> Equipment:
        """Servers, verifier, prompts, records, once `open` is done."""
        assert self._equipment is not None, "open() comes first"
        return self._equipment

    @property
    def sampler(self) -> Sampler:
        """The order of problems, once `setup` is done."""
        assert self._sampler is not None, "setup() comes first"
        return self._sampler

    async def setup(self) -> None:
        """The problems, every one with a prompt that fits, and the order they come in."""
        problems = await asyncio.to_thread(load_set, self.config.problems, self.config.seed)
        problems = await asyncio.to_thread(self.fitting, self.config.problems, problems)
        self._sampler = build_sampler(
            self.config.problem_sampling,
            problems,
            self.config.seed,
            self.config.sampling_floor_epochs,
            self.config.part,
        )
        self.problems = problems
        logger.info("%d problems from %s", len(problems), self.config.problems)

    def fitting(self, name: str, problems: Sequence[Problem], prompts: PromptBuilder | None = None) -> list[Problem]:
        """The problems of a set whose prompt leaves room for the answer; each other one is recorded, and counted in
        the log by its source. PromptError when none is left."""
        prompts = prompts or self.equipment.prompts
        fit, too_long = prompts.fitting(problems)
        check_deadlines(self.config, fit, getattr(self.equipment.verifier, "call_s", None))
        if too_long:
            sources = Counter(error.problem.source for error in too_long)
            logger.warning(
                "%s: %d of %d problems are left out, their prompts have more than %d tokens and leave no room for the "
                "answer in env.context: %s; see %s",
                name, len(too_long), len(problems), prompts.limit,
                ", ".join(f"{source} {count}" for source, count in sources.most_common()),
                self.equipment.records.left_out(name, too_long),
            )  # fmt: skip
        return fit

    # -- One group ------------------------------------------------------------------------------------------

    async def get_next_item(self) -> Problem:
        """The next problem of the sampling rule."""
        return self.sampler.next()

    async def make_group(self, problem: Problem, group_id: str | None = None, version: int = 0) -> JudgedGroup:
        """A finished group of the problem, scored or dropped; version: the weights' that it begins at."""
        group = await make_group(
            self.equipment.pipeline, problem, self.rules, version=version, group_id=group_id,
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

    # -- Serving a trainer ----------------------------------------------------------------------------------

    async def env_manager(self) -> None:
        """Feeds the trainer until it has taken its steps."""
        await self.setup()
        await self.setup_wandb()
        own_steps = None if self.config.total_steps == -1 else self.config.total_steps
        progress = await self._progress()
        await self.register_env(self._as_shard(progress))
        if self.config.shard:
            self.equipment.stack.push_async_callback(self.leave)
        await self.get_server_info()
        agreement = terms(
            model=self.tokenizer_folder,
            context=self.config.context,
            group_size=self.config.group_size,
            overlong_baseline=self.config.overlong_baseline,
            steps=own_steps,
        )
        trainer = await self.agree(agreement)
        evaluates = self.run_config.evaluation.every and not self.config.part.index
        evaluations = await asyncio.to_thread(TrainingEvaluations, self, trainer) if evaluates else None

        async def longer() -> bool:
            return await self._longer(agreement)

        self.serving = Serving(self, progress, trainer, evaluations, longer)
        await self.serving.run()

    async def _progress(self) -> Progress:
        """Where an earlier process of this run was. Raises ConfigError where the folder belongs to another run."""
        names = ("problems", "seed", "problem_sampling", "sampling_floor_epochs", "group_size", "shard")
        progress = await worker_threads.progress(
            Progress,
            self.config.own_dir,
            problems=self.problems,
            settings={name: getattr(self.config, name) for name in names},
            sampler=self.sampler,
            order=self.equipment.order,
        )
        self.equipment.stack.callback(progress.close)
        return progress

    def _as_shard(self, progress: Progress) -> dict[str, Any] | None:
        """What the API server has to know of a shard: its own part, and what all shards of a run must share.

        The problems by their digest: where the file lies may differ between machines.
        """
        if not self.config.shard:
            return None
        part = self.config.part
        shared = {name: value for name, value in progress.settings.items() if name not in ("problems", "shard")}
        return {
            "index": part.index,
            "count": part.count,
            "identity": progress.identity,
            "folder": str(progress.path.parent),
            "shared": shared,
        }

    async def _longer(self, agreement: dict[str, Any]) -> bool:
        """Whether a restarted trainer goes beyond the number of steps that the last one registered."""
        if "steps" in agreement:
            return False
        steps = int((await self.agree(agreement)).get("steps", 0))
        if steps <= self.config.total_steps:
            return False
        self.config.total_steps = steps
        logger.info("the trainer continues to step %d", steps)
        return True

    @property
    def groups_per_batch(self) -> int:
        return int(self.config.batch_size // self.config.group_size)

    def places(self, batches: int) -> int:
        """How many groups of the first `batches` batches are this environment's."""
        return self.config.part.places(batches * self.groups_per_batch)

    # -- Without a trainer ----------------------------------------------------------------------------------

    async def process_manager(self) -> None:
        """Makes process.groups groups and writes every one of them, flat ones too, to a JSONL file."""
        await self.setup()
        await offline.make_groups(self)

    async def evaluate(self, *_: Any, **__: Any) -> list[dict[str, Any]]:
        """Every set of evaluation.problems, sampled and greedy, appended to evaluations.jsonl in the run's folder."""
        held_out = HeldOutSets(self)
        return await held_out.score(held_out.kinds, await self.equipment.client.weight_version())

    # -- The command ----------------------------------------------------------------------------------------

    @classmethod
    def run(cls, mode: str, config: RunConfig) -> int:
        """Runs a mode to its end and gives the exit code; see `command.run`."""
        return command.run(cls, mode, config)

    @classmethod
    def run_command(cls, mode: str, argv: Sequence[str]) -> int:
        """`atropos run-env livecode MODE [--config FILE] [--env.option value ...]`."""
        return command.run_command(cls, mode, argv)
