"""Stand-ins whose speed is known, for runs that `benchmarks/plan_check.py` predicts: vLLM servers, and a trainer.

    python -m benchmarks.plan_processes server FOLDER PORT
    python -m benchmarks.plan_processes trainer FOLDER API_URL SERVER_URL...

The server decodes in steps as vLLM does: all running requests get one token in `weights_s` or n x `sequence_s` seconds,
whichever is longer, at most `most_running` of them at a time; it can be paused and given a new version. Its answers are
those of benchmarks/scripted.py. The trainer leases a batch, asking every half second as the real one, sleeps for
`train_s` and `token_s` for each token, pauses the servers, sleeps for `pause_s`, names the version and resumes.
FOLDER is what benchmarks.scripted.prepare made, with the speeds in speeds.json; the trainer writes a row for each step
to steps.jsonl there.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from benchmarks.scripted import STEPS, Answers, Script, Server
from environments.api_server.launch import bind
from environments.common.agreement import terms

POLL_S = 0.5


@dataclass(frozen=True)
class Speeds:
    """Of the stand-ins, in seconds."""

    weights_s: float
    sequence_s: float
    most_running: int
    train_s: float
    token_s: float
    pause_s: float

    @staticmethod
    def of(folder: Path) -> Speeds:
        """What speeds.json says."""
        return Speeds(**json.loads((folder / "speeds.json").read_text()))


class SteppingServer(Server):
    """The scripted server with a step for each token instead of a sleep for each answer."""

    def __init__(self, answers: Answers, speeds: Speeds) -> None:
        super().__init__(answers)
        self.speeds = speeds
        self.going = asyncio.Event()
        self.going.set()
        self.came = asyncio.Event()
        self.waiting: deque[tuple[int, asyncio.Event]] = deque()
        self.active: list[tuple[int, asyncio.Event]] = []  # (step at whose end it is done, its event)

    async def steps(self) -> None:
        """Decodes for ever. A step begins when the last one should have ended, so that lateness does not add up."""
        step, due = 0, time.monotonic()
        while True:
            if not self.active and not self.waiting:
                self.came.clear()
                await self.came.wait()
                due = time.monotonic()
            if not self.going.is_set():
                await self.going.wait()
                due = time.monotonic()
            while self.waiting and len(self.active) < self.speeds.most_running:
                length, done = self.waiting.popleft()
                self.active.append((step + length, done))
            due += max(self.speeds.weights_s, len(self.active) * self.speeds.sequence_s)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            step += 1
            for _, done in [one for one in self.active if one[0] <= step]:
                done.set()
            self.active = [one for one in self.active if one[0] > step]

    async def generate(self, request: Request) -> Response:
        body = json.loads(await request.body())
        if body["sampling_params"]["max_tokens"] == 1:
            return await super().generate(request)
        prose = self.answers.draw.choice(self.answers.prose)
        kind, size, answer = self.answers.answer(prose, body["token_ids"], self.version)
        done = asyncio.Event()
        self.waiting.append((size, done))
        self.came.set()
        began = self.version
        await done.wait()
        if began != self.version:  # tokens of two versions: the first one's is what counts
            answer = answer.replace(b'"version":"%d"' % self.version, b'"version":"%d"' % began)
        self.kinds[kind] += 1
        self.tokens += size
        return Response(answer, media_type="application/json")

    async def pause(self, _: Request) -> Response:
        self.going.clear()
        return Response()

    async def resume(self, _: Request) -> Response:
        self.going.set()
        return Response()

    async def is_paused(self, _: Request) -> Response:
        return JSONResponse({"is_paused": not self.going.is_set()})

    def app(self) -> Any:
        found = super().app()
        found.router.routes += [
            Route("/pause", self.pause, methods=["POST"]),
            Route("/resume", self.resume, methods=["POST"]),
            Route("/is_paused", self.is_paused),
        ]
        return found


async def serve(folder: Path, port: int) -> None:
    """The server until it is stopped."""
    server = SteppingServer(Answers(folder), Speeds.of(folder))
    listening = bind("127.0.0.1", port)
    steps = asyncio.create_task(server.steps())
    config = uvicorn.Config(server.app(), log_level="critical", lifespan="off")
    await uvicorn.Server(config).serve(sockets=[listening])
    steps.cancel()


class Trainer:
    """The trainer's phases, slept."""

    def __init__(self, folder: Path, api: str, servers: Sequence[str]) -> None:
        self.folder, self.api, self.servers = folder, api, servers
        self.script, self.speeds = Script(**json.loads((folder / "script.json").read_text())), Speeds.of(folder)
        self.http = httpx.Client(timeout=300, trust_env=False)

    def run(self) -> None:
        """Until it is stopped."""
        script = self.script
        its_terms = terms(
            model=self.folder, context=script.context, group_size=script.group_size, overlong_baseline="include",
            steps=STEPS,
        )  # fmt: skip
        registration = dict.fromkeys(("wandb_group", "wandb_project", "checkpoint_dir"), "") | {
            "batch_size": script.batch, "max_token_len": -1, "save_checkpoint_interval": -1, "starting_step": 0,
            "num_steps": STEPS,
        }  # fmt: skip
        self._post(f"{self.api}/register", registration)
        self._post(f"{self.api}/contract", {"side": "trainer", "terms": its_terms})
        for step in range(STEPS):
            self._step(step)

    def _step(self, step: int) -> None:
        began = time.monotonic()
        while True:
            answer = self._post(f"{self.api}/lease", {"trainer": "stand-in", "step": step})
            if groups := answer.json()["batch"]:
                break
            time.sleep(POLL_S)
        leased = time.monotonic()
        tokens = sum(len(group["masks"][0]) - self._own(group["masks"][0]) for group in groups)
        tokens += sum(self._own(row) for group in groups for row in group["masks"])
        time.sleep(self.speeds.train_s + self.speeds.token_s * tokens)
        trained = time.monotonic()
        for server in self.servers:
            self._post(f"{server}/pause", None)
        time.sleep(self.speeds.pause_s)
        for server in self.servers:
            self._post(f"{server}/update_weight_version", {"version": str(step + 1)})
            self._post(f"{server}/resume", None)
        ended = time.monotonic()
        oldest = [min(span[0] for row in group["overrides"] for span in row["versions"]) for group in groups]
        row = {
            "step": step, "ended": ended, "wait": leased - began, "train": trained - leased, "sync": ended - trained,
            "tokens": tokens, "staleness": [step - version for version in oldest],
        }  # fmt: skip
        with (self.folder / "steps.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def _own(self, masks: Sequence[int]) -> int:
        return sum(mask != -100 for mask in masks)

    def _post(self, url: str, body: Any) -> httpx.Response:
        answer = self.http.post(url, json=body)
        answer.raise_for_status()
        return answer


def main(argv: Sequence[str]) -> None:
    """One of the two; SIGTERM ends it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if argv[0] == "server":
        asyncio.run(serve(Path(argv[1]), int(argv[2])))
    else:
        Trainer(Path(argv[1]), argv[2], argv[3:]).run()


if __name__ == "__main__":
    main(sys.argv[1:])
