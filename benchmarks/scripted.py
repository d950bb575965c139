"""What is around the environment under load: a generation server with prepared answers, a trainer that only takes.

    python -m benchmarks.scripted server FOLDER PORT
    python -m benchmarks.scripted trainer FOLDER API_URL SERVER_URL

Each is a process of its own and speaks the real routes. The server holds a request for as long as its answer's tokens
take and then sends it whole, as vLLM does without streaming; token ids are drawn from the whole vocabulary and
log-probabilities have all the digits that vLLM writes. The trainer leases a batch, makes its step the served weights
and acknowledges it, so that the environment is never held up by training. FOLDER is what `prepare` made.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import shutil
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from environments.api_server.launch import bind
from environments.common.agreement import terms
from environments.livecode.problems.load import load_problems, save_problems
from environments.livecode.problems.problem import Problem
from environments.livecode.problems.prompts import PromptBuilder

STEPS = 1_000_000  # of the run: it ends when it is stopped
PREPARED = 24  # answers of different lengths; each is sent with every program


Program = tuple[str, str, float]  # kind, source, weight among the problem's
Prepared = tuple[int, bytes, bytes]  # tokens; token_ids and logprobs.content as they are sent


@dataclass(frozen=True)
class Script:
    """What the server answers.

    Lengths in tokens are log-normal with this mean and sigma, cut at `cap` (finish_reason length, no program); a token
    takes 1 / tokens_per_s seconds. `batch` and `group_size` are the trainer's, in rollouts. The first answers wait
    until `hold` requests are there, so that so many are in flight at the same time however slow the machine is.
    """

    context: int
    mean: float
    sigma: float
    cap: int
    tokens_per_s: float
    group_size: int
    batch: int
    hold: int = 0
    seed: int = 0


def prepare(
    folder: Path,
    model: Path,
    problems: Sequence[Problem],
    programs: Mapping[str, Sequence[Program]],
    script: Script,
) -> None:
    """The model's folder with `context` positions, the problems, and each problem's programs."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (model / name).is_file():
            shutil.copy(model / name, folder / name)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": script.context}))
    save_problems(list(problems), folder / "problems.jsonl")
    (folder / "programs.json").write_text(json.dumps({name: list(some) for name, some in programs.items()}))
    (folder / "script.json").write_text(json.dumps(asdict(script)))


def lengths(script: Script, count: int = PREPARED) -> list[int]:
    """The distribution's quantiles, shortest first."""
    normal = statistics.NormalDist(math.log(script.mean) - script.sigma**2 / 2, script.sigma)
    drawn = (math.exp(normal.inv_cdf((place + 0.5) / count)) for place in range(count))
    return [max(16, min(script.cap, round(length))) for length in drawn]


class Answers:
    """Prepared bodies: tokens of prose in the beginning, a program's in the end."""

    def __init__(self, folder: Path) -> None:
        self.script = Script(**json.loads((folder / "script.json").read_text()))
        self.draw = random.Random(self.script.seed)
        inner = Tokenizer.from_file(str(folder / "tokenizer.json"))
        special = set(inner.get_added_tokens_decoder())
        vocabulary = [token for token in range(inner.get_vocab_size()) if token not in special]
        vocabulary = [token for token in vocabulary if "`" not in (inner.id_to_token(token) or "`")]
        self.prose = [self._tokens(self.draw.choices(vocabulary, k=length)) for length in lengths(self.script)]
        newline = inner.encode("\n").ids
        self.programs: dict[bytes, tuple[list[tuple[str, Prepared]], list[float]]] = {}
        made: dict[str, Prepared] = {}
        prompts = PromptBuilder(AutoTokenizer.from_pretrained(folder), limit=self.script.context)
        programs = json.loads((folder / "programs.json").read_text())
        for problem in load_problems(folder / "problems.jsonl"):
            entries = []
            for kind, code, _ in programs[problem.id]:
                if code not in made:
                    made[code] = self._tokens(newline + inner.encode(f"```python\n{code}\n```").ids)
                entries.append((kind, made[code]))
            weights = [weight for _, _, weight in programs[problem.id]]
            self.programs[json.dumps(prompts(problem).ids).encode()] = entries, weights

    def _tokens(self, ids: Sequence[int]) -> Prepared:
        entry = b'{"token_id":%d,"logprob":%s,"rank":1,"top_logprobs":[]}'
        content = (entry % (token, repr(-self.draw.expovariate(2)).encode()) for token in ids)
        return len(ids), b",".join(b"%d" % token for token in ids), b",".join(content)

    def answer(self, prose: Prepared, prompt: Sequence[int], version: int) -> tuple[str, int, bytes]:
        """(kind, tokens, body) of one rollout that begins with this prose."""
        size, ids, content = prose
        entries, weights = self.programs[json.dumps(list(prompt)).encode()]
        kind, (more, tail_ids, tail_content) = self.draw.choices(entries, weights)[0]
        reason = b"stop"
        if size >= self.script.cap:
            kind, reason = "overlong", b"length"
        else:
            size, ids, content = size + more, ids + b"," + tail_ids, content + b"," + tail_content
        head = b'{"request_id":"r","output_mode":"tokens","choices":[{"index":0,"finish_reason":"%s",' % reason
        spans = b'"weight_versions":[{"version":"%d","start":0,"end":%d}]' % (version, size)
        return kind, size, b'%s"token_ids":[%s],"logprobs":{"content":[%s]},%s}]}' % (head, ids, content, spans)


