"""verifiers and prime-rl: the problems as a taskset, by the id `atropos-livecode`.

    eval atropos-livecode --env.taskset.problems warmup:new_instances
    load_environment(resolve_env_config({"taskset": {"id": "atropos-livecode"}, ...}))

What is raised while a rollout is scored is an error on its trace: verifiers counts or retries such a rollout and
prime-rl does not train on it. A fault of ours is raised, so no reward comes of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import verifiers.v1 as vf

from environments.livecode.problems.prompts import SYSTEM, Scaffold, messages
from integrations.grading import Judging, problem_of, problem_text, problems_named, shared_grader
from verifier_app.judge.default_limits import MEMORY_LIMIT_MB, TIME_LIMIT_S


class LivecodeTaskConfig(vf.TaskConfig):  # type: ignore[misc, unused-ignore]
    """How programs are judged."""

    verifier_urls: tuple[str, ...] = ()
    """Addresses of `atropos verifier serve`; none: judges on this machine."""
    time_limit_s: float = TIME_LIMIT_S
    """Seconds for one test."""
    memory_limit_mb: int = MEMORY_LIMIT_MB
    """Megabytes for one test."""


class LivecodeData(vf.TaskData):  # type: ignore[misc, unused-ignore]
    """A problem."""

    problem: str
    """The problem with its tests, one JSON text."""


class LivecodeTask(vf.Task[LivecodeData, vf.State, LivecodeTaskConfig]):  # type: ignore[misc, unused-ignore]
    """One problem, answered in one turn."""

    @property
    def key(self) -> str:
        """The problem's id."""
        return str(self.data.id)

    @vf.reward  # type: ignore[untyped-decorator, unused-ignore]
    async def livecode(self, trace: vf.Trace) -> float:
        """+1 where the program passes every test, -1 elsewhere; NoVerdict where no judge could say."""
        limits = self.config
        judging = Judging(limits.verifier_urls, None, limits.time_limit_s, limits.memory_limit_mb)
        problem = problem_of(self.data.problem)
        grade = await asyncio.to_thread(shared_grader(judging).grade, problem, trace.last_reply)
        trace.record_metrics({"pass_at_1": float(grade.accepted), "no_code": float(grade.status == "no_code")})
        return grade.reward


class LivecodeConfig(vf.TasksetConfig):  # type: ignore[misc, unused-ignore]
    """Which problems, and how they are put to the model."""

    problems: str = "warmup:train"
    """A built split, a JSONL file, or warmup:train, warmup:new_instances, warmup:unseen_templates."""
    seed: int = 0
    """Draws the instances of warm-up problems."""
    scaffold: Scaffold = "livecodebench"
    """The form of the user message: livecodebench, nouscoder or plain."""
    task: LivecodeTaskConfig = LivecodeTaskConfig()


class LivecodeTaskset(vf.Taskset[LivecodeTask, LivecodeConfig]):  # type: ignore[misc, unused-ignore]
    """Problems in LiveCodeBench's form with the judge's verdict as their reward."""

    def load(self) -> Iterator[LivecodeTask]:
        """The tasks in the problems' order."""
        for problem in problems_named(self.config.problems, self.config.seed):
            (*_, question) = messages(problem, scaffold=self.config.scaffold)
            data = LivecodeData(
                id=problem.id,
                name=problem.id,
                prompt=question["content"],
                system_prompt=SYSTEM,
                problem=problem_text(problem),
            )
            yield LivecodeTask(data, self.config.task)


__all__ = ["LivecodeTaskset"]
