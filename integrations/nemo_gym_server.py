"""NeMo-Gym: the problems as a resources server of its protocol, without its package.

    python -m integrations.nemo_gym_server rows PROBLEMS OUT.jsonl [AGENT]     # the data set of its agents
    python -m integrations.nemo_gym_server serve PROBLEMS [PORT]

In a checkout of NeMo-Gym the two lines `from integrations.nemo_gym_server import serve_in_gym` and `serve_in_gym()` are
the app.py of a resources server; its config has, beside host and port, the field `problems`.

`/verify` takes a row with the model's `response` (an object of the Responses API) and gives it back with `reward` (+1
or -1) and `status`. A fault of ours sets `mask_sample`, by which NeMo-Gym leaves the sample out; its reward, which the
protocol demands, is 0.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
import yaml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from environments.common.errors import ConfigError, LivecodeError, report
from environments.livecode.problems.problem import Problem
from environments.livecode.problems.prompts import messages
from integrations.grading import Grader, Judging, NoVerdict, problems_named

Row = dict[str, Any]
AGENT = "atropos_livecode_simple_agent"
_CONFIG, _NAME = "NEMO_GYM_CONFIG_DICT", "NEMO_GYM_CONFIG_PATH"
"""Variables of the processes that NeMo-Gym starts: the whole configuration as YAML, and the server's name in it."""


def row(problem: Problem, agent: str = AGENT) -> Row:
    """A line of NeMo-Gym's data set: the problem's chat, its id, and the agent that answers it. Tests stay here."""
    return {
        "responses_create_params": {"input": messages(problem)},
        "problem": problem.id,
        "agent_ref": {"type": "responses_api_agents", "name": agent},
    }


def output_text(response: Any) -> str:
    """The answer in an object of the Responses API: the text of its messages, without reasoning and tool calls.

    Raises:
        ValueError: it is no such object.
    """
    if not isinstance(response, Mapping) or not isinstance(response.get("output"), list):
        raise ValueError("response: need an object of the Responses API with the list `output`")
    parts: list[str] = []
    for item in response["output"]:
        if not isinstance(item, Mapping) or item.get("type") != "message":
            continue
        content = item.get("content")
        if isinstance(content, str):
            parts.append(content)
        for part in content if isinstance(content, list) else ():
            if isinstance(part, Mapping) and part.get("type") == "output_text":
                parts.append(str(part.get("text") or ""))
    return "".join(parts)


class Gym:
    """What the routes share: problems by id, and the grader."""

    def __init__(self, problems: Sequence[Problem], grader: Grader) -> None:
        self._problems = {problem.id: problem for problem in problems}
        self._grader = grader

    async def verify(self, request: Request) -> JSONResponse:
        """POST /verify. 422 for a body that is none of its rows with a response."""
        try:
            body = await request.json()
            if not isinstance(body, dict):
                raise ValueError(f"the body is a {type(body).__name__}: need a row with `response`")
            problem = self._problems.get(body.get("problem", ""))
            if problem is None:
                raise ValueError(
                    f"problem = {body.get('problem')!r}: no such id among the {len(self._problems)} served"
                )
            answer = output_text(body.get("response"))
        except (ValueError, TypeError) as error:
            return JSONResponse({"detail": str(error)}, 422)
        try:
            grade = await self._grader.grade(problem, answer)
        except NoVerdict as error:
            masked = {
                "reward": 0.0,
                "mask_sample": True,
                "failure_kind": "verifier_error",
                "failure_reason": str(error),
            }
            return JSONResponse({**body, **masked, "status": None})
        return JSONResponse({**body, "reward": grade.reward, "mask_sample": False, "status": grade.status})

    async def aggregate_metrics(self, request: Request) -> JSONResponse:
        """POST /aggregate_metrics: pass@1 over the samples that have a verdict, and the share of those without."""
        rows = (await request.json()).get("verify_responses", [])
        judged = [one["reward"] > 0 for one in rows if not one.get("mask_sample")]
        found: dict[str, float] = {"no_verdict": 1 - len(judged) / len(rows)} if rows else {}
        found |= {"pass@1": sum(judged) / len(judged)} if judged else {}
        return JSONResponse({"group_level_metrics": [], "agent_metrics": found, "key_metrics": found})