class Server:
    """The routes, and what was asked of them (GET /scripted)."""

    def __init__(self, answers: Answers) -> None:
        self.answers = answers
        self.version = 0
        self.running = self.peak = 0
        self.full = asyncio.Event()
        self.tokens = self.sent_bytes = 0
        self.kinds: Counter[str] = Counter()

    async def generate(self, request: Request) -> Response:
        body = await request.json()
        params = body["sampling_params"]
        if params["max_tokens"] == 1:
            content = [{"token_id": 5, "logprob": -0.7 * params["temperature"], "rank": 1, "top_logprobs": []}]
            spans = [{"version": str(self.version), "start": 0, "end": 1}]
            choice = {"finish_reason": "length", "token_ids": [5], "logprobs": {"content": content}}
            return JSONResponse({"choices": [choice | {"weight_versions": spans}]})
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            script = self.answers.script
            if self.running >= script.hold:
                self.full.set()
            await self.full.wait()
            prose = self.answers.draw.choice(self.answers.prose)
            await asyncio.sleep(prose[0] / script.tokens_per_s)
            kind, size, answer = self.answers.answer(prose, body["token_ids"], self.version)
        finally:
            self.running -= 1
        self.kinds[kind] += 1
        self.tokens += size
        self.sent_bytes += len(answer)
        return Response(answer, media_type="application/json")

    async def models(self, _: Request) -> Response:
        return JSONResponse({"data": [{"id": "m", "max_model_len": self.answers.script.context}]})

    async def health(self, _: Request) -> Response:
        return Response()

    async def weight_info(self, _: Request) -> Response:
        return JSONResponse({"weight_version": str(self.version)})

    async def update_weight_version(self, request: Request) -> Response:
        self.version = int((await request.json())["version"])
        return Response()

    async def scripted(self, _: Request) -> Response:
        names = ("running", "peak", "tokens", "sent_bytes", "kinds", "version")
        return JSONResponse({name: getattr(self, name) for name in names})

    def app(self) -> Starlette:
        get = {"/v1/models": self.models, "/health": self.health, "/weight_info": self.weight_info}
        post = {"/inference/v1/generate": self.generate, "/update_weight_version": self.update_weight_version}
        routes = [Route(path, route) for path, route in (get | {"/scripted": self.scripted}).items()]
        return Starlette(routes=routes + [Route(path, route, methods=["POST"]) for path, route in post.items()])


def serve(folder: Path, port: int) -> None:
    """The generation server until it is stopped."""
    listening = bind("127.0.0.1", port)
    app = Server(Answers(folder)).app()
    uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off")).run(sockets=[listening])


def train(folder: Path, api: str, server: str) -> None:
    """Takes batches until it is stopped; trainer.json in the folder says how many."""
    script = Script(**json.loads((folder / "script.json").read_text()))
    said = terms(
        model=folder, context=script.context, group_size=script.group_size, overlong_baseline="include", steps=STEPS
    )
    registration = dict.fromkeys(("wandb_group", "wandb_project", "checkpoint_dir"), "") | {
        "batch_size": script.batch, "max_token_len": script.context, "save_checkpoint_interval": -1,
        "starting_step": 0, "num_steps": STEPS,
    }  # fmt: skip
    taken = {"batches": 0, "groups": 0, "bytes": 0}
    with httpx.Client(timeout=300, trust_env=False) as http:
        http.post(f"{api}/register", json=registration).raise_for_status()
        http.post(f"{api}/contract", json={"side": "trainer", "terms": said}).raise_for_status()
        while True:
            step = taken["batches"]
            answer = http.post(f"{api}/lease", json={"trainer": "scripted", "step": step})
            answer.raise_for_status()
            if len(answer.content) < 100:  # no batch yet
                time.sleep(0.2)
                continue
            taken["batches"] += 1
            taken["groups"] += script.batch // script.group_size
            taken["bytes"] += len(answer.content)
            http.post(f"{server}/update_weight_version", json={"version": str(step + 1)}).raise_for_status()
            http.post(f"{api}/ack", json={"checkpoint_step": step + 1}).raise_for_status()
            new = folder / "trainer.new"
            new.write_text(json.dumps(taken))
            os.replace(new, folder / "trainer.json")


def main(argv: Sequence[str]) -> None:
    """One of the two processes; SIGTERM ends it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if argv[0] == "server":
        serve(Path(argv[1]), int(argv[2]))
    else:
        train(Path(argv[1]), argv[2], argv[3])


if __name__ == "__main__":
    main(sys.argv[1:])
