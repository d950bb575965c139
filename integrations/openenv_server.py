"""OpenEnv: the problems as an environment server of its protocol; one answer is one step.

    python -m integrations.openenv_server warmup:train 8020      # then EnvClient(base_url="http://127.0.0.1:8020")

`reset` gives a problem: that of the id `problem`, or by `seed`, or the next one. `step` takes {text: the answer} and
gives its reward. A fault of ours is an error of the step, which carries no reward; the client may take the step again.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from openenv.core.env_server.http_server import create_fastapi_app
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.types import Action, Observation, State

from environments.common.errors import ConfigError, LivecodeError, report
from environments.livecode.problems.problem import Problem
from environments.livecode.problems.prompts import messages
from integrations.grading import Judging, problems_named, shared_grader

if TYPE_CHECKING:
    from fastapi import FastAPI

SESSIONS = 256
"""Episodes at the same time."""


class Answer(Action):  # type: ignore[misc, unused-ignore]
    """A model's answer to the problem of the last reset."""

    text: str


class Question(Observation):  # type: ignore[misc, unused-ignore]
    """A problem as a chat, and after the answer its verdict."""

    problem: str
    messages: list[dict[str, str]]
    status: str | None = None


class Problems:
    """The set that every session draws from."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self._all = list(problems)
        self._by_id = {problem.id: problem for problem in problems}
        self._next = itertools.count()
        self._lock = threading.Lock()

    def draw(self, seed: int | None, name: str | None) -> Problem:
        """The problem of this id, by this seed, or the next one; ValueError for an unknown id."""
        if name is not None:
            if name not in self._by_id:
                raise ValueError(f"problem = {name!r}: no such id among the {len(self._all)} problems served")
            return self._by_id[name]
        with self._lock:
            index = next(self._next) if seed is None else seed
        return self._all[index % len(self._all)]


class LivecodeEnvironment(Environment[Answer, Question, State]):  # type: ignore[misc, unused-ignore]
    """One session: a problem and its one answer."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self, problems: Problems, judging: Judging | None) -> None:
        super().__init__()
        self._problems, self._judging = problems, judging
        self._problem: Problem | None = None
        self._state = State()

    def reset(
        self, seed: int | None = None, episode_id: str | None = None, problem: str | None = None, **_: Any
    ) -> Question:
        """The next question."""
        self._problem = self._problems.draw(seed, problem)
        self._state = State(episode_id=episode_id, step_count=0)
        return self._question()

    def step(self, action: Answer, timeout_s: float | None = None, **_: Any) -> Question:
        """The verdict on the answer and its reward. NoVerdict where no judge could give one."""
        if self._problem is None:
            raise ValueError("step before reset: there is no problem to answer")
        grade = shared_grader(self._judging).grade(self._problem, action.text)
        self._state.step_count += 1
        return self._question(done=True, reward=grade.reward, status=grade.status)

    @property
    def state(self) -> State:
        """The episode's id and the answers so far."""
        return self._state

    def _question(self, **fields: Any) -> Question:
        assert self._problem is not None
        return Question(problem=self._problem.id, messages=messages(self._problem), **fields)


def application(problems: Sequence[Problem], judging: Judging | None = None) -> FastAPI:
    """The server's application; None: judged as the variables LIVECODE_... say."""
    served = Problems(problems)
    app: FastAPI = create_fastapi_app(
        lambda: LivecodeEnvironment(served, judging), Answer, Question, max_concurrent_envs=SESSIONS
    )
    return app


def main(argv: Sequence[str]) -> int:
    """PROBLEMS [PORT]: serves on this machine's own address until it is stopped; the exit code."""
    import uvicorn

    if len(argv) not in (1, 2):
        print("usage: python -m integrations.openenv_server PROBLEMS [PORT]", file=sys.stderr)
        return 2
    try:
        port = argv[1] if len(argv) == 2 else "8020"
        if not port.isdigit() or not 0 < int(port) < 65536:
            raise ConfigError(f"port {port!r}: give a number from 1 to 65535")
        app = application(problems_named(argv[0]), Judging.from_environment())
    except LivecodeError as error:
        return report(error)
    uvicorn.run(app, host="127.0.0.1", port=int(port))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
