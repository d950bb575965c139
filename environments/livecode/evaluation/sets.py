"""The sets that a model is evaluated on: loaded, with their prompts, and scored into evaluations.jsonl."""

from __future__ import annotations

import logging
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from environments.livecode.evaluation.drawing import Draws
from environments.livecode.evaluation.evaluate import evaluate
from environments.livecode.evaluation.profiles import GradingProfile, grading_profiles
from environments.livecode.evaluation.samples import SampleStore
from environments.livecode.pipeline import all_of
from environments.livecode.problems.prompts import prompt_builder
from environments.livecode.problems.sampler import load_set
from environments.livecode.records.group_records import append_jsonl

if TYPE_CHECKING:
    from environments.livecode.environment import LivecodeEnv

logger = logging.getLogger(__name__)

RECORDS = "evaluations.jsonl"
Kind = tuple[str, bool]
"""One evaluation of a set: its name, and whether it is greedy."""


class HeldOutSets:
    """Every set of evaluation.problems with the prompts that fit.

    Raises:
        ProblemError: a set that is not there. PromptError: one of which no prompt fits.
    """

    def __init__(self, env: LivecodeEnv) -> None:
        self.env, self.options = env, env.run_config.evaluation
        context = self.options.context or env.config.context
        self.config = env.config.model_copy(update={"context": context})
        self.prompts = prompt_builder(self.config, env.tokenizer, kind=env.prompt_builder_cls)
        names = env.run_config.evaluation_sets
        loaded = {name: load_set(name, self.config.seed)[: self.options.limit] for name in names}
        self.sets = {name: env.fitting(name, problems, self.prompts) for name, problems in loaded.items()}
        self.left_out = {name: len(problems) - len(self.sets[name]) for name, problems in loaded.items()}

    @property
    def kinds(self) -> list[Kind]:
        """Sampled and, where that is asked for, greedy, of each set; the first one's score is the one that counts."""
        return [(name, greedy) for name in self.sets for greedy in ((False, True) if self.options.greedy else (False,))]

    async def score(
        self, kinds: Sequence[Kind], served: int | None, *, pinned: bool = False, **fields: Any
    ) -> list[dict[str, Any]]:
        """The records of these evaluations, appended to evaluations.jsonl in the run's folder with `fields`.

        Args:
            served: the weight version. pinned: every token has to come from it, and what a death left of its samples,
                finished ones included, is resumed.

        Raises:
            As `evaluate`; what was sampled of a pinned evaluation whose weights moved is forgotten.
        """
        stores = {kind: self._samples(kind, served, reopen=pinned) for kind in kinds}
        # All at once: one set's last long answers would leave most generation slots empty.
        records = await all_of([self._evaluate(kind, served, stores[kind], pinned) for kind in kinds])
        for record in records:
            record |= {"settings": self._settings(record), "left_out": self.left_out[record["set"]], **fields}
            append_jsonl(Path(self.config.run_dir) / RECORDS, record)
            _log(record)
        return records

    def forget(self, kinds: Sequence[Kind], served: int) -> None:
        """Drops the samples of an evaluation whose weights are gone."""
        for kind in kinds:
            self._samples(kind, served, reopen=True).discard()

    async def _evaluate(self, kind: Kind, served: int | None, samples: SampleStore, pinned: bool) -> dict[str, Any]:
        name, greedy = kind
        options, config = self.options, self.config
        heat = options.temperature or config.temperature
        draws = Draws(options.n, heat, greedy, config.max_new_tokens, options.top_p, options.seed)
        return await evaluate(
            self.sets[name],
            draws,
            pipeline=self.env.equipment.pipeline,
            name=name,
            weight_version=served,
            samples=samples,
            grading=self._grading(),
            cutoff=options.cutoff,
            prompts=self.prompts,
            pinned=pinned,
        )

    def _settings(self, record: dict[str, Any]) -> dict[str, Any]:
        """What a number is of, so that two can be compared: by what, on what, how sampled, how graded."""
        options, config = self.options, self.config
        return {
            "like": options.like,
            "model": self.env.run_config.model,
            "route": options.route,
            "prompt_style": config.prompt_style,
            "context": config.context,
            "max_new_tokens": config.max_new_tokens,  # null: what each prompt leaves
            "n": record["n"],
            "temperature": record["temperature"],
            "top_p": 1.0 if record["greedy"] else options.top_p,
            "yarn_factor": self.env.run_config.yarn_factor,
            "graders": [str(profile) for profile in self._grading()],
            "versions": {"atropos-livecode": version("atropos-livecode"), "python": platform.python_version()},
        }

    def _grading(self) -> list[GradingProfile]:
        """The rules that programs are graded by, the first one's score counting."""
        options, config = self.options, self.config
        return grading_profiles(
            options.profiles, time_limit_s=config.time_limit_s, memory_limit_mb=config.memory_limit_mb,
            own_limits=config.own_limits, decimal_tolerance=config.decimal_tolerance,
            no_memory_limit_mb=options.no_memory_limit_mb, semantics=options.semantics,
        )  # fmt: skip

    def _samples(self, kind: Kind, served: int | None, *, reopen: bool) -> SampleStore:
        """Where an evaluation keeps its samples: a place of its own for all that decides what is sampled."""
        name, greedy = kind
        options, config = self.options, self.config
        settings: dict[str, Any] = {
            "set": name,
            "greedy": greedy,
            "weight_version": served,
            "model": self.env.run_config.model,
            "evaluation": options.model_dump(
                exclude={"problems", "n", "greedy", "limit", "cutoff", "every", "context"}
            ),
            "env": config.model_dump(
                include={"context", "max_new_tokens", "temperature", "prompt_style", "fewshot_turns", "fewshot_path",
                         "fewshot_scaffold", "thinking", "time_limit_s", "memory_limit_mb", "seed"}
            ),
        }  # fmt: skip
        for option in ("decimal_tolerance", "own_time_factor", "own_memory_factor"):
            if (value := getattr(config, option)) is not None:  # unset it is as it was before there was such an option
                settings["env"][option] = value
        named = f"{Path(name).name if '/' in name else name}{'-greedy' if greedy else ''}-v{served}"
        return SampleStore(Path(config.run_dir) / "evaluations", named, settings, reopen=reopen)


def _log(record: dict[str, Any]) -> None:
    for name, scores in record["profiles"].items():
        logger.info(
            "%s%s, graded as %s: pass@1 %.3f [%.3f, %.3f]", record["set"],
            " greedy" if record["greedy"] else "", name, scores["pass_at_1"], *scores["ci95"],
        )  # fmt: skip
    if (rest := record["without_known_bad"]) is not None:
        logger.info("%s without known-bad problems: pass@1 %.3f", record["set"], rest["pass_at_1"])