async def _session(request: Request) -> JSONResponse:
    """Nothing is kept of a session: a caller's id, where it has one, is confirmed."""
    text = await request.body()
    body = json.loads(text) if text else {}
    name = body.get("resources_session_id") if isinstance(body, dict) else None
    return JSONResponse({} if name is None else {"resources_session_id": name})


async def _alive(request: Request) -> JSONResponse:
    return JSONResponse({"status": "ok"})


async def _reverify(request: Request) -> JSONResponse:
    return JSONResponse("stateless")


def application(problems: Sequence[Problem], judging: Judging | None = None) -> Starlette:
    """The server's application; None: judged as the variables LIVECODE_... say."""
    grader = Grader(judging or Judging.from_environment())
    gym = Gym(problems, grader)

    @asynccontextmanager
    async def judges(_: Starlette) -> AsyncIterator[None]:
        async with grader:
            yield

    routes = [
        Route("/seed_session", _session, methods=["POST"]),
        Route("/close_session", _session, methods=["POST"]),
        Route("/verify", gym.verify, methods=["POST"]),
        Route("/aggregate_metrics", gym.aggregate_metrics, methods=["POST"]),
        Route("/reverify_mode", _reverify),
    ]
    alive = [Route(path, _alive) for path in ("/", "/health", "/healthz", "/livez", "/readyz")]
    # Clients that trace rollouts put the rollout's id before the path.
    return Starlette(routes=[*routes, *alive, Mount("/ng-rollout/{rollout}", routes=routes)], lifespan=judges)


def serve_in_gym() -> None:
    """Serve as NeMo-Gym starts its servers: what it puts into the environment says where, and which problems.

    Raises:
        ConfigError: it was not started so, or a field is missing.
    """
    text, name = os.environ.get(_CONFIG), os.environ.get(_NAME)
    if not text or not name:
        raise ConfigError(f"{_CONFIG} and {_NAME} are not set: NeMo-Gym sets them; else use `serve PROBLEMS PORT`")
    config: Any = (yaml.safe_load(text) or {}).get(name)
    for _ in range(2):  # below the name: its kind, then the server
        config = next(iter(config.values()), None) if isinstance(config, dict) else None
    if not isinstance(config, dict) or not {"host", "port", "problems"} <= set(config):
        raise ConfigError(f"{_CONFIG}: {name} needs a server with host, port and problems")
    app = application(problems_named(str(config["problems"])))
    uvicorn.run(app, host=str(config["host"]), port=int(config["port"]))


def main(argv: Sequence[str]) -> int:
    """rows PROBLEMS OUT [AGENT], or serve PROBLEMS [PORT] on this machine's own address; the exit code."""
    command, arguments = (argv[0], argv[1:]) if argv else ("", [])
    if (command, len(arguments)) not in {("rows", 2), ("rows", 3), ("serve", 1), ("serve", 2)}:
        print("usage: python -m integrations.nemo_gym_server rows PROBLEMS OUT.jsonl [AGENT] | serve PROBLEMS [PORT]",
              file=sys.stderr)  # fmt: skip
        return 2
    try:
        problems = problems_named(arguments[0])
        if command == "rows":
            lines = [json.dumps(row(problem, *arguments[2:]), ensure_ascii=False) + "\n" for problem in problems]
            Path(arguments[1]).write_text("".join(lines), encoding="utf-8")
            return 0
        port = arguments[1] if len(arguments) == 2 else "8030"
        if not port.isdigit() or not 0 < int(port) < 65536:
            raise ConfigError(f"port {port!r}: give a number from 1 to 65535")
        app = application(problems)
    except LivecodeError as error:
        return report(error)
    uvicorn.run(app, host="127.0.0.1", port=int(port))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
