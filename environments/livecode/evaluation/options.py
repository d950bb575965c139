"""Options of evaluations, and the values that published numbers were measured with."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from environments.common.settings import ConfigError, PathText, Section
from environments.livecode.evaluation.profiles import Name as Profile
from verifier_app.judge.default_limits import MEMORY_LIMIT_MB, TIME_LIMIT_S

LIKE: dict[str, dict[str, dict[str, Any]]] = {
    "nouscoder": {
        "env": {
            "prompt_style": "nouscoder", "max_new_tokens": None, "time_limit_s": TIME_LIMIT_S,
            "memory_limit_mb": MEMORY_LIMIT_MB,
            "decimal_tolerance": 1e-4,
        },
        "evaluation": {"n": 16, "temperature": 0.6, "top_p": 0.95, "greedy": False, "profiles": ["nouscoder"]},
    },
    "livecodebench": {
        "env": {"prompt_style": "livecodebench"},
        "evaluation": {
            "n": 10, "temperature": 0.2, "top_p": 0.95, "greedy": False, "profiles": ["livecodebench"],
            "semantics": "official",
        },
    },
}  # fmt: skip
"""What an evaluation that is to be compared with a published number sets: NousCoder's as in its environment's code (see
configs/nouscoder-14b/published.yaml), LiveCodeBench's as its runner's defaults."""


class EvaluationConfig(Section):
    """The mode `evaluate`, and evaluations while `serve` feeds a trainer."""

    every: int = Field(
        0,
        ge=0,
        description="serve: every how many steps the weights are evaluated, before the first and after the last as "
        "well; the trainer waits meanwhile. 0: never.",
    )
    context: int | None = Field(
        None, ge=16, description="Longest prompt + completion of an evaluation; empty: env.context."
    )

    like: Literal["nouscoder", "livecodebench"] | None = Field(
        None,
        description="Prompt, sampling and grading of published numbers, all at once: nouscoder's or livecodebench's; "
        "`--like NAME` for short.",
    )

    problems: list[PathText] = Field(
        [],
        description="Sets to evaluate: as env.problems, several; empty: env.problems. With every: the validation set "
        "beside env.problems.",
    )
    n: int = Field(4, ge=1, description="Samples per problem.")
    temperature: float | None = Field(None, gt=0, description="Sampling temperature; empty: env.temperature.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus of evaluation sampling; training always uses 1.")
    greedy: bool = Field(True, description="One greedy answer per problem as well.")
    seed: int = Field(0, ge=0, description="Seed of every request, so that evaluations before and after pair up.")
    limit: int | None = Field(None, ge=1, description="Evaluate only this many problems of each set; empty: all.")
    profiles: list[Profile] = Field(
        ["run"],
        min_length=1,
        description="Rules that every program is graded by, the first one's score counts: livecodebench (6 s, no "
        "memory limit, exact decimals), nouscoder (15 s, 4 GB, decimals to 1e-4), run (env's limits and tolerance).",
    )
    semantics: Literal["process", "official"] = Field(
        "process",
        description="How livecodebench runs programs: process, as in training, or official, as LiveCodeBench's own "
        "grader does: inside its process, on a text stdin, with what was printed when the main thread ended.",
    )
    cutoff: str | None = Field(
        "2024-07-31",
        pattern=r"^\d{4}-\d\d-\d\d$",
        description="Last date of problems that may have been trained on: scores are shown up to it and after it; "
        "empty: not. The recipe's is the default.",
    )
    no_memory_limit_mb: int = Field(
        16384, ge=64, le=1 << 20, description="Limit in MB where livecodebench has no memory limit."
    )
    route: Literal["tokens", "chat"] = Field(
        "tokens",
        description="tokens: vLLM's token routes; chat: text from any server with OpenAI's /v1/chat/completions "
        "(its key, where it wants one, in the variable OPENAI_API_KEY).",
    )
    served_model: str | None = Field(None, description="chat: the model's name at the server; empty: model.")

    @model_validator(mode="after")
    def _each_profile_once(self) -> EvaluationConfig:
        if len(set(self.profiles)) != len(self.profiles):
            raise ValueError(f"profiles {self.profiles}: one of them twice; name each once")
        return self


def validation_beside(problems: str) -> str:
    """The held-out set that goes with training problems: the build's validation split, or the warm-up's new instances.

    Raises:
        ConfigError: there is none; the test set is only taken where it is named.
    """
    if problems == "warmup:train":
        return "warmup:new_instances"
    folder = Path(problems).parent if Path(problems).suffix == ".parquet" else Path(problems)
    beside = folder.parent / "validation"
    if (beside / "problems.parquet").is_file():
        return str(beside)
    raise ConfigError(
        f"evaluation.every with env.problems {problems}: no validation split in {folder.parent}. Build one with "
        "`atropos data build --validation-from 2024-05-01`, or name the set in evaluation.problems"
    )
